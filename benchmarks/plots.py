"""Plots of files of attention results: peers beside sdwa, speed over map and kernel size, roofline.

python -m benchmarks.plots FILE... [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.command_line import run_main
from benchmarks.record import Measurement, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Plot = Callable[[Axes, Sequence[Measurement], Record, str], bool]

GREY = "#737b86"  # legible on white and on GitHub's dark background
RC = {  # for every plot
    "font.size": 10,
    "axes.titlesize": 11,
    "figure.titlesize": 9,
    "legend.frameon": False,
    "svg.hashsalt": "sdwa",  # names in the file do not change from run to run
    **dict.fromkeys(("text.color", "xtick.color", "ytick.color", "grid.color"), GREY),
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor"), GREY),
}
OVERVIEW = "peers"
TITLES = {
    OVERVIEW: "Times as long as sdwa over the side of the map; dashed: another function",
    "copy": "Fraction of the copy bandwidth over the side of the map",
    "maps": "Nanoseconds per pixel over the side of the map",
    "kernels": "Milliseconds over the kernel size",
    "roofline": "Operations per second over operations per byte",
}
PASSES = ("forward", "forward+backward")
SINGLE_PASSES = ("forward", "backward")
OURS = ("cuda", "triton", "cpu")
# Colours that most colour-blind readers tell apart (Okabe and Ito's), one per contender.
MARKS = {
    "cuda": ("#0072b2", "o"),
    "triton": ("#56b4e9", "s"),
    "cpu": ("#0072b2", "o"),
    "reference": ("#d55e00", "v"),
    "natten": ("#009e73", "^"),
    "flex": ("#cc79a7", "D"),
    "harmonics": ("#7570b3", "*"),
    "window": ("#999999", "P"),
    "global": ("#e69f00", "X"),
    "copy": (GREY, "_"),
}
LABELS = {
    "cuda": "sdwa, cuda",
    "triton": "sdwa, triton",
    "cpu": "sdwa, cpu",
    "reference": "unfold",
    "natten": "NATTEN",
    "flex": "FlexAttention",
    "harmonics": "torch-harmonics",
    "window": "sdwa, dilation 1",
    "global": "global (SDPA)",
    "copy": "copy of the fewest bytes",
}


def draw(record: Record, folder: Path) -> list[Path]:
    """Draws every plot that the record has data for, without a background.

    Returns:
        The files written: `FOLDER/DEVICE-DTYPE-{peers,copy,maps,kernels,roofline}.svg`.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    device = "gpu" if record.on_gpu else "cpu"
    plots = {
        OVERVIEW: (_over_sdwa, PASSES),
        "copy": (_of_copy, SINGLE_PASSES),
        "maps": (_over_maps, PASSES),
        "kernels": (_over_kernels, PASSES),
        "roofline": (_roofline, PASSES),
    }
    paths = []
    for dtype in dict.fromkeys(m.dtype for m in record.measurements):
        for name, (plot, passes) in plots.items():
            path = folder / f"{device}-{dtype}-{name}.svg"
            with matplotlib.rc_context(RC):
                if _draw_panels(plot, passes, TITLES[name], record, dtype, path):
                    paths.append(path)
    return paths


def _draw_panels(
    plot: Plot, passes: Sequence[str], title: str, record: Record, dtype: str, path: Path
) -> bool:
    """Draws one panel per pass into a file, unless one of them has no data."""
    from matplotlib import pyplot

    rows = [m for m in record.measurements if m.dtype == dtype and "shape" in m.details]
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 4.6), sharey=True)
    drawn = []
    for axis, what in zip(axes, passes, strict=True):
        drawn.append(plot(axis, [m for m in rows if m.what == what], record, dtype))
        axis.set_title(what.replace("+", " + "))
        axis.grid(True, which="major", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_ylabel("")
    if all(drawn):
        handles = _legend(axes)
        columns = len(handles) if len(handles) <= 5 else 4
        figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=columns)
        figure.suptitle(f"{title}\n{_caption(record, dtype)}")
        legend_lines = math.ceil(len(handles) / columns)
        figure.tight_layout(rect=(0, 0.01 + 0.05 * legend_lines, 1, 1))
        figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    return all(drawn)


def _legend(axes: Iterable[Axes]) -> dict[str, Any]:
    """Label -> handle, in the order of `MARKS`."""
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    order = [*LABELS.values()]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def _caption(record: Record, dtype: str) -> str:
    setting = record.setting
    versions = ", ".join(
        f"{LABELS.get(name, name)} {setting['versions'][name].split('+')[0]}"
        for name in ("torch", "natten", "torch-harmonics")
        if name in setting["versions"]
    )
    machine = setting["machine"].replace("; ", ";\n")  # a GPU, and its host
    return f"{dtype}, {machine}; {versions}\ncommit {setting['commit']}, {setting['date']}"


