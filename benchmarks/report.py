"""Writes benchmarks/results/README.md, the page of measured speed, from the files beside it.

    python -m benchmarks.report

Every table says which command made it, on which machine, when, and from which commit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.command_line import run_main
from benchmarks.markdown import provenance, table
from benchmarks.record import ROOT, Measurement, Record, UserError

SAME_FUNCTION = ("reference", "natten", "flex", "harmonics")
OTHER_FUNCTION = ("window", "global")
INTRODUCTION = """\
# Measured speed

How long `sdwa` takes, and how long others take for the same. Whatever computes a wrong result is
not timed: outputs and gradients are compared with float64 before. `python -m benchmarks.report`
writes this page from the JSON files beside it and measures nothing; with each table stand the
command that measured it, the machine, the date, the commit and the versions. Machines waver from
hour to hour, so compare within a table rather than across tables.
"""
ATTENTION = """\
## The operator

A shape is batch x height x width, then heads x channels per head; where nothing else is said the
window is 3 x 3, heads have dilations 1, 2 and 3, and taps off the map count as zeros. "shifted":
windows move inwards at the border, as NATTEN's do; a height of 1 is a sequence. What the columns
say:

- `sdwa` ms: median, and the 20th to 80th percentile, of the backend that is chosen there.
- of copy: the fewest bytes that the operator must move, over its time, over the bandwidth of a
  large copy in the same run. 1 is as fast as copying; above 1 the data lay in a cache.
- graph ms: the same in a CUDA graph, without the time that launching takes, which outlasts the work
  on small maps; backward: forward+backward less forward. The next column is "of copy" of it.
- unfold, NATTEN, FlexAttention, torch-harmonics: times as long as `sdwa` for the same result.
  unfold is `sdwa`'s reference in plain PyTorch. NATTEN gets one call per dilation; where windows
  are not shifted its maps are zero-padded, and its result is cropped. FlexAttention is compiled;
  building its block mask is not timed. torch-harmonics' layer attends to what lies within a
  distance on the sphere; its kernel alone, which is timed, gets the operator's windows instead, on
  maps padded and cropped as NATTEN's, since its columns wrap around.
- sdwa, dilation 1, and global (SDPA), `scaled_dot_product_attention` over all pixels: the same for
  two other functions, which show what dilation costs.
- peak MiB: memory beyond the inputs, `sdwa` / unfold.
"""
NATTEN_ON_CPU = "NATTEN 0.17.5 is the last version with CPU kernels; the newest has none."
TRAINING = """\
## The network, training and inference

Random weights. Latency is of one image. Of matrix rate: counted operations, over the time, over the
rate of a large matrix product in the same run. Peak MiB: memory beyond weights, optimizer state and
images. "poster" is POSTER, the network that CFMRFN follows, from a checkout of its repository.
"""
LATENCY = """\
## The network, latency of one image by kind of attention

Calls alternate, and differences are taken within a round. "unfold" is the dilated network on the
reference backend; "window" has dilation 1 everywhere; "global" attends to all pixels.
"""
PREDICTION = """\
## From files to expressions

Random weights. "network" is PyTorch alone, on faces that are in memory; "predict" and "faces" go
from files to probabilities, "drawn" to an annotated video. The last column compares the fastest
calls, which other work on the machine disturbs least.
"""
OVERHEAD = """\
## Overhead per call

Microseconds of a whole eager call on one 7 x 7 map and one thread, median and fastest, beside
`scaled_dot_product_attention` on the same numbers. With 1 head of 8 channels the arithmetic takes
next to nothing, and what is left is Python and the dispatcher.
"""
CPU = """\
## The CPU kernels beside the memory's speed

Goals, on maps of 8 x 56 x 56 where nothing else is said, 8 heads of 64; the cost of a token is
compared over maps of side 7 to 224. The table holds "of copy" as above, forward / backward, on maps
of 4 x 56 x 56 with 8 heads.
"""

THREADS = """\
## Threads, alone and beside another process

