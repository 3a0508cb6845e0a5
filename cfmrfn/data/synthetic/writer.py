"""Writes sets of drawn faces in RAF-DB's own layout, and reads them back through its loader.

Beside RAF-DB's folders, `faces.json` describes the set and `landmarks.npz` holds `names`, as
in the label file, and `points` (n, 68, 2), pixels (x, y) in the order of iBUG 300-W.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from cfmrfn.data import rafdb
from cfmrfn.data.parallel import parallel_map
from cfmrfn.data.samples import AS_FOUND, EXPRESSIONS, ExpressionSet, SetOptions
from cfmrfn.data.synthetic.actions import draw_actions
from cfmrfn.data.synthetic.canvas import Array
from cfmrfn.data.synthetic.face import Face, draw_identity, draw_pose
from cfmrfn.data.synthetic.look import draw_camera, draw_look
from cfmrfn.data.synthetic.paint import paint_face, photograph
from cfmrfn.errors import DataError
from cfmrfn.whole_files import beside, named, save_image

# To be increased by any change after which the same seed draws other pictures.
VERSION = 1
DESCRIPTION_FILE = "faces.json"
LANDMARK_FILE = "landmarks.npz"


Description = dict[str, int | str]


class DrawnFace(NamedTuple):
    """A picture of a face, and what is known of it."""

    image: Image.Image
    landmarks: Array  # (68, 2), pixels
    jpeg_quality: int


class _Order(NamedTuple):
    """One face to draw: its name in the label file, its label from 0, and what seeds it."""

    name: str
    label: int
    seeds: tuple[int, ...]


def draw_face(expression: str, size: int, seeds: Sequence[int]) -> DrawnFace:
    """Draws one face, `size` pixels on a side; the same arguments give the same pixels."""
    rng = np.random.default_rng(seeds)
    face = Face(draw_identity(rng), draw_actions(rng, expression))
    look, pose, camera = draw_look(rng), draw_pose(rng, size), draw_camera(rng)
    image = photograph(paint_face(face, look, pose, size, rng), camera, rng)
    return DrawnFace(image, pose.project(face.landmarks()), camera.jpeg_quality)


def write_faces(
    root: str | Path,
    *,
    classes: int = 7,
    train: int = 2100,
    test: int = 700,
    size: int = 128,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Draws a set of faces into `root`, unless it is there already.

    The set is drawn in a temporary folder beside `root` and renamed, so it is whole or absent. The
    pictures depend on the arguments up to `seed` only.

    Args:
        root: folder to make.
        classes: 7 expressions, or 8 with contempt.
        train, test: number of faces in each split.
        size: side of the images, in pixels.
        seed: seed of everything random.
        workers: processes that draw.
        progress: show a progress bar.

    Returns:
        `root`

    Raises:
        DataError: an argument is out of range, or `root` holds something else, or faces drawn
            with other arguments.
    """
    _check(classes, size, seed)
    for name, count in (("train", train), ("test", test)):
        if count < classes:
            raise DataError(f"{name} must be at least one face per class ({classes}), got {count}")
    root = Path(root)
    description: Description = {
        "what": "faces drawn by cfmrfn",
        "version": VERSION,
        "classes": classes,
        "train": train,
        "test": test,
        "size": size,
        "seed": seed,
    }
    if _holds(root, description):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = beside(Path(os.path.abspath(root)))
    try:
        with named(root):
            _write(unfinished, description, workers, progress)
        try:
            unfinished.rename(root)
        except OSError:
            # another process may have drawn the same set meanwhile
            if not _holds(root, description):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def recognise(root: str) -> bool:
    """Whether `root` holds drawn faces."""
    return os.path.isfile(os.path.join(root, DESCRIPTION_FILE))