def _over_sdwa(axis: Axes, rows: Sequence[Measurement], record: Record, dtype: str) -> bool:
    """Times as long as sdwa over the side of the map."""
    ours = {}
    compared = {}
    for side, of_side in _by_side(rows).items():
        by_name = {m.contender: m for m in of_side}
        if name := next((name for name in OURS if name in by_name), None):
            ours[side] = by_name[name]
            others = (name, "reference", "natten", "flex", "harmonics", "global")
            compared[side] = [m for m in of_side if m.contender in others]

    def point(m: Measurement) -> tuple[int, float]:
        side = m.details["shape"]["height"]
        return side, m.timing.p50_ms / ours[side].timing.p50_ms

    _lines(axis, compared, point)
    axis.set(xscale="log", yscale="log", ylabel="times as long as sdwa")
    axis.set_xlabel("side of the map" + _heads(compared))
    axis.set_xticks(list(compared), [str(side) for side in compared])
    axis.minorticks_off()
    ticks = [10**power for power in range(5)]
    axis.set_yticks(ticks, [f"{tick:,}x" for tick in ticks])
    return len(compared) > 1


def _of_copy(axis: Axes, rows: Sequence[Measurement], record: Record, dtype: str) -> bool:
    """The fewest bytes over the time, over the copy bandwidth, over the side of the map."""
    bandwidth = record.setting["copy_bytes_per_second"]
    names = (*OURS, "copy")
    by_side = _by_side(m for m in rows if m.contender in names and "fewest_bytes" in m.details)

    def point(m: Measurement) -> tuple[int, float]:
        fraction = m.details["fewest_bytes"] / (without_launches(m, record) / 1e3) / bandwidth
        return m.details["shape"]["height"], fraction

    _lines(axis, by_side, point)
    axis.set(xscale="log", ylabel="fraction of the copy bandwidth")
    highest = max((point(m)[1] for group in by_side.values() for m in group), default=1)
    axis.set_ylim(0, max(axis.get_ylim()[1], 1.05 * highest))  # the panels share it
    axis.set_xlabel("side of the map" + _heads(by_side))
    axis.set_xticks(list(by_side), [str(side) for side in by_side])
    axis.minorticks_off()
    return len(by_side) > 1


def without_launches(m: Measurement, record: Record) -> float:
    """Milliseconds in a CUDA graph where they are known, as launches outlast work on small maps.

    A backward pass is captured with its forward pass, whose time is subtracted.
    """

    def graph_ms(what: str) -> float | None:
        found = record.find((m.case, m.contender, what, m.dtype))
        return None if found is None else found.details.get("graph_p50_ms")

    if m.what == "backward":
        both, forward = graph_ms("forward+backward"), graph_ms("forward")
        return m.timing.p50_ms if both is None or forward is None else both - forward
    return graph_ms(m.what) or m.timing.p50_ms


def padding_mode(shape: Mapping[str, Any]) -> str:
    """Of a shape in a file; older files hold none, as they are all of one."""
    return shape.get("padding_mode", "zeros")


def _by_side(rows: Iterable[Measurement]) -> dict[int, list[Measurement]]:
    """The largest group of square maps alike but for side and batch, by side.

    Batches fall with the side, so that the data is of one size; of several, the largest counts.
    """
    square = [m for m in rows if m.details["shape"]["height"] == m.details["shape"]["width"]]
    by_side = _largest_family(square, "height", ("heads", "head_dim", "dilation", "kernel_size"))
    for side, of_side in by_side.items():
        batch = max(m.details["shape"]["batch"] for m in of_side)
        by_side[side] = [m for m in of_side if m.details["shape"]["batch"] == batch]
    return by_side


def _by_kernel_size(rows: Iterable[Measurement]) -> dict[int, list[Measurement]]:
    """The largest group of shapes alike but for the kernel size, by it."""
    alike = ("batch", "height", "width", "heads", "head_dim", "dilation")
    return _largest_family(rows, "kernel_size", alike)


def _largest_family(
    rows: Iterable[Measurement], by: str, alike: Sequence[str]
) -> dict[int, list[Measurement]]:
    """Among groups of rows whose shapes are `alike`, that with the most values of `by`; sorted."""
    families: dict[str, dict[int, list[Measurement]]] = {}
    for m in rows:
        shape = m.details["shape"]
        key = [padding_mode(shape), *(shape[field] for field in alike)]
        family = families.setdefault(str(key), {})
        family.setdefault(shape[by], []).append(m)
    return dict(sorted(max(families.values(), key=len, default={}).items()))


