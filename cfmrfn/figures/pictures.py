"""Learning curves, confusion matrices, reliability, maps on faces and t-SNE as PNG."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw

from cfmrfn.figures.fonts import Letters, families, legible
from cfmrfn.metrics import Calibration, Report

# Okabe-Ito colours, which colour-blind readers can tell apart
COLORS = {"train": "#0072B2", "val": "#E69F00", "test": "#009E73"}
CLASS_COLORS = [*COLORS.values(), "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000"]
# with more classes than colours, colours come again in another shape
CLASS_MARKERS = "o^sDvP*X"
MOST_CELLS = 30  # classes up to which the cells of a confusion matrix hold their numbers
MOST_LETTERS = 32  # of the name of a class beside a confusion matrix
NAMES = {"train": "training", "val": "validation", "test": "held out"}


@contextmanager
def _default_style() -> Iterator[None]:
    """Within it, and in a function that it decorates, a user's settings of matplotlib are none."""
    with matplotlib.style.context("default"):
        yield


@_default_style()
def plot_curves(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Loss, accuracy and learning rate against the epoch, from the rows of `metrics.csv`."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for split, color in COLORS.items():
            column = f"{split}_{quantity}"
            if column in rows[0]:
                values = [row[column] for row in rows]
                axes.plot(epochs, values, ".-", color=color, label=NAMES[split], clip_on=False)
        axes.set_ylabel(quantity)
    accuracy.set_ylim(0, 1)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    rates = [row["lr"] for row in rows]
    rate.plot(epochs, rates, ".-", color="0.3", clip_on=False)
    rate.set_ylabel("learning rate")
    rate.set_ylim(0, 1.1 * max(rates) or 1)
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def plot_batch(path: Path, images: np.ndarray, captions: Sequence[str]) -> None:
    """A contact sheet of images (images, height, width, 3), uint8, each over its caption.

    A caption is as long as its image is wide; its end is left out where it is longer.
    """
    height, width = images.shape[1:3]
    columns = max(1, math.ceil(math.sqrt(len(images) * height / width)))
    letters, line, gap = Letters(10), 14, 4
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap), rows * (height + line + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * (width + gap), index // columns * (height + line + gap)
        sheet.paste(Image.fromarray(image), (left, top))
        text = letters.elided(legible(caption), width)
        letters.write(pen, (left, top + height + line / 2), text, "black")
    sheet.save(path, compress_level=1)


@_default_style()
def plot_confusion(path: Path, report: Report, title: str) -> None:
    """Confusion matrix in percent of the true class, with the counts behind each row.

    The row of a class without images is grey.
    """
    classes = len(report.class_names)
    counts = report.matrix.sum(1, keepdims=True)
    percent = np.ma.masked_array(100 * report.matrix / np.maximum(counts, 1))
    percent[counts[:, 0] == 0] = np.ma.masked
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.9")
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    if classes <= MOST_CELLS:
        for (row, column), value in np.ma.ndenumerate(percent):
            color = "white" if value > 55 else "black" if value >= 0.5 else "0.7"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)
    names = _shortened(report.class_names)
    axes.set_xticks(range(classes), names, rotation=40, ha="right", rotation_mode="anchor")
    rows = zip(names, counts[:, 0], strict=True)
    axes.set_yticks(range(classes), [f"{name} ({count})" for name, count in rows])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (images)")
    # a share of the width would leave its label no room where the matrix is large
    figure.colorbar(image, label="% of the true class", shrink=0.8, fraction=0.03, aspect=30)
    cell = 0.7 if classes <= MOST_CELLS else min(0.3, 40 / classes)  # inches
    beside = max(_inches(label)[0] for label in axes.get_yticklabels())
    below = max(_inches(label)[1] for label in axes.get_xticklabels())
    figure.set_size_inches(
        1.4 + beside + (cell + 0.05) * classes, 1 + below + cell * max(classes, 3)
    )
    _set_title(
        figure,
        f"{title}\naccuracy {report.accuracy:.1%}, mean of classes "
        f"{report.mean_class_accuracy:.1%}",
    )
    # the layout of matplotlib before 3.11 leaves long names too little room
    _save(figure, path, bbox_inches="tight")