Times of a call, and how many times as long it took with two processes at once, two threads each, on
two cores: the mean, and the slowest call. At the end of each parallel loop PyTorch's threads (GNU
OpenMP) wait for each other. "default": they spin for some milliseconds before they sleep, and so
take the core from the very thread that they wait for; "passive" (`OMP_WAIT_POLICY=passive`): they
sleep at once; "spin 10000" (`GOMP_SPINCOUNT=10000`): they spin briefly. "sdpa 7x7" is PyTorch's
`scaled_dot_product_attention` on as many numbers, on maps of 7 x 7.
"""


def page(records: Mapping[str, Record], pictures: Sequence[str]) -> str:
    """The whole file.

    Args:
        records: by file name.
        pictures: file names of plots; those named `plots.OVERVIEW` stand in the summary.
    """

    def of(benchmark: str) -> dict[str, Record]:
        return {name: r for name, r in records.items() if r.benchmark == benchmark}

    attention, latency = of("attention"), of("latency")
    overview = [p for p in pictures if Path(p).stem.endswith(plots.OVERVIEW)]
    parts = [INTRODUCTION]
    everywhere: list[str] = []
    if attention:
        parts += summary([*attention.values()], [*latency.values()])
        parts += map(_picture, overview)
        first, *others = (record.left_out for record in attention.values())
        everywhere = [line for line in first if all(line in other for other in others)]
        parts += [ATTENTION, *_left_out("Left out of every table", everywhere)]
        parts += _tables(attention, attention_table, everywhere)
        parts += [_picture(p) for p in pictures if p not in overview]
    for introduction, make_table, found in (
        (TRAINING, training_table, of("training")),
        (LATENCY, latency_table, latency),
        (PREDICTION, prediction_table, of("prediction")),
        (OVERHEAD, overhead_table, of("overhead")),
        (CPU, cpu_results, of("cpu")),
        (THREADS, threads_table, of("threads")),
    ):
        if found:
            parts += [introduction, *_tables(found, make_table)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _tables(
    records: Mapping[str, Record], make: Callable[[Record], str], told: Sequence[str] = ()
) -> list[str]:
    """Each record's heading, origin, table, and what it left out that has not been told yet."""
    parts = []
    for name, record in records.items():
        parts += [f"### [{name}]({name})", provenance(record.setting), make(record)]
        parts += _left_out("Left out", [line for line in record.left_out if line not in told])
    return parts


def best_of_ours(rows: Iterable[Measurement]) -> Measurement | None:
    """The measurement of sdwa's default backend among rows of one case."""
    by_name = {m.contender: m for m in rows}
    return next((by_name[name] for name in plots.OURS if name in by_name), None)


def cases(record: Record) -> list[tuple[Measurement, dict[str, Measurement]]]:
    """sdwa's measurement and everybody's by name, for each shape, dtype and pass.

    Passes of one shape follow each other, shapes stand as in the file.
    """
    rows: dict[tuple[str, str], dict[str, dict[str, Measurement]]] = {}
    for m in record.measurements:
        passes = rows.setdefault((m.case, m.dtype), {})
        passes.setdefault(m.what, {})[m.contender] = m
    everyone = [
        passes[what] for passes in rows.values() for what in sorted(passes, key=len)
    ]  # by length: forward, backward, forward+backward
    return [(ours, by_name) for by_name in everyone if (ours := best_of_ours(by_name.values()))]


def peer_label(name: str, record: Record) -> str:
    """The peer's name with the version that ran, where it has one of its own."""
    own = {"natten": "natten", "harmonics": "torch-harmonics"}
    package = own.get(name, "torch" if name in ("flex", "global") else None)
    version = record.setting["versions"].get(package, "").split("+")[0]
    if not version:
        return plots.LABELS[name]
    return plots.LABELS[name] + (f" {version}" if name in own else f", torch {version}")


