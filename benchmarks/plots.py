"""Plots of a file of attention results: speed over map size, and the roofline.

`python -m benchmarks.plots FILE... [--folder FOLDER]`
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Measurement, Record, run_main

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that most colour-blind readers tell apart; one for each contender, alike in all plots.
STYLES = {
    "cuda": ("#0072b2", "o"),
    "triton": ("#56b4e9", "s"),
    "cpu": ("#0072b2", "o"),
    "reference": ("#d55e00", "v"),
    "natten": ("#009e73", "^"),
    "flex": ("#cc79a7", "D"),
    "window": ("#999999", "P"),
    "global": ("#e69f00", "X"),
    "copy": ("#000000", "_"),
}
LABELS = {
    "cuda": "sdwa, cuda",
    "triton": "sdwa, triton",
    "cpu": "sdwa, cpu",
    "reference": "unfold",
    "natten": "NATTEN",
    "flex": "FlexAttention",
    "window": "sdwa, dilation 1",
    "global": "global (SDPA)",
    "copy": "copy of the fewest bytes",
}


def draw(record: Record, folder: Path) -> list[Path]:
    """Draws every plot that the record has data for.

    Returns:
        The files written: `FOLDER/DEVICE-DTYPE-{maps,kernels,roofline}.png`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    device = "gpu" if "(sm_" in record.setting["machine"] else "cpu"
    paths = []
    for dtype in dict.fromkeys(m.dtype for m in record.measurements):
        rows = [m for m in record.measurements if m.dtype == dtype and "shape" in m.details]
        plots = {"maps": _over_maps, "kernels": _over_kernels, "roofline": _roofline}
        for name, plot in plots.items():
            figure, axes = pyplot.subplots(1, 2, figsize=(10, 5.2), sharey=True)
            passes = ("forward", "forward+backward")
            drawn = [
                plot(axis, [m for m in rows if m.what == what], record, dtype)
                for axis, what in zip(axes, passes, strict=True)
            ]
            if all(drawn):
                for axis, what in zip(axes, passes, strict=True):
                    axis.set_title(what.replace("+", " + "), fontsize=11)
                    axis.grid(True, which="major", alpha=0.25)
                    axis.spines[["top", "right"]].set_visible(False)
                axes[1].set_ylabel("")
                handles = _legend(axes)
                figure.legend(
                    handles.values(),
                    handles.keys(),
                    loc="lower center",
                    ncols=min(4, len(handles)),
                    frameon=False,
                )
                figure.suptitle(_caption(record, dtype), fontsize=9, color="#555555")
                figure.tight_layout(rect=(0, 0.11, 1, 1))
                paths.append(folder / f"{device}-{dtype}-{name}.png")
                figure.savefig(paths[-1], dpi=110)
            pyplot.close(figure)
    return paths


def _legend(axes: Iterable[Axes]) -> dict[str, Any]:
    """Label -> handle, in the order of `STYLES`."""
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    order = [*LABELS.values()]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def _caption(record: Record, dtype: str) -> str:
    setting = record.setting
    return f"{dtype}, {setting['machine']}, commit {setting['commit']}, {setting['date']}"


def _over_maps(axis: Axes, rows: Sequence[Measurement], record: Record, dtype: str) -> bool:
    """Nanoseconds a pixel (all heads) over the side of the map."""
    rows = [m for m in rows if m.case.startswith("map")]

    def point(m: Measurement) -> tuple[float, float]:
        shape = m.details["shape"]
        pixels = shape["batch"] * shape["height"] * shape["width"]
        return shape["height"], m.timing.p50_ms * 1e6 / pixels

    sides = _lines(axis, rows, point)
    axis.set(xscale="log", yscale="log", xlabel="side of the map", ylabel="nanoseconds a pixel")
    axis.set_xticks(sides, [str(side) for side in sides])
    axis.minorticks_off()
    return len(sides) > 1


def _over_kernels(axis: Axes, rows: Sequence[Measurement], record: Record, dtype: str) -> bool:
    """Milliseconds over the kernel size."""
    rows = [m for m in rows if m.case.startswith("kernel")]

    def point(m: Measurement) -> tuple[float, float]:
        return m.details["shape"]["kernel_size"], m.timing.p50_ms

    sizes = _lines(axis, rows, point)
    axis.set(yscale="log", xlabel="kernel size", ylabel="milliseconds")
    axis.set_xticks(sizes)
    return len(sizes) > 1


def _lines(axis: Axes, rows: Sequence[Measurement], point: Any) -> list[Any]:
    """A line for each contender; returns the positions on the horizontal axis."""
    for name, (color, marker) in STYLES.items():
        points = sorted(point(m) for m in rows if m.contender == name)
        if points:
            style = "--" if name in ("copy", "window", "global") else "-"
            axis.plot(
                *zip(*points, strict=True), style, color=color, marker=marker, label=LABELS[name]
            )
    return sorted({point(m)[0] for m in rows})


def _roofline(axis: Axes, rows: Sequence[Measurement], record: Record, dtype: str) -> bool:
    """Operations a second over operations a byte, under the two roofs measured in the same run.

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
        operations = m.details["operations"]
        return operations / m.details["fewest_bytes"], operations / m.timing.p50_ms / 1e6

    for name, (color, marker) in STYLES.items():
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
    axis.plot(line, [min(peak, x * bandwidth) / 1e9 for x in line], color="#444444", linewidth=1)
    axis.text(
        0.02,
        0.98,
        f"roof: copy {bandwidth / 1e9:,.0f} GB/s,\nmatrix product {peak / 1e9:,.0f} GFLOP/s",
        transform=axis.transAxes,
        va="top",
        fontsize=8,
        color="#444444",
    )
    axis.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    axis.set_ylim(top=3 * peak / 1e9)
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
    """One record of several of the same machine, such as one for each shape set."""
    measurements = [m for record in records for m in record.measurements]
    return Record(records[0].benchmark, records[0].setting, measurements)


if __name__ == "__main__":
    run_main(main)
