"""RAF-DB (Li et al., CVPR 2017), basic expressions, in the layout its owners distribute::

    EmoLabel/list_patition_label.txt         "train_00001.jpg 5", one line per image
    Image/aligned/train_00001_aligned.jpg    100 x 100, aligned by the owners

Labels are 1..7 on disk. Label 8, contempt, is this package's own extension for drawn faces.
"""

from __future__ import annotations

import os

from cfmrfn.data.files import holds_image, is_visible
from cfmrfn.data.label_files import check_name, lines_of, number, place
from cfmrfn.data.samples import AS_FOUND, EXPRESSIONS, ExpressionSet, Sample, SetOptions
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


def load(root: str, options: SetOptions = AS_FOUND) -> ExpressionSet:
    """Reads the label file.

    Args:
        root: folder of the set.
        options: not used. There are 8 classes where label 8 occurs, else 7; `open_set` checks their
            number.

    Raises:
        DataError: a file or folder is missing, or a line or label is not legal.
    """
    base = _base(root)
    label_file = os.path.join(base, LABEL_FILE)
    folder = os.path.join(base, IMAGE_FOLDER)
    if not os.path.isfile(label_file):
        raise DataError(f"{label_file} is missing: RAF-DB's root holds EmoLabel and Image")
    if not os.path.isdir(folder):
        original = os.path.join(base, "Image", "original")
        instead = ""
        if os.path.isdir(original) and holds_image(original):
            instead = f", and {original} holds whole photographs; unpack aligned.zip beside it"
        raise DataError(
            f"{folder} is missing: the labels are for RAF-DB's own aligned images{instead}"
        )

    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    listed: dict[str, int] = {}
    repeated = 0
    for line_number, line in enumerate(lines_of(label_file), start=1):
        if not line.strip():
            continue
        where = place(label_file, line_number, line.strip())
        fields = line.split()
        label = number(fields[1]) if len(fields) == 2 else None
        if label is None:
            raise DataError(f'{where}: expected "train_00001.jpg 5"')
        listed_name = fields[0]
        split = listed_name.partition("_")[0]
        if split not in splits:
            raise DataError(f"{where}: image names begin with train_ or test_")
        if not 1 <= label <= len(EXPRESSIONS):
            raise DataError(f"{where}: label {label}, but legal labels are 1 to {len(EXPRESSIONS)}")
        path = os.path.join(folder, aligned_name(listed_name))
        check_name(path, where)
        if listed_name in listed:
            if listed[listed_name] != label:
                raise DataError(f"{where}: in a line before it, label {listed[listed_name]}")
            repeated += 1
            continue
        listed[listed_name] = label
        splits[split].append(Sample(path, label - 1))

    unlabelled = _unlabelled(folder, list(listed))
    found = max((sample.label + 1 for split in splits.values() for sample in split), default=0)
    class_names = EXPRESSIONS[: max(found, NATIVE_CLASSES)]
    published = {
        split: dict(zip(class_names, counts, strict=False)) for split, counts in _PUBLISHED.items()
    }
    dropped = {
        f"file in {IMAGE_FOLDER} without a label": unlabelled,
        f"line of {LABEL_FILE} that says again what one before it says": repeated,
    }
    dropped = {reason: count for reason, count in dropped.items() if count}
    return ExpressionSet("RAF-DB", class_names, splits, dropped=dropped, published=published)


def _unlabelled(folder: str, listed_names: list[str]) -> int:
    """Files that the label file does not name; raises where their names lack `_aligned`."""
    present = set(filter(is_visible, os.listdir(folder)))
    aligned = {aligned_name(name) for name in listed_names}
    if present and not present & aligned and (plain := present & set(listed_names)):
        example = min(plain)
        raise DataError(
            f"{folder} holds {example}, but not {aligned_name(example)}: the labels are for "
            f"RAF-DB's own aligned images. If these are they, rename them so; other crops give "
            f"other results: use them as class folders (train/happiness/{example})"
        )
    return len(present - aligned)


def _base(root: str) -> str:
    nested = os.path.join(root, "basic")
    return nested if os.path.isfile(os.path.join(nested, LABEL_FILE)) else root
