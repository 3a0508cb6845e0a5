"""FERPlus (Barsoum et al., ICMI 2016): FER2013's images with the votes of ten taggers.

Its owners publish `fer2013new.csv` (Usage, Image name, ten columns of votes); pixels are in
FER2013's `fer2013.csv` (emotion, pixels, Usage), or its newer copy `icml_face_data.csv` (emotion,
Usage, pixels), joined by row. `prepare` writes the images as the owners' script does, into
`FER2013Train`, `FER2013Valid` and `FER2013Test`.

A label is made from votes by one of three rules in use, which keep different images:

* `majority`, the owners': single votes are dropped as outliers, the winner needs more than half
  of the others, and images whose winner is "unknown" or "no face" are left out.
* `argmax10`: the most votes of all ten columns; "unknown" and "no face" are left out.
* `argmax8`: the most votes of the eight expressions.

Training may keep more images than results are compared on: `load` takes a rule for each.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from cfmrfn.data.files import is_visible
from cfmrfn.data.label_files import check_name, number, place, rows_of
from cfmrfn.data.samples import AS_FOUND, ExpressionSet, Sample, SetOptions
from cfmrfn.errors import DataError, brief

CLASS_NAMES = (
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
)
VOTES_FILE = "fer2013new.csv"
PIXELS_FILES = ("fer2013.csv", "icml_face_data.csv")

_PIXELS_COLUMNS = ("emotion", "pixels", "Usage")
_COLUMNS = ["Usage", "Image name", *CLASS_NAMES, "unknown", "NF"]
_USAGES = {
    "Training": ("train", "FER2013Train"),
    "PublicTest": ("val", "FER2013Valid"),
    "PrivateTest": ("test", "FER2013Test"),
}
_SIDE = 48

# Images of each class that the rules keep of the published file.
_PUBLISHED = {
    "majority": {
        "train": (8740, 7287, 3149, 3014, 2100, 119, 532, 119),
        "val": (1182, 865, 415, 351, 287, 24, 62, 13),
        "test": (1090, 893, 396, 384, 273, 18, 83, 16),
    },
    "argmax10": {
        "train": (10309, 7528, 3562, 3515, 2467, 191, 652, 165),
        "val": (1335, 899, 456, 412, 319, 34, 74, 24),
        "test": (1262, 928, 444, 444, 325, 23, 93, 27),
    },
    "argmax8": {
        "train": (10388, 7539, 3588, 3549, 2478, 194, 656, 167),
        "val": (1347, 899, 459, 418, 320, 36, 75, 25),
        "test": (1278, 929, 446, 448, 326, 23, 94, 29),
    },
}


class _Row(NamedTuple):
    """One named image of the votes file."""

    line: int
    usage: str
    image: str
    votes: tuple[int, ...]  # ten


class _Verdict(NamedTuple):
    """What a rule makes of an image: a label with the votes it rests on, or why there is none."""

    label: int | None
    votes: tuple[int, ...]  # eight
    reason: str = ""


def majority(votes: tuple[int, ...]) -> _Verdict:
    """The owners' rule, see the docstring of the module."""
    kept = tuple(0 if count == 1 else count for count in votes)
    most = max(kept)
    label = kept.index(most)
    if label >= len(CLASS_NAMES):
        return _Verdict(None, kept[:8], "unknown or no face")
    if 2 * most <= sum(kept):
        return _Verdict(None, kept[:8], "no majority")
    return _Verdict(label, kept[:8])


def argmax10(votes: tuple[int, ...]) -> _Verdict:
    """The most votes of all columns, see the docstring of the module."""
    most = max(votes)
    label = votes.index(most)
    if not most or label >= len(CLASS_NAMES):
        return _Verdict(None, votes[:8], "unknown or no face")
    return _Verdict(label, votes[:8])


def argmax8(votes: tuple[int, ...]) -> _Verdict:
    """The most votes of the expressions, see the docstring of the module."""
    most = max(votes[:8])
    if not most:
        return _Verdict(None, votes[:8], "unknown or no face")
    return _Verdict(votes.index(most), votes[:8])


