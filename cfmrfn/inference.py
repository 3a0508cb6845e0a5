"""What the tools for trained networks share: data sets met by a checkpoint's classes, images that
cannot be read, and tables of predictions.

A table of predictions is CSV (RFC 4180, UTF-8) with a header and a row per image, in the order in
which the images were given::

    path          of the file; bytes of a name that are no UTF-8 are written as they are
    label         its class in the data set, where that is known
    prediction    the most probable class; empty where the image could not be read
    p_CLASS       the probability of each class, in the network's order; empty likewise
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from cfmrfn.batches import UNREADABLE_LABEL
from cfmrfn.checkpoint import About
from cfmrfn.data import LAYOUTS, Sample, open_set, why_unreadable
from cfmrfn.errors import DataError


@dataclass(frozen=True)
class Split:
    """A split of a data set, in the classes of a checkpoint.

    Attributes:
        data: absolute path of the set's root folder.
        set_name: of the data set, as shown to the user.
        layout: of the data set.
        name: of the split.
        digits: what class folders named by digits mean, as `cfmrfn.data.open_set` takes it.
        class_names: of the checkpoint; labels are their indices.
        samples: the images.
        other_classes: number of images in this split of each class that the checkpoint lacks.
        dropped: number of files and images of all splits that were left out, by reason.
    """

    data: str
    set_name: str
    layout: str
    name: str
    digits: tuple[str, ...] | None
    class_names: tuple[str, ...]
    samples: Sequence[Sample]
    other_classes: Mapping[str, int]
    dropped: Mapping[str, int]

    @property
    def absent(self) -> list[str]:
        """The checkpoint's classes of which the split has no image."""
        present = {sample.label for sample in self.samples}
        return [name for label, name in enumerate(self.class_names) if label not in present]

    def remarks(self) -> list[str]:
        """What a reader of results should know of the images, in lines."""
        lines = [
            f"left out: {count} images of class {name}, which the checkpoint does not know"
            for name, count in self.other_classes.items()
        ]
        if self.absent:
            lines.append(f"no images of class {', '.join(self.absent)}, which the checkpoint knows")
        lines += [
            f"left out of the whole set: {count}, {reason}"
            for reason, count in self.dropped.items()
        ]
        return lines


def open_split(
    data: str | Path,
    layout: str,
    split: str | None,
    about: About,
    *,
    boxes: bool = True,
    digits: Sequence[str] | None = None,
) -> Split:
    """Opens a split of a data set, which needs no training split, for a checkpoint's classes.

    Classes are matched by name. `split` None: the one that results are reported on. `digits` None:
    what class folders named by digits meant in training. See `cfmrfn.data.open_set` for the other
    arguments.

    Raises:
        DataError: the set cannot be opened, or has no such split or none of these classes in it.
    """
    root = os.path.abspath(data)
    class_names = about.class_names
    digits = digits or about.config.images.digits
    opened = open_set(root, layout, training=False, boxes=boxes, digits=digits)
    if layout == "auto":
        layout = next((each.name for each in LAYOUTS if each.recognise(root)), "folder")
    split = split or opened.held_out
    if split not in opened.splits:
        raise DataError(f"split must be one of {', '.join(opened.splits)}; got {split}")
    mapped = opened.mapped_to(class_names)
    counts = zip(opened.class_names, opened.counts(split), strict=True)
    other_classes = {
        name: count for name, count in counts if count and name not in mapped.class_names
    }
    if not mapped.splits[split]:
        raise DataError(
            f"split {split} of {root} has no image of the checkpoint's classes, "
            f"{', '.join(class_names)}"
        )
    return Split(
        root,
        opened.name,
        layout,
        split,
        None if digits is None else tuple(digits),
        class_names,
        mapped.splits[split],
        other_classes,
        {reason: count for reason, count in opened.dropped.items() if count},
    )


class ReadableBatches:
    """The batches of a loader that marks unreadable images, without these.

    Args:
        loader: from `evaluation_loader` with `on_broken="mark"`.
        samples: that it loads, those of this process.
        on_broken: "error" or "skip".
        progress: show a bar on a terminal, once a few seconds have passed.

    Attributes:
        unreadable: indices in `samples` of the images that were left out so far.

    Raises:
        DataError: when iterated, at an image that cannot be read where `on_broken` is "error".
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        samples: Sequence[Sample],
        on_broken: str = "error",
        *,
        progress: bool = False,
    ) -> None:
        self.loader = loader
        self.samples = samples
        self.on_broken = on_broken
        self.progress = progress
        self.unreadable: list[int] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(batch, 3, size, size), (batch,)"""
        first = 0
        with progress_bar(len(self.samples), shown=self.progress) as bar:
            for images, labels in self.loader:
                is_readable = labels != UNREADABLE_LABEL
                marked = [first + place for place in (~is_readable).nonzero().flatten().tolist()]
                if marked and self.on_broken == "error":
                    raise DataError(
                        f"cannot read image {reason_of(self.samples[marked[0]])}; "
                        "--on-broken skip leaves such images out"
                    )
                self.unreadable += marked
                if is_readable.any():
                    yield (images[is_readable], labels[is_readable]) if marked else (images, labels)
                first += len(labels)
                bar.update(len(labels))


def reason_of(sample: Sample) -> str:
    """`"path: reason"` for an image that could not be read."""
    return why_unreadable(sample) or f"{sample.path}: not readable at first, but at a second try"


def progress_bar(images: int, *, shown: bool = True) -> tqdm:
    """A bar on stderr where that is a terminal, once a few seconds have passed."""
    return tqdm(
        total=images,
        unit="img",
        delay=3,
        leave=False,
        dynamic_ncols=True,
        disable=None if shown else True,  # None: shown on a terminal
    )


class PredictionTable:
    """Writes a table of predictions, as above.

    Args:
        file: opened by `open_table`.
        class_names: in the network's order.
        with_labels: whether there is a column for them.
    """

    def __init__(self, file: TextIO, class_names: Sequence[str], *, with_labels: bool) -> None:
        self.class_names = class_names
        self.with_labels = with_labels
        self.writer = csv.writer(file, lineterminator="\n")
        columns = ["path", *(["label"] if with_labels else []), "prediction"]
        self.writer.writerow([*columns, *(f"p_{name}" for name in class_names)])

    def write(
        self, path: str, probabilities: Sequence[float] | None, label: str | None = None
    ) -> None:
        """Adds a row; `probabilities` None: the image could not be read."""
        row = [path, label] if self.with_labels else [path]
        if probabilities is None:
            self.writer.writerow([*row, *[""] * (1 + len(self.class_names))])
        else:
            best = max(range(len(self.class_names)), key=probabilities.__getitem__)
            values = (f"{value:.6f}" for value in probabilities)
            self.writer.writerow([*row, self.class_names[best], *values])


def open_table(path: str | Path) -> TextIO:
    """Opens a CSV file for writing, in which names may be any bytes."""
    return open(path, "w", encoding="utf-8", errors="surrogateescape", newline="")
