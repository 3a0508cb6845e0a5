"""Images that occur more than once in a data set: the same pixels, or nearly the same picture.

Where one copy is in the training split and the other in the test split, results are better than
they should be; where their labels differ, one of them is wrong.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cfmrfn.data.reading import UNREADABLE, read_image
from cfmrfn.data.samples import Sample
from cfmrfn.errors import printable_name
from cfmrfn.process.cores import available_cores
from cfmrfn.whole_files import CsvFile, whole

# Small grey copies that correlate so are taken for one picture. Of FERPlus's pictures, copies as
# JPEG of quality 60, at twice the size, at three quarters of it (99 of 100), or of less contrast
# reach it; of its 574 million pairs of different pictures, 618 do, and all of these agree in fine
# detail as well (by 0.43 or more, where pairs drawn at random reach 0.26).
_ALIKE = 0.985
_SIDE = 16
_LEAST_CONTRAST = 4.0  # standard deviation in grey levels; flatter pictures are alike by chance
_COMPONENTS = 32
_TILE = 1024  # pictures compared with as many at a time, which stays in the cache
_NAMED = 6  # images that the sentence about a group names

# Bytes of image files that are read unasked to find copies, which takes seconds: FERPlus has 76 MB.
UNASKED = 200_000_000
NOT_LOOKED_FOR = (
    f"duplicates are not looked for, as the images have more than {UNASKED // 10**6} MB; "
    "--drop-duplicates finds evaluation images that are training images too, and leaves them out"
)


class Fingerprint(NamedTuple):
    """What tells pictures apart: a hash of the pixels, and a small grey copy of 16 x 16 bytes."""

    pixels: bytes
    small: bytes


class Copy(NamedTuple):
    """One image of a group."""

    path: str
    split: str
    class_name: str


class Group(NamedTuple):
    """Images that are one picture: pixel for pixel (`same`), or nearly."""

    same: bool
    copies: tuple[Copy, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits it is in, each once."""
        return tuple(dict.fromkeys(copy.split for copy in self.copies))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes it has, each once."""
        return tuple(dict.fromkeys(copy.class_name for copy in self.copies))

    def __str__(self) -> str:
        what = "the same pixel for pixel" if self.same else "nearly the same"
        labels = f"with different labels ({', '.join(self.class_names)})"
        if len(self.class_names) == 1:
            labels = f"all {self.class_names[0]}"
        named = [f"{printable_name(copy.path)} ({copy.split})" for copy in self.copies[:_NAMED]]
        if len(self.class_names) > 1:
            named = [
                f"{printable_name(copy.path)} ({copy.split}, {copy.class_name})"
                for copy in self.copies[:_NAMED]
            ]
        more = len(self.copies) - len(named)
        return (
            f"{len(self.copies)} images are {what}, in {' and '.join(self.splits)}, {labels}: "
            f"{', '.join(named)}{f' and {more} more' if more else ''}"
        )


def fingerprint(image: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB image, as `read_image` returns it at full size."""
    # reducing_gap shrinks large pictures in whole steps first, which is several times faster
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=2).convert("L")
    return Fingerprint(_pixels(image), small.tobytes())


def _pixels(image: Image.Image) -> bytes:
    digest = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def copies_of_training_images(
    samples: Sequence[Sample], training: Sequence[Sample], at_most: int | None = None
) -> frozenset[Sample] | None:
    """Those of `samples` that are pixel for pixel one of the `training` images.

    Images that cannot be read are none. A bar is shown on a terminal.

    Args:
        samples: images to evaluate on.
        training: images that were trained on.
        at_most: bytes of image files that are read at most. None: all.

    Returns:
        None where the files have more than `at_most` bytes: it is not known.
    """
    if at_most is not None and not _have_at_most(at_most, [*samples, *training]):
        return None
    # decoding is done without Python's lock, so threads are enough
    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        found = pool.map(_pixels_of, samples)
        by_pixels: dict[bytes | None, list[Sample]] = {}
        for sample, pixels in zip(samples, found, strict=True):
            by_pixels.setdefault(pixels, []).append(sample)
        by_pixels.pop(None, None)
        bar = tqdm(
            total=len(training), desc="finding duplicates", unit="img", leave=False, disable=None
        )
        copies: set[Sample] = set()
        with bar:
            for first in range(0, len(training), 1024):  # map would queue all of them
                some = training[first : first + 1024]
                for pixels in pool.map(_pixels_of, some):
                    copies.update(by_pixels.get(pixels, ()))
                bar.update(len(some))
    return frozenset(copies)