def summary(attention: Sequence[Record], latency: Sequence[Record]) -> list[str]:
    """A table of how many times as long others take, and what one must know to read it."""
    head = ["instead of `sdwa`", "what is timed", "device", "times as long as with `sdwa`"]
    rows = table(head, [*_peer_rows(attention), *_network_rows(latency)])
    records = [*attention, *latency]
    machines = dict.fromkeys(record.setting["machine"] for record in records)
    days = [record.setting["date"][:10] for record in records]
    when = " to ".join(dict.fromkeys((min(days), max(days))))
    sentences = [f"{'; '.join(machines)}; {when}.", faster_peers(attention)]
    if any("natten" in r.setting["versions"] and not r.on_gpu for r in attention):
        sentences.append(NATTEN_ON_CPU)
    return [rows, " ".join(sentences)]


def _peer_rows(records: Iterable[Record]) -> list[list[str]]:
    """For each peer that computes the same: least and most times as long, over all shapes."""
    ratios: dict[tuple[str, str], dict[str, list[float]]] = {}
    for record in records:
        for ours, by_name in cases(record):
            for name in SAME_FUNCTION:
                if name in by_name:
                    shifted = plots.padding_mode(ours.details["shape"]) == "shifted"
                    label = peer_label(name, record) + (", shifted windows" if shifted else "")
                    passes = ratios.setdefault((label, _device(record)), {})
                    ratio = by_name[name].timing.p50_ms / ours.timing.p50_ms
                    passes.setdefault(ours.what, []).append(ratio)
    rows = []
    for (label, device), passes in ratios.items():
        what = max(passes, key=len)  # forward+backward where it was measured
        found = passes[what]
        times = f"{_times(min(found))} to {_times(max(found))}"
        rows.append([label, f"{what}, {len(found)} shapes", device, times])
    return rows


def _network_rows(records: Iterable[Record]) -> list[list[str]]:
    """The latency of the whole network with unfold, the longest times first."""
    rows = []
    for record in records:
        by_name = {m.contender: m for m in record.measurements}
        if {"dilated", "unfold"} <= by_name.keys():
            ms = {name: m.timing.p50_ms for name, m in by_name.items()}
            ratio = ms["unfold"] / ms["dilated"]
            times = f"{ratio:.2f}x ({ms['unfold']:.1f} / {ms['dilated']:.1f} ms)"
            what = f"latency, {by_name['dilated'].case}"
            rows.append((ratio, ["the whole network on unfold", what, _device(record), times]))
    return [row for _, row in sorted(rows, reverse=True)]


def faster_peers(records: Sequence[Record]) -> str:
    """A sentence that names every case in which a peer beats sdwa for the same result."""
    faster = [
        f"{plots.LABELS[name]} on {ours.case} ({ours.what}, {ours.dtype})"
        for record in records
        for ours, by_name in cases(record)
        for name in SAME_FUNCTION
        if name in by_name and by_name[name].timing.p50_ms < ours.timing.p50_ms
    ]
    return f"Faster than `sdwa` for the same result: {', '.join(faster) or 'none'}."


def attention_table(record: Record) -> str:
    """One row per shape and pass: sdwa's time and fraction of the copy, then the others."""
    bandwidth = record.setting["copy_bytes_per_second"]
    present = {m.contender for m in record.measurements}
    others = [n for n in (*SAME_FUNCTION, *OTHER_FUNCTION) if n in present]
    has_graphs = any("graph_p50_ms" in m.details for m in record.measurements)
    rows = []
    for ours, by_name in cases(record):
        fraction = f"{ours.per_second('fewest_bytes') / bandwidth:.2f}"
        cells = [_shape(ours), ours.what, _milliseconds(ours), fraction]
        if has_graphs:
            milliseconds = plots.without_launches(ours, record)
            moved = ours.details["fewest_bytes"] / (milliseconds / 1e3)
            cells += [_digits(milliseconds), f"{moved / bandwidth:.2f}"]
        for name in others:
            other = by_name.get(name)
            cells.append(_times(other.timing.p50_ms / ours.timing.p50_ms) if other else "")
        peaks = [_mebibytes(m) for m in (ours, by_name.get("reference")) if m is not None]
        rows.append([*cells, " / ".join(peaks)])
    labels = [peer_label(name, record) for name in others]
    head = ["shape", "pass", "`sdwa` ms", f"of copy ({bandwidth / 1e9:.1f} GB/s)"]
    if has_graphs:
        head += ["graph ms", "of copy"]
    return table([*head, *labels, "peak MiB"], rows)


