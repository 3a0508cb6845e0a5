"""Which files of a folder are images, and how many were left out, and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

# Of what Pillow decodes, the kinds that faces are kept in.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif",
    ".tiff", ".pgm", ".ppm", ".pnm", ".pbm", ".jp2", ".avif",
)  # fmt: skip


class FoundImages(NamedTuple):
    """What `find_images` found.

    Attributes:
        paths: of the images, sorted by name within each folder.
        left_out: number of other files, by reason.
    """

    paths: list[str]
    left_out: Mapping[str, int]


def find_images(folder: str | os.PathLike[str]) -> FoundImages:
    """The images in a folder and in the folders within it.

    What begins with a dot, and `__MACOSX`, is no data of the user's and is passed over. Every other
    file that is not taken is counted.
    """
    paths: list[str] = []
    left_out: Counter[str] = Counter()
    for inside, folders, names in os.walk(os.fspath(folder)):
        folders[:] = sorted(name for name in folders if is_visible(name))
        for name in sorted(filter(is_visible, names)):
            path = os.path.join(inside, name)
            if reason := why_no_image(path):
                left_out[reason] += 1
            else:
                paths.append(path)
    return FoundImages(paths, left_out)


def is_visible(name: str) -> bool:
    """False for what systems and notebooks leave in folders, such as `.DS_Store`."""
    return not name.startswith(".") and name != "__MACOSX"


def why_no_image(path: str) -> str | None:
    """None if a file is an image by its name, else the reason."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    return f"no image by its name ({suffix or 'no suffix'})"
