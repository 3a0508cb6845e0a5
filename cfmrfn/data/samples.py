"""The data structure that every layout is read into: samples, named classes, and splits."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cfmrfn.errors import DataError

# RAF-DB's native order, 1..7 on disk; contempt is the eighth class of AffectNet and FERPlus.
EXPRESSIONS = (
    "surprise",
    "fear",
    "disgust",
    "happiness",
    "sadness",
    "anger",
    "neutral",
    "contempt",
)

_ALIASES = {
    "surprised": "surprise",
    "afraid": "fear",
    "fearful": "fear",
    "disgusted": "disgust",
    "happy": "happiness",
    "joy": "happiness",
    "sad": "sadness",
    "angry": "anger",
    "neutrality": "neutral",
    "natural": "neutral",
    "contemptuous": "contempt",
}


# left, top, right, bottom, in pixels
Box = tuple[int, int, int, int]


class Sample(NamedTuple):
    """One image and its label.

    Attributes:
        path: of the file; a `str`, as AffectNet has 287,651 of them and a `Path` takes more memory.
        label: index in the set's `class_names`.
        votes: soft labels that sum to 1, one per class (FERPlus). None: there are none.
        box: the face in the pixels of the file as they are stored; it may reach beyond them. None:
            the whole image.
    """

    path: str
    label: int
    votes: tuple[float, ...] | None = None
    box: Box | None = None


@dataclass(frozen=True)
class ExpressionSet:
    """A data set.

    Attributes:
        name: as shown to the user.
        class_names: expressions in label order.
        splits: samples by name of the split.
        dropped: number of images left out, by reason.
        published: numbers of images that the owners of the set (or the literature) print, by split
            and class name, for comparison.
        takes: "boxes", "digits": options of `open_set` that have an effect on this set.
        layout: name of the layout in `cfmrfn.data.LAYOUTS` that `open_set` read it as.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, list[Sample]]
    dropped: Mapping[str, int] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    takes: Sequence[str] = ()
    layout: str | None = None

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}: {len(samples):,}" for name, samples in self.splits.items())
        return f"<{self.name}: {len(self.class_names)} classes; images in {counts}>"

    @property
    def held_out(self) -> str:
        """The split that results are reported on: `"test"` where there is one, else `"val"`.

        A set opened for evaluation may have neither: then its only split.
        """
        return next(name for name in ("test", "val", *self.splits) if name in self.splits)

    def counts(self, split: str) -> tuple[int, ...]:
        """Images of each class in `split`, in label order."""
        counts = [0] * len(self.class_names)
        for sample in self.splits[split]:
            counts[sample.label] += 1
        return tuple(counts)

    def left_out(self) -> list[str]:
        """One line for each reason in `dropped`."""
        return [f"left out: {count}, {reason}" for reason, count in self.dropped.items() if count]

    def without_effect(self, *, boxes: bool, digits: Sequence[str] | None) -> list[str]:
        """Which of these options of `open_set` change nothing, each in a line that says why."""
        lines = []
        if not boxes and "boxes" not in self.takes:
            lines.append("boxes False has no effect, as the data has no face boxes")
        if digits and "digits" not in self.takes:
            lines.append(
                f"digits {' '.join(digits)} has no effect, as no class folders are named by digits"
            )
        return lines

    def only(self, class_names: Sequence[str]) -> ExpressionSet:
        """The classes of these names, in the order of this set; others are dropped and counted.

        Raises:
            DataError: a name occurs twice, or is no class of this set.
        """
        wanted = [canonical_name(name) for name in class_names]
        if unknown := [name for name in wanted if name not in self.class_names]:
            raise DataError(
                f"{self.name} has no class {', '.join(unknown)}; "
                f"its classes are {', '.join(self.class_names)}"
            )
        if len(set(wanted)) != len(wanted):
            raise DataError(f"class names must be distinct, got {', '.join(class_names)}")
        return self.mapped_to([name for name in self.class_names if name in wanted])

    def mapped_to(self, class_names: Sequence[str]) -> ExpressionSet:
        """The same images with labels in `class_names`, to train on one set and test on another.

        Classes are matched by name, whatever their order in either set. Images of a class that
        `class_names` lacks are dropped and counted; votes are reordered and rescaled.

        Raises:
            DataError: a name occurs twice, or no class of this set is among the names.
        """
        target = tuple(canonical_name(name) for name in class_names)
        if len(set(target)) != len(target):
            raise DataError(f"class names must be distinct, got {', '.join(class_names)}")
        shared = [name for name in self.class_names if name in target]
        if not shared:
            raise DataError(
                f"no class of {self.name} ({_some(self.class_names)}) is among the wanted ones "
                f"({_some(target)}); give a set that has one of these"
            )
        if target == self.class_names:
            return self
        new_label = {
            old: target.index(name) for old, name in enumerate(self.class_names) if name in target
        }
        splits = {
            split: [
                sample._replace(
                    label=new_label[sample.label],
                    votes=_mapped_votes(sample.votes, new_label, len(target)),
                )
                for sample in samples
                if sample.label in new_label
            ]
            for split, samples in self.splits.items()
        }
        dropped = dict(self.dropped)
        for old, name in enumerate(self.class_names):
            if old not in new_label:
                count = sum(self.counts(split)[old] for split in self.splits)
                dropped[f"class {name} is not wanted"] = count
        published = {
            split: {name: count for name, count in counts.items() if name in target}
            for split, counts in self.published.items()
        }
        return replace(
            self, class_names=target, splits=splits, dropped=dropped, published=published
        )

    def require_trainable(self) -> None:
        """Checks that the training split has two classes or more, and images of each.

        Raises:
            DataError: it has not.
        """
        if "train" not in self.splits:
            raise DataError(f"{self.name} has no training split, only {', '.join(self.splits)}")
        if len(self.splits) == 1:
            raise DataError(f"{self.name} has a training split only, and nothing to test on")
        counts = self.counts("train")
        empty = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
        left_out = "".join(f"; {line}" for line in self.left_out())
        if len(self.class_names) - len(empty) < 2:
            raise DataError(
                f"{self.name}: the training split has images of "
                f"{len(self.class_names) - len(empty)} class(es); at least 2 are needed{left_out}"
            )
        if empty:
            raise DataError(
                f"{self.name}: no training image of class {', '.join(empty)}; "
                f"--only and the names of other classes leave it out{left_out}"
            )


