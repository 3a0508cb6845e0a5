"""Which files of a folder are images, and how many were left out, and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from cfmrfn.data.reading import (
    HEIC_NEEDS,
    HEIC_SUFFIXES,
    heic_is_readable,
    is_photograph,
)
from cfmrfn.errors import DataError, printable

# Of what Pillow decodes, the kinds that faces are kept in.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif",
    ".tiff", ".pgm", ".ppm", ".pnm", ".pbm", ".jp2", ".avif",
)  # fmt: skip

# What systems leave in folders: macOS in archives, Synology beside images, others on disks.
_SYSTEM_NAMES = (
    *("__MACOSX", "@eaDir", "#recycle"),
    *("$RECYCLE.BIN", "System Volume Information", "lost+found"),
)


class FoundImages(NamedTuple):
    """What `find_images` found.

    Attributes:
        paths: of the images, sorted by name within each folder.
        left_out: number of other files, by reason.
    """

    paths: list[str]
    left_out: Mapping[str, int]


def check_folder(root: str | os.PathLike[str]) -> None:
    """Raises DataError where the folder of a data set is missing or is a file."""
    if not os.path.isdir(root):
        what = "is a file" if os.path.exists(root) else "does not exist"
        raise DataError(f"data folder {root} {what}")


def find_images(folder: str | os.PathLike[str], also: Sequence[str] = ()) -> FoundImages:
    """The images in a folder and in the folders within it, through links too.

    What begins with a dot, `__MACOSX` and the like are no data of the user's and are passed over.
    Every other file that is not taken is counted.

    Args:
        folder: path of it.
        also: suffixes, in lower case, of files that are taken beside images.

    Raises:
        OSError: a folder cannot be listed.
    """
    paths: list[str] = []
    left_out: Counter[str] = Counter()
    for path in _files(os.fspath(folder)):
        is_other = os.path.splitext(path)[1].lower() in also
        if not is_other and (reason := why_no_image(path)):
            left_out[reason] += 1
        else:
            paths.append(path)
    return FoundImages(paths, left_out)


def holds_image(folder: str) -> bool:
    """Whether `find_images` would find any."""
    return any(why_no_image(path) is None for path in _files(folder))


def is_visible(name: str) -> bool:
    """False for what systems and notebooks leave in folders, such as `.DS_Store`."""
    return not name.startswith(".") and name not in _SYSTEM_NAMES


def why_no_image(path: str) -> str | None:
    """None if a file is an image by its name, else the reason.

    A file whose name has no suffix, or a number for one, is an image if it begins as one.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    if suffix in HEIC_SUFFIXES:
        return None if heic_is_readable() else HEIC_NEEDS
    if suffix in ("", ".") or suffix[1:].isdecimal():
        is_image = os.path.isfile(path) and is_photograph(path)
        return None if is_image else "no image by its content (no suffix)"
    return f"no image by its name ({printable(suffix)})"


def _files(folder: str) -> Iterator[str]:
    # links may lead back to a folder that contains them
    seen = set()
    for inside, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(inside)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(is_visible, folders))
        yield from (os.path.join(inside, name) for name in sorted(filter(is_visible, names)))


def _raise(error: OSError) -> None:
    raise error
