"""Rewrites the README's section on measured speed from the files in benchmarks/results.

The section stands between `<!-- benchmarks:begin -->` and `<!-- benchmarks:end -->`. Every table
says which command made it, on which machine, when, and from which commit.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.measure import Measurement, Record, UserError, run_main

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
OURS = ("cuda", "triton", "cpu")
SAME_FUNCTION = ("reference", "natten", "flex")
OTHER_FUNCTION = ("window", "global")


def section(records: Sequence[Record], pictures: Sequence[str]) -> str:
    """The whole section as Markdown.

    Args:
        records: of any benchmark; those that have no table here are left out.
        pictures: paths of plots, as the README is to name them.
    """
    parts = []
    attention = [r for r in records if r.benchmark == "attention"]
    if attention:
        parts.append(summary(attention))
        parts += [attention_table(record) for record in attention]
        parts += [f"![{Path(p).stem.replace('-', ' ')}]({p})" for p in pictures]
    training = [r for r in records if r.benchmark == "training"]
    parts += [training_table(record) for record in training]
    parts += [latency_table(record) for record in records if record.benchmark == "latency"]
    return "\n\n".join(parts)


def best_of_ours(rows: Sequence[Measurement]) -> Measurement | None:
    """The measurement of sdwa's default backend among rows of one case."""
    return next((m for name in OURS for m in rows if m.contender == name), None)


def cases(record: Record) -> list[list[Measurement]]:
    """Measurements of one shape, pass and dtype each, in the order of the file."""
    keys = dict.fromkeys((m.case, m.dtype, m.what) for m in record.measurements)
    return [
        [m for m in record.measurements if (m.case, m.dtype, m.what) == key]
        for key in sorted_(keys)
    ]


def sorted_(keys: dict[tuple[str, str, str], None]) -> list[tuple[str, str, str]]:
    """Passes of one shape one below the other, shapes as in the file."""
    order = list(dict.fromkeys(key[:2] for key in keys))
    return sorted(keys, key=lambda key: (order.index(key[:2]), len(key[2])))


def summary(records: Sequence[Record]) -> str:
    """How many times as long the peers take, least and most, and where one is faster."""
    ratios: dict[tuple[str, str], list[float]] = {}
    faster = []
    for rows in (rows for record in records for rows in cases(record)):
        ours = best_of_ours(rows)
        if ours is None:
            continue
        for m in rows:
            if m.contender in SAME_FUNCTION:
                ratio = m.timing.p50_ms / ours.timing.p50_ms
                ratios.setdefault((m.contender, m.what), []).append(ratio)
                if ratio < 1:
                    faster.append(f"{plots.LABELS[m.contender]} on {m.case} ({m.what}, {m.dtype})")
    lines = [
        "How many times as long as `sdwa` others take for the same result, over all shapes:",
        "",
    ]
    lines += ["| | pass | least | most | shapes |", "|---|---|---|---|---|"]
    for (name, what), found in sorted(ratios.items()):
        lines.append(
            f"| {plots.LABELS[name]} | {what} | {_times(min(found))} | {_times(max(found))} "
            f"| {len(found)} |"
        )
    lines += ["", f"Faster than `sdwa`: {', '.join(faster) if faster else 'none'}."]
    return "\n".join(lines)


def attention_table(record: Record) -> str:
    """One row for each shape and pass: sdwa's time and fraction of the copy, then the others."""
    bandwidth = record.setting["copy_bytes_per_second"]
    present = {m.contender for m in record.measurements}
    others = [n for n in (*SAME_FUNCTION, *OTHER_FUNCTION) if n in present]
    head = ["shape", "pass", "`sdwa` ms", "of copy", *(plots.LABELS[n] for n in others), "peak MiB"]
    lines = [_source(record), "", _row(head), _row(["---"] * len(head))]
    for rows in cases(record):
        ours = best_of_ours(rows)
        if ours is None:
            continue
        by_name = {m.contender: m for m in rows}
        fraction = ours.details["fewest_bytes"] / (ours.timing.p50_ms / 1e3) / bandwidth
        cells = [_shape(ours), ours.what, _milliseconds(ours), f"{fraction:.2f}"]
        for name in others:
            other = by_name.get(name)
            ratio = other.timing.p50_ms / ours.timing.p50_ms if other else None
            cells.append("" if ratio is None else _times(ratio))
        peaks = [_mebibytes(m) for m in (ours, by_name.get("reference")) if m is not None]
        cells.append(" / ".join(peaks))
        lines.append(_row(cells))
    lines += [
        "",
        f"ms: median of the `{_name_of_ours(record)}` backend (20th to 80th percentile). Of copy: "
        "the fewest bytes the operator must move, over its time, over the bandwidth of a large "
        f"copy in the same run, {bandwidth / 1e9:.1f} GB/s; above 1 the data lay in a cache. "
        "Others: times as long as `sdwa`. Peak: memory beyond the inputs, `sdwa` / unfold.",
    ]
    if record.left_out:
        lines += ["", "Left out: " + "; ".join(record.left_out) + "."]
    return "\n".join(lines)