@_default_style()
def plot_reliability(path: Path, calibration: Calibration, title: str) -> None:
    """Reliability diagram (Guo et al. 2017): accuracy against confidence, and images per bin."""
    bins = len(calibration.counts)
    edges = np.linspace(0, 1, bins + 1)
    filled = calibration.counts > 0
    left, width = edges[:-1][filled], 1 / bins
    accuracy, confidence = calibration.accuracy[filled], calibration.confidence[filled]
    figure = Figure(figsize=(5.5, 6.2), layout="constrained")
    above, below = figure.subplots(2, height_ratios=(3, 1), sharex=True)
    bars: dict[str, Any] = {"width": width, "align": "edge"}
    above.bar(left, accuracy, color=COLORS["train"], edgecolor="white", label="accuracy", **bars)
    above.bar(
        left,
        confidence - accuracy,
        bottom=accuracy,
        color="none",
        edgecolor="#D55E00",
        hatch="////",
        linewidth=0.8,
        label="gap to the mean confidence",
        **bars,
    )
    above.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="calibrated")
    above.set_ylim(0, 1.01)
    above.set_ylabel("accuracy")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    below.bar(edges[:-1], calibration.counts, color="0.6", edgecolor="white", **bars)
    for place, count in zip(edges[:-1] + width / 2, calibration.counts, strict=True):
        below.annotate(
            str(count), (place, count), (0, 2), textcoords="offset points", ha="center", fontsize=6
        )
    below.set_ylim(0, 1.2 * calibration.counts.max())
    below.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    below.set_xlim(0, 1)
    below.set_ylabel("images")
    below.set_xlabel(f"confidence: probability of the prediction, {bins} bins")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    _set_title(
        figure,
        f"{title}\nECE {calibration.ece:.4f}, accuracy {calibration.mean_accuracy:.1%}, "
        f"mean confidence {calibration.mean_confidence:.1%}",
    )
    _save(figure, path)


@dataclass(frozen=True)
class FaceMaps:
    """A face and what the network makes of it.

    Attributes:
        title: lines of it, such as its file, its true class, and the predicted one.
        face: (height, width, 3), RGB in 0..1.
        landmarks: (68, 2), x and y in pixels of the face; None: there are none to show.
        attention: by stream, (heads, rows, columns), weights of the places.
        evidence: by stream, (rows, columns), for the predicted class.
    """

    title: tuple[str, ...]
    face: np.ndarray
    landmarks: np.ndarray | None
    attention: Mapping[str, np.ndarray]
    evidence: Mapping[str, np.ndarray]


@_default_style()
def plot_faces(path: Path, faces: Sequence[FaceMaps], title: str) -> None:
    """One row per face: the face, its landmarks, and each stream's attention and evidence.

    Colours mean the same throughout a column, and in both columns of evidence.

    Args:
        path: of the PNG.
        faces: all with the same streams.
        title: of the figure.
    """
    with_landmarks = faces[0].landmarks is not None
    streams = list(faces[0].attention)
    width = 1 + with_landmarks + 2 * len(streams)
    figure = Figure(figsize=(1 + 1.7 * width, 1.3 + 1.75 * len(faces)), layout="constrained")
    _set_title(figure, title)
    grid = figure.subplots(len(faces), width, squeeze=False)
    # of each line, those of all faces: what differs in them stays different
    lines = [_shortened(line, 26) for line in zip(*(face.title for face in faces), strict=True)]
    for face, words, axes in zip(faces, zip(*lines, strict=True), grid, strict=True):
        for one in axes:
            _show_face(one, face)
        axes[0].set_ylabel("\n".join(words), fontsize=7)
        if face.landmarks is not None:
            axes[1].plot(*face.landmarks.T, ".", markersize=2.5, color="#00E0FF")
    grid[0, 0].set_title("face", fontsize=8)
    if with_landmarks:
        grid[0, 1].set_title("landmarks", fontsize=8)

    def overlay(column: int, maps: list[np.ndarray], heading: str, **style: Any) -> None:
        for axes, values in zip(grid[:, column], maps, strict=True):
            _show_map(axes, values, alpha=0.6, interpolation="bilinear", **style)
        grid[0, column].set_title(heading, fontsize=8)
        scale = ScalarMappable(style["norm"], style["cmap"])
        below = grid[-1, column].inset_axes((0, -0.1, 1, 0.05))  # takes no room from the column
        figure.colorbar(scale, cax=below, orientation="horizontal")
        below.tick_params(labelsize=6)

    most = max((np.abs(maps).max() for face in faces for maps in face.evidence.values()), default=0)
    for index, stream in enumerate(streams, 1 + with_landmarks):
        attention = [face.attention[stream].mean(0) for face in faces]
        norm = Normalize(np.min(attention), np.max(attention))
        overlay(index, attention, f"attention,\n{stream} stream", norm=norm, cmap="inferno")
        evidence = [face.evidence[stream] for face in faces]
        norm = Normalize(-most, most)
        heading = f"evidence,\n{stream} stream"
        overlay(index + len(streams), evidence, heading, norm=norm, cmap="RdBu_r")
    _save(figure, path)


