"""Learning curves and confusion matrices as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cfmrfn.metrics import Report

# Okabe-Ito colours, which colour-blind readers can tell apart
COLORS = {"train": "#0072B2", "val": "#E69F00", "test": "#009E73"}
NAMES = {"train": "training", "val": "set aside", "test": "held out"}


def plot_curves(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Loss, accuracy and learning rate against the epoch, from the rows of ``metrics.csv``."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for split, color in COLORS.items():
            column = f"{split}_{quantity}"
            if column in rows[0]:
                values = [row[column] for row in rows]
                axes.plot(epochs, values, ".-", color=color, label=NAMES[split])
        axes.set_ylabel(quantity)
    accuracy.set_ylim(0, 1)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    rate.plot(epochs, [row["lr"] for row in rows], ".-", color="0.3")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def plot_confusion(path: Path, report: Report, title: str) -> None:
    """Confusion matrix in percent of the true class, with the counts behind each row."""
    classes = len(report.class_names)
    counts = report.matrix.sum(1, keepdims=True)
    percent = 100 * report.matrix / np.maximum(counts, 1)
    figure = Figure(figsize=(1.6 + 0.75 * classes, 1.4 + 0.7 * classes), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(percent):
        color = "white" if value > 55 else "black" if value >= 0.5 else "0.7"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)
    axes.set_xticks(range(classes), report.class_names, rotation=40, ha="right")
    rows = zip(report.class_names, counts[:, 0], strict=True)
    axes.set_yticks(range(classes), [f"{name} ({count})" for name, count in rows])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (images)")
    axes.set_title(
        f"{title}\naccuracy {report.accuracy:.1%}, mean of classes "
        f"{report.mean_class_accuracy:.1%}",
        fontsize=10,
    )
    figure.colorbar(image, label="% of the true class", shrink=0.8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
