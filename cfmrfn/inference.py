"""What the tools for trained networks share: data sets met by a checkpoint's classes, images that
cannot be read, and tables of predictions.

A table of predictions is CSV (RFC 4180, UTF-8) with a header and a row per image of a data set, or
per face in pictures and in frames of videos, in the order in which they were given::

    path          of the file; bytes of a name that are no UTF-8 are written as they are
    label         data sets: its class there
    duplicate     data sets: 1 where it is pixel for pixel an image of the training split, or one
                  of the test split is one of the validation split, which chooses epochs; 0 where
                  not; empty where that is not known
    frame         faces: number of the frame in its video, from 0; empty for a picture
    seconds       faces: from the video's start; empty for a picture
    face          faces: its number in the picture, from 1, the surest first; 0 where none was found
    track         faces: its number in the video, from 1, in all frames; empty for a picture
    left, top, right, bottom
                  faces: its box in pixels of the picture, turned as a viewer shows it
    score         faces: of the detector, 0 to 1; empty where the whole picture was taken as a face
    prediction    the most probable class; empty where there is no face, or an image that could not
                  be read
    p_CLASS       the probability of each class, in the network's order; empty likewise

A file that could not be read has a row of its path alone. The same of faces as JSON::

    {"checkpoint": PATH, "class_names": [NAME, ...],
     "pictures": [{"path": PATH, "frame": null, "seconds": null, "drawn": NAME or null, "faces": [
         {"face": 1, "track": null, "box": [LEFT, TOP, RIGHT, BOTTOM], "score": 0.99,
          "prediction": NAME, "probabilities": {NAME: P, ...},
          "landmarks": [[X, Y], ... 68] or null}, ...]},
      {"path": PATH, "error": WHY}]}

"drawn" is the file's name in the folder of `predict --overlay`, null without one. Names there are
numbered where files in several folders have the same.

Bytes of a name that are no UTF-8 are lone surrogates in JSON, as in Python: \\udce9 for byte e9;
`os.fsencode` gives them back.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor
from tqdm import tqdm

from cfmrfn.batches import Loader
from cfmrfn.checkpoint import About
from cfmrfn.data import Sample, canonical_name, open_set, why_unreadable
from cfmrfn.data.dataset import UNREADABLE_LABEL
from cfmrfn.data.duplicates import NOT_LOOKED_FOR, UNASKED, copies_of_training_images
from cfmrfn.errors import DataError, printable_name
from cfmrfn.predictor import Face
from cfmrfn.whole_files import CsvFile, whole


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
        set_classes: of the data set.
        published: images of this split by class, as the owners of the set print them.
        training: images of the set's training split; empty where it has none, or this is it.
        validation: images of the set's validation split, which chooses epochs; empty where it has
            none, or this is no test split.
        left_out_duplicates: files that were left out because they are duplicates; None: such files
            are not left out.
        without_effect: options that were given and change nothing on this set, in lines that say
            why.
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
    set_classes: tuple[str, ...]
    published: Mapping[str, int]
    training: Sequence[Sample] = ()
    validation: Sequence[Sample] = ()
    left_out_duplicates: Sequence[str] | None = None
    without_effect: Sequence[str] = ()

    @cached_property
    def duplicates(self) -> frozenset[Sample] | None:
        """The images that are pixel for pixel `training` or `validation` images.

        None where that is not known: there is no training split, or more bytes than are read
        unasked.
        """
        if self.left_out_duplicates is not None:
            return frozenset()
        if not self.training:
            return None
        return copies_of_training_images(self.samples, [*self.training, *self.validation], UNASKED)

    @property
    def learned_from(self) -> str:
        """What duplicates are, in words: "training", or "training or validation" images."""
        return "training or validation" if self.validation else "training"

    def without_duplicates(self) -> Split:
        """The same without the images that are pixel for pixel `training` or `validation` images.

        Raises:
            DataError: there is no training split, or no image is left.
        """
        if not self.training:
            raise DataError(
                f"duplicates are images of the training split too, but {self.data} has none beside "
                f"split {self.name}: leave --drop-duplicates out, or give the whole set"
            )
        copies = copies_of_training_images(self.samples, [*self.training, *self.validation])
        assert copies is not None
        left = [sample for sample in self.samples if sample not in copies]
        if not left:
            raise DataError(
                f"every image of split {self.name} of {self.data} is a {self.learned_from} image "
                "too: without --drop-duplicates they are evaluated"
            )
        names = [sample.path for sample in self.samples if sample in copies]
        return replace(self, samples=left, left_out_duplicates=names)

    @property
    def shared_classes(self) -> list[str]:
        """The checkpoint's classes that the data set knows too."""
        return [name for name in self.class_names if canonical_name(name) in self.set_classes]

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
        return [*lines, *self.without_effect]

    def about_duplicates(self) -> list[str]:
        """What a reader of results should know of duplicates, in lines."""
        if self.left_out_duplicates is not None:
            names = self.left_out_duplicates
            return [
                f"left out: {len(names)} images that are pixel for pixel {self.learned_from} images"
                f"{_first(names)}"
            ]
        if self.duplicates:
            names = sorted(sample.path for sample in self.duplicates)
            return [
                f"{len(names)} images are pixel for pixel {self.learned_from} images"
                f"{_first(names)}; --drop-duplicates leaves them out"
            ]
        return [NOT_LOOKED_FOR] if self.training and self.duplicates is None else []


def _first(paths: Sequence[str], most: int = 3) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return "".join(f", {printable_name(path)}" for path in paths[:most]) + more