def _pixels_of(sample: Sample) -> bytes | None:
    try:
        return _pixels(read_image(sample))
    except UNREADABLE:
        return None  # named elsewhere


def _have_at_most(most: int, samples: Iterable[Sample]) -> bool:
    total = 0
    for sample in samples:
        with suppress(OSError):
            total += os.stat(sample.path).st_size
        if total > most:
            return False
    return True


def find_groups(copies: Sequence[Copy], fingerprints: Sequence[Fingerprint]) -> list[Group]:
    """Groups of images that are one picture.

    Those with different labels come first, then those in several splits. An image may be in a group
    of the same and in one of nearly the same. Mirrored copies, and other crops of a photograph, are
    not found.

    Args:
        copies: the images.
        fingerprints: of each.
    """
    by_pixels: dict[bytes, list[int]] = {}
    for index, found in enumerate(fingerprints):
        by_pixels.setdefault(found.pixels, []).append(index)
    distinct = list(by_pixels.values())
    groups = [(True, members) for members in distinct if len(members) > 1]
    small = [fingerprints[members[0]].small for members in distinct]
    with _one_thread():
        connected = _connected(len(distinct), _alike_pairs(small))
    for alike in connected:
        groups.append((False, sorted(index for picture in alike for index in distinct[picture])))
    made = [Group(same, tuple(copies[index] for index in members)) for same, members in groups]
    made.sort(key=lambda group: (-len(group.class_names), -len(group.splits), not group.same))
    return made


def write_groups(path: Path, groups: Iterable[Group]) -> None:
    """Writes groups as CSV, one line per image; names of files keep their bytes."""
    with (
        whole(path) as target,
        open(target, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(CsvFile(file))
        writer.writerow(["group", "alike", "split", "class", "image"])
        for number, group in enumerate(groups, start=1):
            alike = "same" if group.same else "nearly"
            writer.writerows(
                [number, alike, copy.split, copy.class_name, copy.path] for copy in group.copies
            )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads would wait for one another after every tile: ten times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _alike_pairs(small: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, of small copies that correlate."""
    if not small:
        return
    grey = torch.from_numpy(
        np.frombuffer(b"".join(small), np.uint8).reshape(len(small), _SIDE**2).astype(np.float32)
    )
    grey -= grey.mean(1, keepdim=True)
    norm = grey.norm(dim=1, keepdim=True)
    # flat pictures become zero, which correlates with nothing
    grey *= (norm > _LEAST_CONTRAST * _SIDE) / norm.clamp(min=1)
    # Every picture against all that follow. Most of a face is in few principal components, and what
    # the others may add is at most the product of their norms; so products of 32 numbers in place
    # of 256 leave few pairs to look at, and miss none.
    main = grey @ torch.linalg.eigh(grey.T @ grey).eigenvectors[:, -(_COMPONENTS - 1) :]
    others = ((grey**2).sum(1) - (main**2).sum(1)).clamp(min=0).sqrt()
    short = torch.cat((main, others[:, None]), 1)
    for first in range(0, len(grey), _TILE):
        for second in range(first, len(grey), _TILE):
            bound = short[first : first + _TILE] @ short[second : second + _TILE].T
            rows, columns = (bound >= _ALIKE).nonzero(as_tuple=True)
            i, j = rows + first, columns + second
            alike = (i < j) & ((grey[i] * grey[j]).sum(1) >= _ALIKE)
            yield from zip(i[alike].tolist(), j[alike].tolist(), strict=True)


def _connected(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The members of each connected component of two or more."""
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    joined: set[int] = set()
    for i, j in pairs:
        parent[root(j)] = root(i)
        joined.update((i, j))
    components: dict[int, list[int]] = {}
    for node in sorted(joined):
        components.setdefault(root(node), []).append(node)
    return list(components.values())