def _heads(groups: Mapping[int, Sequence[Measurement]]) -> str:
    """What the shapes of a plot share, for its axis."""
    shape = next((rows[0].details["shape"] for rows in groups.values()), None)
    return f" ({shape['heads']} heads of {shape['head_dim']})" if shape else ""


def _over_maps(axis: Axes, rows: Sequence[Measurement], record: Record, dtype: str) -> bool:
    """Nanoseconds per pixel (all heads) over the side of the map."""

    def point(m: Measurement) -> tuple[int, float]:
        shape = m.details["shape"]
        pixels = shape["batch"] * shape["height"] * shape["width"]
        return shape["height"], m.timing.p50_ms * 1e6 / pixels

    by_side = _by_side(rows)
    _lines(axis, by_side, point)
    axis.set(xscale="log", yscale="log", ylabel="nanoseconds per pixel")
    axis.set_xlabel("side of the map" + _heads(by_side))
    axis.set_xticks(list(by_side), [str(side) for side in by_side])
    axis.minorticks_off()
    return len(by_side) > 1


def _over_kernels(axis: Axes, rows: Sequence[Measurement], record: Record, dtype: str) -> bool:
    """Milliseconds over the kernel size."""
    by_size = _by_kernel_size(rows)
    _lines(axis, by_size, lambda m: (m.details["shape"]["kernel_size"], m.timing.p50_ms))
    axis.set(yscale="log", xlabel="kernel size" + _heads(by_size), ylabel="milliseconds")
    axis.set_xticks(list(by_size))
    return len(by_size) > 1


def _lines(
    axis: Axes,
    groups: Mapping[int, Sequence[Measurement]],
    point: Callable[[Measurement], tuple[int, float]],
) -> None:
    """A line per contender."""
    for name, (color, marker) in MARKS.items():
        points = [point(m) for rows in groups.values() for m in rows if m.contender == name]
        if points:
            style = "--" if name in ("copy", "window", "global") else "-"
            axis.plot(
                *zip(*points, strict=True), style, color=color, marker=marker, label=LABELS[name]
            )


def _roofline(axis: Axes, rows: Sequence[Measurement], record: Record, dtype: str) -> bool:
    """Operations per second over operations per byte, under two roofs measured in the same run.

    Operations and bytes are the fewest that the operator takes, for every contender: the height
    over the same intensity compares times.
    """
    bandwidth = record.setting["copy_bytes_per_second"]
    peak = record.setting["matrix_operations_per_second"][dtype]
    rows = [
        m for m in rows if "operations" in m.details and m.contender not in ("window", "global")
    ]
    if not rows:
        return False

    def point(m: Measurement) -> tuple[float, float]:
        intensity = m.details["operations"] / m.details["fewest_bytes"]
        return intensity, m.per_second("operations") / 1e9

    for name, (color, marker) in MARKS.items():
        points = [point(m) for m in rows if m.contender == name]
        if points:
            axis.scatter(
                *zip(*points, strict=True),
                color=color,
                marker=marker,
                alpha=0.8,
                label=LABELS[name],
            )
    low = min(point(m)[0] for m in rows) / 1.5
    high = max(max(point(m)[0] for m in rows), peak / bandwidth) * 1.5
    ridge = peak / bandwidth
    line = [low, ridge, high] if low < ridge else [low, high]
    axis.plot(line, [min(peak, x * bandwidth) / 1e9 for x in line], color=GREY, linewidth=1)
    axis.text(
        0.02,
        0.98,
        f"roof: copy {bandwidth / 1e9:,.0f} GB/s,\nmatrix product {peak / 1e9:,.0f} GFLOP/s",
        transform=axis.transAxes,
        va="top",
        fontsize=8,
        color=GREY,
    )
    axis.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s")
    axis.set_ylim(top=6 * peak / 1e9)
    ticks = [step * 10**power for power in range(4) for step in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.xaxis.minorticks_off()
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="attention results")
    parser.add_argument(
        "--folder", type=Path, default=Path("benchmarks/results"), help="(%(default)s)"
    )
    arguments = parser.parse_args()
    for path in draw(merged([Record.load(path) for path in arguments.files]), arguments.folder):
        print(f"drawn: {path}")


def merged(records: Sequence[Record]) -> Record:
    """One record of several of the same machine, such as one per shape set."""
    # what several files hold is taken from the first
    unique = {m.key: m for record in reversed(records) for m in record.measurements}
    keys = dict.fromkeys(m.key for record in records for m in record.measurements)
    measurements = [unique[key] for key in keys]
    dates = sorted({record.setting["date"] for record in records})
    date = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    rates: dict[str, float] = {}
    for record in records:
        rates |= record.setting["matrix_operations_per_second"]
    setting = {**records[0].setting, "date": date, "matrix_operations_per_second": rates}
    return Record(records[0].benchmark, setting, measurements)


if __name__ == "__main__":
    run_main(main)