Rule = Callable[[tuple[int, ...]], _Verdict]


def recognise(root: str) -> bool:
    """Whether `root` holds the votes file."""
    return os.path.isfile(os.path.join(root, VOTES_FILE))


def load(
    root: str,
    options: SetOptions = AS_FOUND,
    *,
    rule: Rule = majority,
    evaluation_rule: Rule | None = None,
) -> ExpressionSet:
    """Reads the votes and labels the images by a rule.

    Samples carry the votes that the rule kept for the eight expressions, scaled to sum to 1.

    Args:
        root: folder of the votes file and of the three image folders.
        options: 7 classes leave contempt out; 8 or None: all.
        rule: `majority`, `argmax10` or `argmax8`.
        evaluation_rule: that of validation and test images. None: the same.

    Raises:
        DataError: a folder is missing, or a row is not legal.
    """
    rules = dict.fromkeys(("val", "test"), evaluation_rule or rule) | {"train": rule}
    splits: dict[str, list[Sample]] = {}
    folders = {usage: os.path.join(root, folder) for usage, (_, folder) in _USAGES.items()}
    absent = [folder for folder in folders.values() if not os.path.isdir(folder)]
    if len(absent) == len(folders) or (absent and options.training):
        raise DataError(
            f"{absent[0]} is missing: put {' or '.join(PIXELS_FILES)} beside {VOTES_FILE} and run "
            f"python -m cfmrfn.data prepare {root}"
        )
    for usage, (split, _) in _USAGES.items():
        if folders[usage] not in absent:
            splits[split] = []
    dropped: Counter[str] = Counter()
    unnamed = {
        usage: set(filter(is_visible, os.listdir(folder)))
        for usage, folder in folders.items()
        if folder not in absent
    }
    for row in _rows(root):
        split = _USAGES[row.usage][0]
        if split not in splits:
            continue
        if not row.image:
            dropped["no image name"] += 1
            continue
        unnamed[row.usage].discard(row.image)
        verdict = rules[split](row.votes)
        if verdict.label is None:
            dropped[verdict.reason] += 1
            continue
        total = sum(verdict.votes)
        votes = tuple(count / total for count in verdict.votes)
        path = os.path.join(folders[row.usage], row.image)
        check_name(path, f"{os.path.join(root, VOTES_FILE)}, line {row.line}")
        splits[split].append(Sample(path, verdict.label, votes=votes))
    dropped[f"file that {VOTES_FILE} does not name"] = sum(map(len, unnamed.values()))
    published = {
        split: dict(zip(CLASS_NAMES, _PUBLISHED[chosen.__name__][split], strict=True))
        for split, chosen in rules.items()
    }
    name = f"FERPlus ({rule.__name__})"
    if evaluation_rule is not None:
        name = f"FERPlus ({rule.__name__} to train, {evaluation_rule.__name__} to evaluate)"
    loaded = ExpressionSet(name, CLASS_NAMES, splits, dropped=+dropped, published=published)
    return loaded.mapped_to(CLASS_NAMES[:7]) if options.classes == 7 else loaded