def training_table(record: Record) -> str:
    """One row per network and measure."""
    rates = record.setting["matrix_operations_per_second"]
    rows = []
    for m in record.measurements:
        fraction = ""
        if "operations" in m.details:
            fraction = f"{m.per_second('operations') / rates[m.dtype]:.2f}"
        images = f"{m.details['images_per_second']:.1f}"
        cells = [m.case, m.contender, m.what, m.dtype, _milliseconds(m), images, fraction]
        rows.append([*cells, _mebibytes(m)])
    head = ["setting", "network", "measure", "precision", "ms", "images/s", "of matrix rate"]
    return table([*head, "peak MiB"], rows)


def latency_table(record: Record) -> str:
    """One row per kind of attention, with what it takes more than the dilated one."""
    rows = []
    for m in record.measurements:
        more = m.details["more_than_dilated_ms"]
        text = f"{more['median']:.2f} ({more['low']:.2f}..{more['high']:.2f})"
        rows.append([f"{m.case}, {m.contender}", _milliseconds(m), text])
    return table(["network", "ms", "more than dilated, ms (95 % interval)"], rows)


def overhead_table(record: Record) -> str:
    """One row per case, sdwa beside scaled_dot_product_attention."""
    times: dict[tuple[str, str], dict[str, str]] = {}
    for m in record.measurements:
        text = f"{m.timing.p50_ms * 1e3:.1f}, {m.details['fastest_us']:.1f}"
        times.setdefault((m.case, m.what), {})[m.contender] = text
    rows = [[*key, by_name["sdwa"], by_name["sdpa"]] for key, by_name in times.items()]
    return table(["heads x channels", "pass", "`sdwa`", "SDPA"], rows)


def prediction_table(record: Record) -> str:
    """One row per case and way."""
    rows = []
    for each in record.measurements:
        part = next(f"{v:.2f} of {k[3:]}" for k, v in each.details.items() if k.startswith("of_"))
        each_ms = each.timing.p50_ms / each.details["count"]
        low, high = each.timing.p20_ms, each.timing.p80_ms
        spread = f"{low / each.details['count']:.2f}..{high / each.details['count']:.2f}"
        rate = f"{each.details['per_second']:.1f} {each.what}s"
        rows.append([each.case, each.contender, f"{each_ms:.2f} ({spread})", rate, part])
    return table(["case", "", "ms each, p50 (p20..p80)", "a second", ""], rows)


def cpu_results(record: Record) -> str:
    """What the kernels were to reach and whether they did; a row per window and head dimension."""
    parts = ["\n".join(f"- {goal}" for goal in record.setting["goals"])]
    rates = record.setting.get("multiply_adds_per_second")
    if rates:
        arithmetic = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
        parts.append(
            f"Kernels: {record.setting['cpu_capability']}. Floor / time, forward / backward. The "
            "floor is the larger of the fewest bytes over the rate of a copy "
            f"({record.setting['copy_bytes_per_second'] / 1e9:.0f} GB/s) and, marked *, the "
            f"multiply-adds over that of a loop of independent ones ({arithmetic} G/s)."
        )
    fractions: dict[tuple[int, int], dict[str, list[str]]] = {}
    for m in record.measurements:
        if "fraction" in m.details:
            row = fractions.setdefault(
                (m.details["shape"]["kernel_size"], m.details["shape"]["head_dim"]), {}
            )
            mark = "*" if m.details.get("bound") == "arithmetic" else ""
            row.setdefault(m.dtype, []).append(f"{m.details['fraction']:.2f}{mark}")
    dtypes = [*dict.fromkeys(dtype for row in fractions.values() for dtype in row)]
    rows = [
        [f"{size} x {size}", str(head_dim), *(" / ".join(row[dtype]) for dtype in dtypes)]
        for (size, head_dim), row in fractions.items()
    ]
    if rows:
        parts.append(table(["window", "head dimension", *dtypes], rows))
    return "\n\n".join(filter(None, parts))