def load(root: str, options: SetOptions = AS_FOUND) -> ExpressionSet:
    """Reads drawn faces through RAF-DB's loader; published counts are those that were ordered."""
    description = _description(Path(root))
    drawn = rafdb.load(root, options)
    published = {
        split: dict(zip(drawn.class_names, _per_class(description, split), strict=False))
        for split in drawn.splits
    }
    return replace(drawn, name="drawn faces", published=published)


def contact_sheet(
    classes: int = 7, columns: int = 8, size: int = 128, seed: int = 0
) -> Image.Image:
    """A picture to look at: one labelled row of `columns` faces per expression."""
    _check(classes, size, seed)
    label_width, gap = 84, 2
    cell = size + gap
    sheet = Image.new("RGB", (label_width + columns * cell, classes * cell), "white")
    pen = ImageDraw.Draw(sheet)
    for row, expression in enumerate(EXPRESSIONS[:classes]):
        pen.text((6, row * cell + size // 2), expression, fill="black")
        for column in range(columns):
            face = draw_face(expression, size, (seed, row, column))
            sheet.paste(face.image, (label_width + column * cell, row * cell))
    return sheet


def _check(classes: int, size: int, seed: int) -> None:
    if classes not in (7, 8):
        raise DataError(f"classes must be 7 or 8 (with contempt), got {classes}")
    if size < 32:
        raise DataError(f"size must be at least 32 pixels, got {size}")
    if seed < 0:
        raise DataError(f"seed must not be negative, got {seed}")


def _write(folder: Path, description: Description, workers: int, progress: bool) -> None:
    images = folder / rafdb.IMAGE_FOLDER
    images.mkdir(parents=True)
    orders = [*_orders(description, "train", 0), *_orders(description, "test", 1)]
    task = partial(_save_one, str(images), int(description["size"]))
    points = parallel_map(
        task, orders, workers=workers, desc="drawing faces", unit="face", progress=progress
    )
    names = np.array([order.name for order in orders])
    np.savez_compressed(folder / LANDMARK_FILE, names=names, points=np.stack(points))
    label_file = folder / rafdb.LABEL_FILE
    label_file.parent.mkdir()
    label_file.write_text("".join(f"{order.name} {order.label + 1}\n" for order in orders), "utf-8")
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", "utf-8")


def _orders(description: Description, split: str, split_seed: int) -> Iterable[_Order]:
    seed = int(description["seed"])
    labels = np.repeat(np.arange(int(description["classes"])), _per_class(description, split))
    shuffled = np.random.default_rng((seed, split_seed)).permutation(labels).tolist()
    for number, label in enumerate(shuffled, start=1):
        yield _Order(f"{split}_{number:05d}.jpg", label, (seed, split_seed, number))


def _per_class(description: Description, split: str) -> list[int]:
    """Faces of each class: as equal as the count allows."""
    total, classes = int(description[split]), int(description["classes"])
    return [total // classes + (label < total % classes) for label in range(classes)]


def _save_one(folder: str, size: int, order: _Order) -> Array:
    face = draw_face(EXPRESSIONS[order.label], size, order.seeds)
    path = Path(folder, rafdb.aligned_name(order.name))
    with named(path):
        save_image(face.image, path, "JPEG", quality=face.jpeg_quality)
    return face.landmarks


def _holds(root: Path, wanted: Description) -> bool:
    """Whether the wanted set is in `root`; raises where something else is."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not recognise(os.fspath(root)):
        raise DataError(f"{root} exists and holds no drawn faces; name an empty folder")
    found = _description(root)
    if found == wanted:
        return True
    differing = ", ".join(
        f"{key} is {found.get(key)}, wanted {value}"
        for key, value in wanted.items()
        if found.get(key) != value
    )
    raise DataError(f"{root} holds other drawn faces ({differing}); remove it or name another")


def _description(root: Path) -> Description:
    path = root / DESCRIPTION_FILE
    try:
        description: Description = json.loads(path.read_text("utf-8"))
        _per_class(description, "train")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not describe drawn faces: {error}") from error
    return description