@_default_style()
def plot_heads(
    path: Path,
    face: FaceMaps,
    title: str,
    dilations: Sequence[int] | None,
    token: tuple[int, int] | None = None,
) -> None:
    """Attention of each head on one face: one row per stream, one column per head.

    Weights of zero, as outside of a window, leave the face uncovered.

    Args:
        path: of the PNG.
        face: its attention is shown.
        title: of the figure, over that of the face.
        dilations: one per head. None: global attention.
        token: row and column of the query, which is outlined. None: all queries.
    """
    heads = len(next(iter(face.attention.values())))
    figure = Figure(figsize=(1 + 1.5 * heads, 1 + 1.7 * len(face.attention)), layout="constrained")
    _set_title(figure, f"{title}\n{', '.join(face.title)}")
    grid = figure.subplots(len(face.attention), heads, squeeze=False)
    norm = Normalize(0, max(maps.max() for maps in face.attention.values()))
    for row, (stream, maps) in zip(grid, face.attention.items(), strict=True):
        row[0].set_ylabel(f"{stream} stream", fontsize=8)
        for head, (axes, values) in enumerate(zip(row, maps, strict=True)):
            _show_face(axes, face)
            shown = np.ma.masked_equal(values, 0)
            _show_map(axes, shown, alpha=0.6, norm=norm, cmap="inferno")
            if token is not None:
                height, width = (
                    side / count for side, count in zip(face.face.shape, values.shape, strict=False)
                )
                corner = (token[1] * width, token[0] * height)
                axes.add_patch(Rectangle(corner, width, height, fill=False, color="#00E0FF"))
            reach = "" if dilations is None else f", dilation {dilations[head]}"
            axes.set_title(f"head {head + 1}{reach}", fontsize=8)
    scale = ScalarMappable(norm, "inferno")
    figure.colorbar(scale, ax=list(grid.flat), label="attention weight", shrink=0.8)
    _save(figure, path)


@_default_style()
def plot_tsne(
    path: Path, points: np.ndarray, labels: np.ndarray, class_names: Sequence[str], title: str
) -> None:
    """Points coloured by class.

    Args:
        path: of the PNG.
        points: (images, 2).
        labels: (images,), indices in `class_names`.
        class_names: for the legend.
        title: of the figure.
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    # yellow is seen on white by its edge
    style: dict[str, Any] = {"s": 9, "linewidths": 0.3, "edgecolors": "0.2"}
    for label in range(len(class_names)):
        x, y = points[labels == label].T
        turn, place = divmod(label, len(CLASS_COLORS))
        color, marker = CLASS_COLORS[place], CLASS_MARKERS[turn % len(CLASS_MARKERS)]
        axes.scatter(x, y, color=color, marker=marker, label=str(label), **style)
    axes.set_aspect("equal", "datalim")  # distances, whatever the title makes of the width
    axes.set_xticks([])
    axes.set_yticks([])
    columns = math.ceil(len(class_names) / 25)
    options: dict[str, Any] = {"markerscale": 2, "fontsize": 8, "ncols": columns}
    legend = figure.legend(loc="outside right center", **options)
    for text, name in zip(legend.get_texts(), _shortened(class_names), strict=True):
        text.set_text(name)  # as a label, a name that begins with "_" would be left out
    figure.set_figwidth(5 + _inches(legend)[0])
    _set_title(figure, title)
    _save(figure, path)


def _show_face(axes: Axes, face: FaceMaps) -> None:
    height, width, _ = face.face.shape
    axes.imshow(face.face, extent=(0, width, height, 0))
    axes.autoscale(False)  # landmarks may lie off the face
    axes.set_xticks([])
    axes.set_yticks([])


def _show_map(axes: Axes, values: np.ndarray, **style: Any) -> None:
    """A map of places over the face that the axes show."""
    axes.imshow(values, extent=axes.get_images()[0].get_extent(), **style)


def _set_title(figure: Figure, title: str) -> None:
    """Writes a title above everything, and makes the figure as wide as it needs."""
    text = figure.suptitle(legible(title), fontsize=9)
    figure.set_figwidth(max(figure.get_figwidth(), _inches(text)[0] + 0.3))


def _inches(artist: Artist) -> tuple[float, float]:
    """Width and height of a text, turned as it is, or of a legend on its figure."""
    for text in artist.findobj(Text):
        _prepare(text)
    figure = artist.get_figure()
    assert figure is not None
    extent = artist.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    return extent.width / figure.dpi, extent.height / figure.dpi


def _prepare(text: Text) -> None:
    """Before a text is measured or drawn."""
    text.set_parse_math(False)  # a name with two dollar signs is no formula
    text.set_fontfamily(families(text.get_text()))


def _shortened(names: Sequence[str], most: int = MOST_LETTERS) -> list[str]:
    """Legible names, without their middle where they have more than `most` letters.

    Different names that would then look the same begin with their place in the sequence, from 1.
    """
    begin, end = (most - 1) // 2, most // 2
    whole = [legible(name) for name in names]
    short = [name if len(name) <= most else f"{name[:begin]}…{name[-end:]}" for name in whole]
    alike = Counter(dict(zip(whole, short, strict=True)).values())
    return [
        f"{whole.index(name) + 1}. {each}" if alike[each] > 1 else each
        for name, each in zip(whole, short, strict=True)
    ]


def _save(figure: Figure, path: Path, **options: Any) -> None:
    for text in figure.findobj(Text):
        _prepare(text)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150, **options)