def threads_table(record: Record) -> str:
    """Goals, and one row per way of waiting, shape, contender and pass."""
    rows: dict[tuple[str, ...], list[Measurement]] = {}
    for m in record.measurements:
        shape, waiting, _ = m.case.split(", ", 2)
        rows.setdefault((waiting, shape, m.contender, m.what), []).append(m)
    cells = []
    for key, (one, two, beside) in rows.items():
        gain = f"{one.timing.p50_ms / two.timing.p50_ms:.2f}"
        slowdown = f"{beside.details['mean_ms'] / two.details['mean_ms']:.2f}"
        slowest = _digits(beside.details["slowest_ms"])
        cells.append([*key, _milliseconds(one), _milliseconds(two), gain, slowdown, slowest])
    head = ["waiting", "shape", "", "pass", "1 thread, ms", "2 threads, ms", "gain"]
    goals = "\n".join(f"- {goal}" for goal in record.setting["goals"])
    return f"{goals}\n\n{table([*head, 'two processes', 'slowest call, ms'], cells)}"


def _left_out(title: str, lines: Sequence[str]) -> list[str]:
    return ["\n".join([f"{title}:", "", *(f"- {line}" for line in lines)])] if lines else []


def _device(record: Record) -> str:
    return "GPU" if record.on_gpu else "CPU"


def _picture(name: str) -> str:
    *setting, plot = Path(name).stem.split("-")
    return f"![{plots.TITLES.get(plot, plot)}; {', '.join(setting)}]({name})"


def _shape(m: Measurement) -> str:
    s = m.details["shape"]
    size = f"{s['batch']} x {s['height']} x {s['width']}, {s['heads']} x {s['head_dim']}"
    parts = [size]
    if s["kernel_size"] != 3:
        parts.append(f"window {s['kernel_size']}")
    if {*s["dilation"]} != {1, 2, 3}:
        parts.append(f"dilation {' '.join(map(str, sorted({*s['dilation']})))}")
    if (mode := plots.padding_mode(s)) != "zeros":
        parts.append(mode)
    return f"{m.case} ({', '.join([*parts, m.dtype])})"


def _milliseconds(m: Measurement) -> str:
    """To three digits, with the spread."""
    t = m.timing
    if t.runs == 1:
        return f"{_digits(t.p50_ms)} (one run)"
    return f"{_digits(t.p50_ms)} ({_digits(t.p20_ms)}..{_digits(t.p80_ms)})"


def _digits(value: float) -> str:
    """To three digits, or to a whole number where that takes more."""
    return f"{value:.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")


def _mebibytes(m: Measurement) -> str:
    return "" if m.peak_bytes is None else _digits(m.peak_bytes / 2**20)


def _times(ratio: float) -> str:
    return f"{ratio:#.2g}x" if ratio < 9.95 else f"{ratio:.0f}x"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "benchmarks/results",
        help="folder of the files and of the page (benchmarks/results)",
    )
    parser.add_argument("--print", action="store_true", help="print the page, change nothing")
    arguments = parser.parse_args()
    text = page_of(arguments.results)
    if arguments.print:
        print(text, end="")
    else:
        (arguments.results / "README.md").write_text(text, "utf-8")


def page_of(folder: Path) -> str:
    """The page for a folder of results.

    Raises:
        UserError: there are none, or a file is something else.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"{folder} holds no .json file of results")
    pictures = sorted(path.name for path in folder.iterdir() if path.suffix in (".png", ".svg"))
    return page({path.name: Record.load(path) for path in files}, pictures)


if __name__ == "__main__":
    run_main(main)
