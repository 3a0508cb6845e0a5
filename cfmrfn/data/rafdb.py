"""RAF-DB (Li et al., CVPR 2017), basic expressions, in the layout its owners distribute::

    EmoLabel/list_patition_label.txt         "train_00001.jpg 5", one line per image
    Image/aligned/train_00001_aligned.jpg    100 x 100, aligned by the owners

Labels are 1..7 on disk. Label 8, contempt, is this package's own extension for drawn faces.
"""

from __future__ import annotations

import os

from cfmrfn.data.samples import EXPRESSIONS, ExpressionSet, Sample
from cfmrfn.errors import DataError

LABEL_FILE = os.path.join("EmoLabel", "list_patition_label.txt")
IMAGE_FOLDER = os.path.join("Image", "aligned")
NATIVE_CLASSES = 7

_PUBLISHED = {
    "train": (1290, 281, 717, 4772, 1982, 705, 2524),
    "test": (329, 74, 160, 1185, 478, 162, 680),
}


def aligned_name(listed_name: str) -> str:
    """File name of the aligned image for a name in the label file: train_00001_aligned.jpg."""
    stem, extension = os.path.splitext(listed_name)
    return f"{stem}_aligned{extension}"


def recognise(root: str) -> bool:
    """Whether `root`, or the archive's own top folder `basic` in it, is RAF-DB."""
    return os.path.isfile(os.path.join(_base(root), LABEL_FILE))


def load(root: str, classes: int | None = None) -> ExpressionSet:
    """Reads the label file.

    Args:
        root: folder of the set.
        classes: 7 or 8. None: 8 where label 8 occurs, else 7.

    Raises:
        DataError: a file or folder is missing, or a line or label is not legal.
    """
    base = _base(root)
    label_file = os.path.join(base, LABEL_FILE)
    folder = os.path.join(base, IMAGE_FOLDER)
    if not os.path.isfile(label_file):
        raise DataError(f"{label_file} is missing: RAF-DB's root holds EmoLabel and Image")
    if not os.path.isdir(folder):
        raise DataError(f"{folder} is missing: the labels are for RAF-DB's own aligned images")

    highest = min(classes or len(EXPRESSIONS), len(EXPRESSIONS))
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    with open(label_file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{label_file}, line {number}: {line.strip()!r}"
            fields = line.split()
            if len(fields) != 2 or not fields[1].isdecimal():
                raise DataError(f'{where}: expected "train_00001.jpg 5"')
            listed_name, label = fields[0], int(fields[1])
            split = listed_name.partition("_")[0]
            if split not in splits:
                raise DataError(f"{where}: image names begin with train_ or test_")
            if not 1 <= label <= highest:
                raise DataError(f"{where}: label {label}, but legal labels are 1 to {highest}")
            path = os.path.join(folder, aligned_name(listed_name))
            splits[split].append(Sample(path, label - 1))

    found = max((sample.label + 1 for split in splits.values() for sample in split), default=0)
    class_names = EXPRESSIONS[: classes or max(found, NATIVE_CLASSES)]
    published = {
        split: dict(zip(class_names, counts, strict=False)) for split, counts in _PUBLISHED.items()
    }
    return ExpressionSet("RAF-DB", class_names, splits, published=published)


def _base(root: str) -> str:
    nested = os.path.join(root, "basic")
    return nested if os.path.isfile(os.path.join(nested, LABEL_FILE)) else root
