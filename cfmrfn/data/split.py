"""Class folders without parts, divided at random into `train`, `test` and `val`."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfmrfn.data.catalog import open_set
from cfmrfn.data.folder import WITHOUT_SPLITS
from cfmrfn.data.parallel import parallel_map
from cfmrfn.data.samples import ExpressionSet, Sample
from cfmrfn.data.verify import look
from cfmrfn.errors import DataError, counted, first_of
from cfmrfn.whole_files import whole_folder

Unit = list[Sample]  # images that stay in one part


@dataclass(frozen=True)
class Division:
    """The parts of a set, and what a reader should know of them.

    Attributes:
        divided: the set.
        parts: name -> images; `train`, `test` and perhaps `val`.
        remarks: lines on what was left out, and why.
    """

    divided: ExpressionSet
    parts: Mapping[str, Sequence[Sample]]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        names = self.divided.class_names
        counts = [Counter(sample.label for sample in part) for part in self.parts.values()]
        rows = [("class", [*self.parts])]
        rows += [(name, [str(of[label]) for of in counts]) for label, name in enumerate(names)]
        rows.append(("all", [str(len(part)) for part in self.parts.values()]))
        lines = [f"{name:<12}" + "".join(f"{cell:>8}" for cell in cells) for name, cells in rows]
        return "\n".join([*lines, *self.remarks])


def divide(
    root: str | Path,
    *,
    test: float,
    validation: float,
    seed: int,
    digits: Sequence[str] | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Division:
    """Divides class folders without parts.

    Each part has its share of every class, and at least one image of each class that has enough:
    the first goes to `train`, the second to `test`. Images that are the same pixel for pixel stay
    in one part, and in `train` where they are of several classes.

    Args:
        root: folder of the class folders.
        test, validation: shares of the images.
        seed: decides which.
        digits: as `open_set` takes it.
        workers: processes that open images.
        progress: show a progress bar.

    Raises:
        DataError: the folder is missing, is divided already, or has no two classes with images.
    """
    opened = open_set(root, training=False, digits=digits)
    if list(opened.splits) != [WITHOUT_SPLITS]:
        raise DataError(
            f"{root} must be a folder of class folders; it is {opened.name}, with "
            f"{', '.join(opened.splits)}"
        )
    units, broken = _units(opened.splits[WITHOUT_SPLITS], workers, progress)
    shares = {"test": test} | ({"val": validation} if validation else {})
    parts: dict[str, list[Sample]] = {"train": [], **{name: [] for name in shares}}
    mixed = [unit for unit in units if len({sample.label for sample in unit}) > 1]
    parts["train"] += [sample for unit in mixed for sample in unit]
    for label in range(len(opened.class_names)):
        own = [unit for unit in units if {sample.label for sample in unit} == {label}]
        order = np.random.default_rng((seed, label)).permutation(len(own))
        for name, taken in _parts_of_class([own[place] for place in order], shares).items():
            parts[name] += [sample for unit in taken for sample in unit]
    if len({sample.label for sample in parts["test"]}) < 2:
        raise DataError(f"{root} must have two classes or more with two different images or more")
    remarks = [*opened.left_out(), *first_of([f"left out: {line}" for line in broken])]
    if count := sum(map(len, mixed)):
        remarks.append(f"in train: {count} images, the same pixel for pixel in several classes")
    division = Division(opened, parts, ())
    return Division(opened, parts, (*remarks, *_lacking(division)))


def write(division: Division, root: str | Path, target: str | Path) -> None:
    """Makes the folder `target` of a division of `root`, whole or not at all.

    Files are hard links, or copies where the file system has none.

    Raises:
        DataError: as for `check_target`.
        OSError: it cannot be written.
    """
    check_target(root, target)
    with whole_folder(target) as folder:
        for name, part in division.parts.items():
            for sample in part:
                place = folder / name / os.path.relpath(sample.path, root)
                place.parent.mkdir(parents=True, exist_ok=True)
                _link(os.path.realpath(sample.path), place)


def check_target(root: str | Path, target: str | Path) -> None:
    """Raises DataError where the folder to make exists, or is in `root`."""
    if os.path.lexists(target):
        raise DataError(f"target must be a folder to make; {target} exists")
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(root)):
        raise DataError(f"target must be outside of {root}; got {target}")


def _units(samples: Sequence[Sample], workers: int, progress: bool) -> tuple[list[Unit], list[str]]:
    """Images by their pixels, in order, and a line for each that cannot be read."""
    seen = parallel_map(
        look, samples, workers=workers, desc="opening images", unit="image", progress=progress
    )
    units: dict[bytes, Unit] = {}
    broken = []
    for sample, found in zip(samples, seen, strict=True):
        if isinstance(found, str):
            broken.append(found)
        else:
            units.setdefault(found[0].pixels, []).append(sample)
    return list(units.values()), broken


def _parts_of_class(units: Sequence[Unit], shares: Mapping[str, float]) -> dict[str, list[Unit]]:
    """Divides one class, whose units are in random order; `train` has what the others leave."""
    images = sum(map(len, units))
    left = list(units)
    parts: dict[str, list[Unit]] = {}
    for number, (name, share) in enumerate(shares.items()):
        # for the parts after this one, and one for train
        kept = min(len(shares) - number, max(len(left) - 1, 1))
        most = max(1, round(share * images))
        taken: list[Unit] = []
        for unit in list(left):
            if len(left) > kept and sum(map(len, taken)) + len(unit) <= most:
                taken.append(unit)
                left.remove(unit)
        if not taken and len(left) > kept:
            taken.append(min(left, key=len))
            left.remove(taken[0])
        parts[name] = taken
    return {"train": left, **parts}


def _lacking(division: Division) -> list[str]:
    """A line for each class that has too few images for all parts."""
    names = division.divided.class_names
    present = {name: {sample.label for sample in part} for name, part in division.parts.items()}
    images = Counter(sample.label for part in division.parts.values() for sample in part)
    lines = []
    for label, class_name in enumerate(names):
        if lacking := [name for name, labels in present.items() if label not in labels]:
            have = counted(images[label], "readable image")
            lines.append(f"not in {', '.join(lacking)}: class {class_name}, which has {have}")
    return lines


def _link(source: str, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, place)