def prepare(root: str, *, progress: bool = True) -> dict[str, int]:
    """Writes the images of FER2013's file of pixels as PNG, under the names in `fer2013new.csv`.

    The three folders appear when all is written.

    Args:
        root: holds both files; the folders go there.
        progress: show a progress bar.

    Returns:
        Folder -> number of images.

    Raises:
        DataError: the folders exist already, a file is missing, a row is not legal, or the files
            do not belong together.
    """
    candidates = [os.path.join(root, name) for name in PIXELS_FILES]
    pixels_file = next(filter(os.path.isfile, candidates), candidates[0])
    for path in (os.path.join(root, VOTES_FILE), pixels_file):
        if not os.path.isfile(path):
            raise DataError(
                f"{path} is missing: prepare needs {VOTES_FILE} and {' or '.join(PIXELS_FILES)}"
            )
    folders = [folder for _, folder in _USAGES.values()]
    for folder in folders:
        if os.path.exists(os.path.join(root, folder)):
            raise DataError(f"{os.path.join(root, folder)} exists already")
    rows = list(_rows(root))
    counts: Counter[str] = Counter(dict.fromkeys(folders, 0))
    with ExitStack() as stack:
        unfinished = tempfile.mkdtemp(prefix=".unfinished-", dir=root)
        stack.callback(shutil.rmtree, unfinished, ignore_errors=True)
        for folder in folders:
            os.mkdir(os.path.join(unfinished, folder))
        lines = rows_of(pixels_file)
        _, header = next(lines, (1, []))
        columns = [name.strip() for name in header]
        if sorted(columns) != sorted(_PIXELS_COLUMNS):
            raise DataError(
                f"{pixels_file}, line 1: expected the header {','.join(_PIXELS_COLUMNS)}"
            )
        usage, pixels = columns.index("Usage"), columns.index("pixels")
        bar = tqdm(rows, desc="writing images", unit="image", disable=not progress)
        for row, (row_number, line) in zip(
            bar, _as_many(lines, len(rows), pixels_file), strict=True
        ):
            where = f"{pixels_file}, line {row_number}"
            if len(line) != len(columns):
                raise DataError(f"{where}: {len(line)} columns, expected {','.join(columns)}")
            if line[usage].strip() != row.usage:
                raise DataError(
                    f"{where}: Usage is {brief(line[usage])}, but {row.usage!r} in {VOTES_FILE}; "
                    f"the files are joined by row"
                )
            if row.image:
                folder = _USAGES[row.usage][1]
                image = Image.fromarray(_pixels(line[pixels], where))
                # the file says how it is named, but not in which format it is written
                image.save(os.path.join(unfinished, folder, row.image), "PNG")
                counts[folder] += 1
        for folder in folders:
            os.rename(os.path.join(unfinished, folder), os.path.join(root, folder))
    return dict(counts)


def _rows(root: str) -> Iterator[_Row]:
    path = os.path.join(root, VOTES_FILE)
    lines = rows_of(path)
    _, header = next(lines, (1, []))
    if header != _COLUMNS:
        raise DataError(f"{path}, line 1: expected the header {','.join(_COLUMNS)}")
    for line, row in lines:
        where = place(path, line, ",".join(row))
        votes = [count for field in row[2:] if (count := number(field)) is not None]
        if len(row) != len(_COLUMNS) or len(votes) < len(row) - 2:
            raise DataError(f"{where}: expected Usage, image name and ten counts of votes")
        if row[0] not in _USAGES:
            raise DataError(f"{where}: Usage is none of {', '.join(_USAGES)}")
        image = row[1].strip()
        if image != os.path.basename(image) or image in (".", "..") or "\0" in image:
            raise DataError(
                f"{where}: the name of an image must be that of a file, without a folder"
            )
        yield _Row(line, row[0], image, tuple(votes))


def _as_many(
    lines: Iterator[tuple[int, list[str]]], count: int, path: str
) -> Iterator[tuple[int, list[str]]]:
    """`count` lines; raises where there are fewer or more."""
    read = 0
    for line in lines:
        read += 1
        if read <= count:
            yield line
    if read != count:
        raise DataError(f"{path} has {read} rows, but {VOTES_FILE} has {count}")


def _pixels(text: str, where: str) -> np.ndarray:
    try:
        # NumPy 1 would make 256 a 0
        pixels = np.frombuffer(bytes(int(number) for number in text.split()), np.uint8)
    except ValueError:
        raise DataError(f"{where}: pixels must be numbers 0 to 255") from None
    if pixels.size != _SIDE * _SIDE:
        raise DataError(f"{where}: {pixels.size} pixels, expected {_SIDE} x {_SIDE}")
    return pixels.reshape(_SIDE, _SIDE)