def training_table(record: Record) -> str:
    """One row for each network and measure."""
    rates = record.setting["matrix_operations_per_second"]
    head = ["setting", "network", "measure", "precision", "ms", "images/s", "of matrix rate"]
    head.append("peak MiB")
    lines = [_source(record), "", _row(head), _row(["---"] * len(head))]
    for m in record.measurements:
        fraction = ""
        if "operations" in m.details:
            rate = m.details["operations"] / (m.timing.p50_ms / 1e3)
            fraction = f"{rate / rates[m.dtype]:.2f}"
        images = f"{m.details['images_per_second']:.1f}"
        cells = [m.case, m.contender, m.what, m.dtype, _milliseconds(m), images, fraction]
        lines.append(_row([*cells, _mebibytes(m)]))
    lines += [
        "",
        "Latency is of one image. Of matrix rate: counted operations over the time over the rate "
        "of a large matrix product in the same run. Peak: memory beyond weights, optimizer state "
        "and images. Weights are random.",
    ]
    if record.left_out:
        lines += ["", "Left out: " + "; ".join(record.left_out) + "."]
    return "\n".join(lines)


def latency_table(record: Record) -> str:
    """One row for each kind of attention, with what it takes more than the dilated one."""
    lines = [_source(record), ""]
    lines += [_row(["network", "ms", "more than dilated, ms (95 %)"]), _row(["---"] * 3)]
    for m in record.measurements:
        more = m.details["more_than_dilated_ms"]
        text = f"{more['median']:.2f} ({more['low']:.2f}..{more['high']:.2f})"
        lines.append(_row([f"{m.case}, {m.contender}", _milliseconds(m), text]))
    lines += [
        "",
        'Calls alternate and differences are taken within a round. "unfold" is the dilated network '
        "on the reference backend.",
    ]
    return "\n".join(lines)


def _source(record: Record) -> str:
    setting = record.setting
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    return (
        f"`{setting['command']}`  \n{setting['machine']}; {setting['date']}; "
        f"commit {setting['commit']}; {versions}"
    )


def _name_of_ours(record: Record) -> str:
    present = {m.contender for m in record.measurements}
    return next((name for name in OURS if name in present), "reference")


def _shape(m: Measurement) -> str:
    s = m.details["shape"]
    size = f"{s['batch']} x {s['height']} x {s['width']}, {s['heads']} x {s['head_dim']}"
    window = "" if s["kernel_size"] == 3 else f", window {s['kernel_size']}"
    return f"{m.case} ({size}{window}, {m.dtype})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _milliseconds(m: Measurement) -> str:
    """To three digits, with the spread."""
    t = m.timing
    return f"{t.p50_ms:.3g} ({t.p20_ms:.3g}..{t.p80_ms:.3g})" if t.runs > 1 else f"{t.p50_ms:.4g}"


def _mebibytes(m: Measurement) -> str:
    return "" if m.peak_bytes is None else f"{m.peak_bytes / 2**20:.3g}"


def _times(ratio: float) -> str:
    return f"{ratio:.2g}x" if ratio < 10 else f"{ratio:.0f}x"


def rewrite(readme: Path, text: str) -> None:
    """Puts the text between the markers.

    Raises:
        UserError: the file cannot be read, or does not hold both markers, in order.
    """
    try:
        old = readme.read_text("utf-8")
    except OSError as error:
        raise UserError(f"{readme} cannot be read: {error}") from error
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{readme} must hold the lines {BEGIN} and {END}")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results"), help="folder (%(default)s)"
    )
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="(%(default)s)")
    parser.add_argument("--print", action="store_true", help="print the section, change nothing")
    arguments = parser.parse_args()
    files = sorted(arguments.results.glob("*.json"))
    if not files:
        raise UserError(f"{arguments.results} holds no .json file of results")
    records = [Record.load(path) for path in files]
    pictures = [
        os.path.relpath(path, arguments.readme.parent)
        for path in sorted(arguments.results.glob("*.png"))
    ]
    text = section(records, pictures)
    if arguments.print:
        print(text)
    else:
        rewrite(arguments.readme, text)


if __name__ == "__main__":
    run_main(main)
