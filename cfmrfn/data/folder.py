"""Class folders: `train/`, with `test/` or `val/` beside it, and in each one folder per class.

Folders are matched to expressions by name ("Happy", "3_happy", "happiness"), since they sort
alphabetically and labels of other sets do not. Folders named by digits are read as AffectNet's
labels if they start at 0 and as RAF-DB's if they start at 1, as both sets circulate that way;
others are to be told by the option `digits`.

For evaluation one split is enough, and so are class folders without splits.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from cfmrfn.data import affectnet, ferplus, rafdb
from cfmrfn.data.files import find_images, is_visible, why_no_image
from cfmrfn.data.samples import (
    AS_FOUND,
    EXPRESSIONS,
    ExpressionSet,
    Sample,
    SetOptions,
    canonical_name,
)
from cfmrfn.errors import DataError, argument, printable, utf8_needed

# Sets whose labels circulate as names of folders: the first label, and the classes in order.
DIGITS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "affectnet": (0, affectnet.CLASS_NAMES),
    "rafdb": (1, EXPRESSIONS),
    "ferplus": (0, ferplus.CLASS_NAMES),
    "fer2013": (
        0,
        ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"),
    ),
}
WITHOUT_SPLITS = "all"

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_LAYOUT = "expected ROOT/train/happiness/1.jpg and ROOT/test/happiness/2.jpg (or val)"


def recognise(root: str) -> bool:
    """Whether `root` has split folders, class folders or images.

    Also where a part is missing: `load` then says what is wrong.
    """
    known = {name for spellings in _SPLITS.values() for name in spellings} | set(EXPRESSIONS)
    with os.scandir(root) as entries:
        return any(
            canonical_name(entry.name) in known or entry.name.isdecimal()
            if entry.is_dir()
            else why_no_image(entry.path) is None
            for entry in entries
            if is_visible(entry.name)
        )


def has_splits(root: str) -> bool:
    """Whether the folder holds a training split and another one."""
    with os.scandir(root) as entries:
        names = {entry.name.lower() for entry in entries if entry.is_dir()}
    found = {split for split, spellings in _SPLITS.items() if names.intersection(spellings)}
    return "train" in found and len(found) > 1


def load(root: str, options: SetOptions = AS_FOUND) -> ExpressionSet:
    """Reads class folders.

    Args:
        root: folder of the splits; for evaluation also of the classes.
        options: `classes` is not used, as there is one class per folder; `open_set` checks their
            number.

    Raises:
        DataError: the folders are not laid out as expected, or their names are not legal.
    """
    left_out: Counter[str] = Counter()
    found = _split_folders(root, left_out)
    if options.training and ("train" not in found or len(found) == 1):
        what = "no split folders" if "train" not in found else "only a training split"
        raise DataError(f"{root} has {what}; {_LAYOUT}. {how_to_divide(found.get('train', root))}")
    if not found:
        found = {WITHOUT_SPLITS: root}
        left_out.clear()
    folders = {split: _class_folders(path, left_out) for split, path in found.items()}
    names = sorted({name for inside in folders.values() for name in inside})
    classes, order, note = _classes(names, root, options.digits)
    splits: dict[str, list[Sample]] = {split: [] for split in folders}
    for split, inside in folders.items():
        meant = Counter(classes[name] for name in inside)
        if twice := [name for name in sorted(inside) if meant[classes[name]] > 1]:
            raise DataError(
                f"{found[split]}: several folders are of one class: "
                f"{', '.join(f'{name} ({classes[name]})' for name in twice)}; put their images "
                "into one folder"
            )
        for name in sorted(inside, key=lambda name: order.index(classes[name])):
            images = find_images(os.path.join(found[split], name))
            label = order.index(classes[name])
            splits[split] += [Sample(path, label) for path in images.paths]
            left_out.update(images.left_out)
    return ExpressionSet(
        f"class folders{note}",
        order,
        splits,
        dropped=dict(left_out),
        takes=("digits",) if note else (),
    )


def how_to_divide(root: str) -> str:
    """The command that makes splits of class folders, for messages."""
    return f"python -m cfmrfn.data split {argument(root)} TARGET makes both of class folders"


def _split_folders(root: str, left_out: Counter[str]) -> dict[str, str]:
    """The folder of each split; images in other folders are counted as left out."""
    with os.scandir(root) as entries:
        visible = sorted(
            (entry for entry in entries if is_visible(entry.name)), key=lambda entry: entry.name
        )
    splits_of = {spelling: split for split, names in _SPLITS.items() for spelling in names}
    found: dict[str, str] = {}
    others = []
    for entry in visible:
        split = splits_of.get(entry.name.lower()) if entry.is_dir() else None
        if split is None:
            others.append(entry)
        elif split in found:
            raise DataError(
                f"{root} has two folders for one split, {os.path.basename(found[split])} and "
                f"{entry.name}; leave one there"
            )
        else:
            found[split] = entry.path
    for entry in others if found else []:
        if entry.is_dir():
            name = printable(entry.name)
            left_out[f"in folder {name}, which is no split"] = len(find_images(entry.path).paths)
        elif why_no_image(entry.path) is None:
            left_out["beside the split folders"] += 1
    return {split: found[split] for split in _SPLITS if split in found}


def _class_folders(path: str, left_out: Counter[str]) -> list[str]:
    with os.scandir(path) as entries:
        contents = [entry for entry in entries if is_visible(entry.name)]
    folders = [entry.name for entry in contents if entry.is_dir()]
    others = [why_no_image(entry.path) for entry in contents if not entry.is_dir()]
    if not folders or None in others:
        raise DataError(
            f"{path} holds images beside, or instead of, class folders, "
            f"so they have no label; {_LAYOUT}"
        )
    left_out.update(reason for reason in others if reason is not None)
    return folders


def _classes(
    folders: list[str], root: str, digits: Sequence[str]
) -> tuple[dict[str, str], tuple[str, ...], str]:
    """The class of each folder, the classes in label order, and a note on digits, or ""."""
    if all(folder.isdecimal() for folder in folders):
        return _classes_of_digits(folders, root, digits)
    classes = {folder: canonical_name(folder) for folder in folders}
    for folder, name in classes.items():
        if printable(name) != name:
            raise DataError(f"{root}: the name of class folder {printable(folder)} {utf8_needed()}")
    names = set(classes.values())
    known = [name for name in EXPRESSIONS if name in names]
    return classes, (*known, *sorted(names.difference(known))), ""


def _classes_of_digits(
    folders: list[str], root: str, digits: Sequence[str]
) -> tuple[dict[str, str], tuple[str, ...], str]:
    numbers = {folder: int(folder) for folder in folders}
    lowest = min(numbers.values())
    if not digits:
        set_name = "affectnet" if lowest == 0 else "rafdb"
        first, names = DIGITS[set_name]
        labels = sorted(number - first for number in numbers.values())
        # some of the classes of a set that counts from 0 may begin at 1, too
        is_part = first == 1 and len(labels) < rafdb.NATIVE_CLASSES
        if labels != list(range(len(labels))) or len(labels) > len(names) or is_part:
            raise DataError(
                f"{root}: class folders {', '.join(folders)}, but legal are digits from 0 (to at "
                f"most 7) or from 1 (to 7 or 8) without a gap, or names; or say what they mean: "
                f"--digits {', '.join(DIGITS)}, or class names in order"
            )
        read_as = "AffectNet's labels" if lowest == 0 else "RAF-DB's labels"
    elif len(digits) == 1:
        if digits[0] not in DIGITS:
            raise DataError(
                f"digits must be {', '.join(DIGITS)}, or class names in order; got {digits[0]!r}"
            )
        first, names = DIGITS[digits[0]]
        read_as = f"labels of {digits[0]}"
    else:
        first, names = 1, tuple(canonical_name(name) for name in digits)
        read_as = ", ".join(names)
    # also sets that count from 1 circulate renumbered from 0
    first = min(first, lowest)
    if beyond := [folder for folder, number in numbers.items() if number - first >= len(names)]:
        raise DataError(
            f"{root}: class folders {', '.join(folders)}, but {len(names)} classes are named "
            f"({', '.join(names)}), so that {', '.join(beyond)} has none"
        )
    classes = {folder: names[number - first] for folder, number in numbers.items()}
    order = tuple(name for name in names if name in classes.values())
    return classes, order, f", digits read as {read_as}"