def open_split(
    data: str | Path,
    layout: str,
    split: str | None,
    about: About,
    *,
    boxes: bool | None = None,
    digits: Sequence[str] | None = None,
) -> Split:
    """Opens a split of a data set, which needs no training split, for a checkpoint's classes.

    Classes are matched by name. `split` None: the one that results are reported on. `boxes` None:
    whether training cropped to them. `digits` None: what class folders named by digits meant in
    training. See `cfmrfn.data.open_set` for the other arguments.

    Raises:
        DataError: the set cannot be opened, or has no such split or none of these classes in it.
    """
    root = os.path.abspath(data)
    class_names = about.class_names
    in_training = about.config.images.digits
    digits = tuple(digits or in_training or ())
    boxes = about.config.images.boxes if boxes is None else boxes
    opened = open_set(root, layout, training=False, boxes=boxes, digits=digits)
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
        opened.layout or layout,
        split,
        digits or None,
        class_names,
        mapped.splits[split],
        other_classes,
        {reason: count for reason, count in opened.dropped.items() if count},
        opened.class_names,
        opened.published.get(split, {}),
        [] if split == "train" else opened.splits.get("train", []),
        opened.splits.get("val", []) if split == "test" else [],
        # the digits of the training set need not be those of this one
        without_effect=opened.without_effect(
            boxes=boxes, digits=None if digits == in_training else digits
        ),
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
        loader: Loader,
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


def progress_bar(images: int | None, *, shown: bool = True, unit: str = "img") -> tqdm:
    """A bar on stderr where that is a terminal, once a few seconds have passed."""
    return tqdm(
        total=images,
        unit=unit,
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
    """

    def __init__(self, file: TextIO, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self.writer = csv.writer(CsvFile(file))
        columns = ["path", "label", "duplicate", "prediction", *(f"p_{n}" for n in class_names)]
        self.writer.writerow(columns)

    def write(
        self,
        path: str,
        label: str,
        probabilities: Sequence[float] | None,
        is_duplicate: bool | None = None,
    ) -> None:
        """Adds a row; `probabilities` None: the image could not be read."""
        row = [path, label, "" if is_duplicate is None else int(is_duplicate)]
        if probabilities is None:
            self.writer.writerow([*row, *[""] * (1 + len(self.class_names))])
        else:
            best = max(range(len(self.class_names)), key=probabilities.__getitem__)
            values = (f"{value:.6f}" for value in probabilities)
            self.writer.writerow([*row, self.class_names[best], *values])


class FaceTable:
    """Writes a table of faces, as above.

    Args:
        file: opened by `open_table`.
        class_names: in the network's order.
    """

    def __init__(self, file: TextIO, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self.writer = csv.writer(CsvFile(file))
        place = ["frame", "seconds", "face", "track", "left", "top", "right", "bottom", "score"]
        columns = ["path", *place, "prediction", *(f"p_{name}" for name in class_names)]
        self.empty = [""] * (len(columns) - 4)
        self.writer.writerow(columns)

    def write(
        self,
        path: str,
        faces: Sequence[Face] | None,
        frame: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Adds the rows of a picture, or of a frame; `faces` None: it could not be read."""
        when = ["" if frame is None else frame, "" if seconds is None else f"{seconds:.3f}"]
        if not faces:
            self.writer.writerow([path, *when, "" if faces is None else 0, *self.empty])
            return
        for number, face in enumerate(faces, 1):
            score = "" if face.score is None else f"{face.score:.6f}"
            box = (f"{edge:.1f}" for edge in face.box)
            values = (f"{face.probabilities[name]:.6f}" for name in self.class_names)
            track = "" if face.track is None else face.track
            row = [path, *when, number, track, *box, score, face.expression, *values]
            self.writer.writerow(row)


class FaceList:
    """Writes the pictures of a JSON file of faces, see `open_face_list`."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.separator = "\n"

    def write(
        self,
        path: str,
        faces: Sequence[Face],
        frame: int | None = None,
        seconds: float | None = None,
        drawn: str | None = None,
    ) -> None:
        """Adds a picture, or a frame; `drawn`: name of the file that it was drawn into."""
        self._add(
            {
                "path": path,
                "frame": frame,
                "seconds": None if seconds is None else round(seconds, 3),
                "drawn": drawn,
                "faces": [plain_face(number, face) for number, face in enumerate(faces, 1)],
            }
        )

    def write_error(self, path: str, error: str) -> None:
        """Adds a file that could not be read."""
        self._add({"path": path, "error": error})

    def _add(self, entry: dict[str, Any]) -> None:
        self.file.write(f"{self.separator}  {json.dumps(entry, allow_nan=False)}")
        self.separator = ",\n"


def plain_face(number: int, face: Face) -> dict[str, Any]:
    """A face as it stands in JSON."""
    return {
        "face": number,
        "track": face.track,
        "box": [round(edge, 1) for edge in face.box],
        "score": None if face.score is None else round(face.score, 6),
        "prediction": face.expression,
        "probabilities": {name: round(value, 6) for name, value in face.probabilities.items()},
        "landmarks": None
        if face.landmarks is None
        else face.landmarks.astype(float).round(1).tolist(),
    }


@contextmanager
def open_face_list(
    path: str | Path, checkpoint: str, class_names: Sequence[str]
) -> Iterator[FaceList]:
    """A JSON file of faces, as above, to write; it is there when all is written."""
    with open_table(path) as file:
        head = f'"checkpoint": {json.dumps(checkpoint)}, "class_names": {json.dumps(class_names)}'
        file.write(f'{{{head},\n "pictures": [')
        yield FaceList(file)
        file.write("\n]}\n")


@contextmanager
def open_table(path: str | Path) -> Iterator[TextIO]:
    """A text file to write, in which names may be any bytes; it is there when all is written.

    Until then it has another name, which is removed if an error comes.
    """
    with (
        whole(path) as target,
        open(target, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file
