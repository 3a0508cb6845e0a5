"""Class folders: `train/`, with `test/` or `val/` beside it, and in each one folder per class.

Folders are matched to expressions by name ("Happy", "3_happy", "happiness"), since they sort
alphabetically and labels of other sets do not. Folders named by digits are read as AffectNet's
labels if they start at 0 and as RAF-DB's if they start at 1, as both sets circulate that way.
"""

from __future__ import annotations

import os
from collections import Counter

from cfmrfn.data import affectnet
from cfmrfn.data.files import find_images, is_visible, why_no_image
from cfmrfn.data.samples import EXPRESSIONS, ExpressionSet, Sample, canonical_name
from cfmrfn.errors import DataError

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
            canonical_name(entry.name) in known
            if entry.is_dir()
            else why_no_image(entry.name) is None
            for entry in entries
            if is_visible(entry.name)
        )


def load(root: str, classes: int | None = None) -> ExpressionSet:
    """Reads class folders.

    Args:
        root: folder of the splits.
        classes: not used, as there is one class per folder; `open_set` checks their number.

    Raises:
        DataError: the folders are not laid out as expected, or their names are not legal.
    """
    present = {name.lower(): os.path.join(root, name) for name in os.listdir(root)}
    found = {
        split: present[spelling]
        for split, spellings in _SPLITS.items()
        for spelling in spellings
        if spelling in present and os.path.isdir(present[spelling])
    }
    if "train" not in found or len(found) == 1:
        what = "no split folders" if "train" not in found else "only a training split"
        raise DataError(f"{root} has {what}; {_LAYOUT}")
    folders = {split: _class_folders(path) for split, path in found.items()}
    class_names, note = _class_names(folders["train"], found["train"])
    splits: dict[str, list[Sample]] = {}
    left_out: Counter[str] = Counter()
    for split, names in folders.items():
        unknown = set(names) - set(class_names)
        if unknown:
            raise DataError(
                f"{found[split]} has classes that the training split lacks: "
                f"{', '.join(sorted(unknown))}"
            )
        order = sorted(names, key=lambda name: class_names[name][0])
        splits[split] = []
        for name in order:
            images = find_images(os.path.join(found[split], name))
            splits[split] += [Sample(path, class_names[name][0]) for path in images.paths]
            left_out.update(images.left_out)
    ordered = tuple(name for _, name in sorted(class_names.values()))
    return ExpressionSet(f"class folders{note}", ordered, splits, dropped=dict(left_out))


def _class_folders(path: str) -> list[str]:
    with os.scandir(path) as entries:
        contents = [entry for entry in entries if is_visible(entry.name)]
    folders = sorted(entry.name for entry in contents if entry.is_dir())
    if not folders or any(
        why_no_image(entry.name) is None for entry in contents if entry.is_file()
    ):
        raise DataError(
            f"{path} holds images beside, or instead of, class folders, "
            f"so they have no label; {_LAYOUT}"
        )
    return folders


def _class_names(folders: list[str], path: str) -> tuple[dict[str, tuple[int, str]], str]:
    """(label, class name) of each folder, and a note on how digits were read, or ""."""
    if all(folder.isdecimal() for folder in folders):
        first = min(map(int, folders))
        names, set_name = (
            (affectnet.CLASS_NAMES, "AffectNet") if first == 0 else (EXPRESSIONS, "RAF-DB")
        )
        labels = {folder: int(folder) - min(first, 1) for folder in folders}
        if sorted(labels.values()) != list(range(len(labels))) or len(labels) > len(names):
            raise DataError(
                f"{path}: class folders {', '.join(folders)}, but legal are digits from 0 (to at "
                f"most 7) or from 1 (to at most 8) without a gap, or names"
            )
        note = f", digits read as {set_name}'s labels"
        return {folder: (label, names[label]) for folder, label in labels.items()}, note
    by_name = {folder: canonical_name(folder) for folder in folders}
    names_found = list(by_name.values())
    twice = sorted({name for name in names_found if names_found.count(name) > 1})
    if twice:
        raise DataError(f"{path}: several class folders mean {', '.join(twice)}")
    known = [name for name in EXPRESSIONS if name in names_found]
    order = known + sorted(set(names_found) - set(known))
    return {folder: (order.index(name), name) for folder, name in by_name.items()}, ""
