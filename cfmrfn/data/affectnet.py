"""AffectNet (Mollahosseini et al., IEEE TAC 2017), manually annotated, in both public layouts.

The full release lists its images in two CSV files, of which only the first has a header. Under a
header columns may be in any order::

    Manually_Annotated_file_lists/training.csv, validation.csv
    Manually_Annotated_Images/689/737db2483489148d783ef278f43f486c0a97e140fc4b6b61b84363ca.jpg

The reduced release has one array file per image::

    train_set/images/0.jpg   train_set/annotations/0_exp.npy   (and val_set)

Labels are 0..7; the CSV files also hold 8 to 10 (none, uncertain, no face), which are left out.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from cfmrfn.data.files import is_visible
from cfmrfn.data.label_files import check_name, number, place, rows_of
from cfmrfn.data.samples import AS_FOUND, Box, ExpressionSet, Sample, SetOptions
from cfmrfn.errors import DataError, brief

CLASS_NAMES = (
    "neutral",
    "happiness",
    "sadness",
    "surprise",
    "fear",
    "disgust",
    "anger",
    "contempt",
)

_LISTS = {
    "train": os.path.join("Manually_Annotated_file_lists", "training.csv"),
    "val": os.path.join("Manually_Annotated_file_lists", "validation.csv"),
}
_IMAGE_FOLDERS = (
    "Manually_Annotated_Images",
    os.path.join("Manually_Annotated", "Manually_Annotated_Images"),
    "Manually_Annotated",
)
_COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
    "valence",
    "arousal",
)
_BOX = ("face_x", "face_y", "face_width", "face_height")
_LEFT_OUT = {8: "label 8 (none)", 9: "label 9 (uncertain)", 10: "label 10 (no face)"}
_FOLDERS = {"train": "train_set", "val": "val_set"}

_PUBLISHED = {
    "train": (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750),
    "val": (500, 500, 500, 500, 500, 500, 500, 499),
}


def recognise(root: str) -> bool:
    """Whether `root` holds a list, or a folder of the array files."""
    return _has_lists(root) or any(
        os.path.isdir(os.path.join(root, folder, "annotations")) for folder in _FOLDERS.values()
    )


def load(root: str, options: SetOptions = AS_FOUND) -> ExpressionSet:
    """Reads either layout.

    Args:
        root: folder of the set.
        options: 7 classes leave contempt out, as AffectNet-7 does; 8 or None: all.

    Raises:
        DataError: a file is missing, or a row or label is not legal.
    """
    read = _load_lists if _has_lists(root) else _load_arrays
    published = {
        split: dict(zip(CLASS_NAMES, counts, strict=True)) for split, counts in _PUBLISHED.items()
    }
    loaded = replace(read(root, options), published=published)
    return loaded.mapped_to(CLASS_NAMES[:7]) if options.classes == 7 else loaded


def _has_lists(root: str) -> bool:
    return any(os.path.isfile(os.path.join(root, path)) for path in _LISTS.values())


def _load_lists(root: str, options: SetOptions) -> ExpressionSet:
    candidates = [os.path.join(root, folder) for folder in _IMAGE_FOLDERS]
    folder = next((path for path in candidates if os.path.isdir(path)), None)
    if folder is None:
        raise DataError(f"{candidates[0]} is missing: AffectNet's images belong there")
    lists = {split: os.path.join(root, path) for split, path in _LISTS.items()}
    dropped: Counter[str] = Counter()
    splits = {
        split: _read_list(path, folder, options.boxes, dropped)
        for split, path in lists.items()
        if options.training or os.path.isfile(path)
    }
    return ExpressionSet("AffectNet", CLASS_NAMES, splits, dropped=dict(dropped), takes=("boxes",))


def _read_list(path: str, folder: str, boxes: bool, dropped: Counter[str]) -> list[Sample]:
    samples = []
    columns: tuple[str, ...] = _COLUMNS
    needed = ("subDirectory_filePath", *(_BOX if boxes else ()), "expression")
    for index, (line, row) in enumerate(rows_of(path)):
        where = place(path, line, ",".join(row))
        if index == 0 and (header := _header(row)):
            columns = header
            if lacking := [name for name in needed if columns.count(name) != 1]:
                raise DataError(
                    f"{where}: there must be one column {' and one '.join(lacking)}; "
                    f"expected {', '.join(needed)}"
                )
            continue
        if len(row) != len(columns):
            raise DataError(f"{where}: {len(row)} columns, expected {', '.join(columns)}")
        fields = dict(zip(columns, row, strict=True))
        label = number(fields["expression"])
        if label is None or label > 10:
            raise DataError(
                f"{where}: expression {brief(fields['expression'])}, but legal labels are 0 to 10"
            )
        if label in _LEFT_OUT:
            dropped[_LEFT_OUT[label]] += 1
            continue
        box = _box([fields[name] for name in _BOX], where) if boxes else None
        image = os.path.join(folder, *fields["subDirectory_filePath"].split("/"))
        check_name(image, where)
        samples.append(Sample(image, label, box=box))
    return samples


def _header(row: list[str]) -> tuple[str, ...]:
    """The names of the columns, known ones as in `_COLUMNS`; empty: the row has none of these."""
    known = {name.lower(): name for name in _COLUMNS}
    names = [known.get(field.strip().lower(), field.strip()) for field in row]
    return tuple(names) if set(names).intersection(_COLUMNS) else ()


def _box(fields: list[str], where: str) -> Box:
    try:
        left, top, width, height = (int(float(field)) for field in fields)
    except (ValueError, OverflowError):
        raise DataError(f"{where}: the face box is not four numbers") from None
    if width <= 0 or height <= 0:
        raise DataError(f"{where}: the face box is empty ({width} x {height})")
    return left, top, left + width, top + height


def _load_arrays(root: str, options: SetOptions) -> ExpressionSet:
    splits = {}
    dropped: Counter[str] = Counter()
    for split, name in _FOLDERS.items():
        images = os.path.join(root, name, "images")
        annotations = os.path.join(root, name, "annotations")
        if not options.training and not os.path.isdir(os.path.join(root, name)):
            continue
        for folder in (images, annotations):
            if not os.path.isdir(folder):
                raise DataError(f"{folder} is missing: AffectNet has {name}/images and annotations")
        suffix = "_exp.npy"
        stems = [
            name.removesuffix(suffix)
            for name in os.listdir(annotations)
            if name.endswith(suffix) and is_visible(name)
        ]
        unlabelled = {name for name in os.listdir(images) if is_visible(name)}
        unlabelled -= {f"{stem}.jpg" for stem in stems}
        dropped[f"file in {name}/images without a label in {name}/annotations"] = len(unlabelled)
        # by number, 10 after 9, in whatever order the file system lists them
        stems.sort(key=lambda stem: (len(stem), stem))
        reading = tqdm(stems, desc=f"reading {split} labels", unit="file", delay=2, leave=False)
        splits[split] = [
            Sample(
                os.path.join(images, f"{stem}.jpg"),
                _read_array(os.path.join(annotations, stem + suffix)),
            )
            for stem in reading
        ]
    return ExpressionSet("AffectNet (array files)", CLASS_NAMES, splits, dropped=+dropped)


def _read_array(path: str) -> int:
    try:
        with open(path, "rb") as file:
            label = int(np.load(file, allow_pickle=False))  # the release holds strings, such as "3"
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # NumPy has many ways to say that a file is damaged
        # and advises to trust it, which can run code
        raise DataError(f"{path} holds no label: it must be a NumPy array of one number") from error
    if not 0 <= label < len(CLASS_NAMES):
        raise DataError(f"{path}: label {label}, but legal labels are 0 to 7")
    return label