@dataclass(frozen=True)
class SetOptions:
    """How a set is read; each layout takes what applies to it.

    Attributes:
        classes: number of classes that the user configured. None: as found.
        training: it must have a training split and another one. False: what is there is read.
        boxes: crop each image to its face box, where the set has boxes.
        digits: what class folders named by digits mean: the name of a set in `folder.DIGITS` whose
            labels they are, or class names in order. Empty: told by the lowest digit.
    """

    classes: int | None = None
    training: bool = True
    boxes: bool = True
    digits: Sequence[str] = ()


AS_FOUND = SetOptions()


@dataclass(frozen=True)
class Layout:
    """One way in which a data set is laid out in its root folder.

    Attributes:
        name: as the user gives it.
        description: for the list of known layouts.
        recognise: whether a root folder has this layout.
        load: reads the root folder; raises `DataError` where the data disagrees with the options.
    """

    name: str
    description: str
    recognise: Callable[[str], bool]
    load: Callable[[str, SetOptions], ExpressionSet]


def canonical_name(name: str) -> str:
    """The name in `EXPRESSIONS` for a class name as others write it ("Happy", "3_anger").

    A name that is no known expression comes back in lower case, numbers ("10-19") included, so that
    classes of a user's own stay usable. Letters with accents are one character each (NFC), where
    file systems and archives of macOS write two.
    """
    own = unicodedata.normalize("NFC", name.strip().lower())
    bare = re.sub(r"^\d+[\s_.-]+", "", own)
    known = _ALIASES.get(bare, bare)
    return known if known in EXPRESSIONS else own


def _some(names: Sequence[str], most: int = 8) -> str:
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def _mapped_votes(
    votes: tuple[float, ...] | None, new_label: Mapping[int, int], classes: int
) -> tuple[float, ...] | None:
    if votes is None:
        return None
    mapped = [0.0] * classes
    for old, new in new_label.items():
        mapped[new] = votes[old]
    total = sum(mapped)
    return tuple(vote / total for vote in mapped)
