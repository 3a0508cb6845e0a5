"""Decoded images in memory, for sets that fit: each is read once, whatever the epochs."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cfmrfn.data.reading import UNREADABLE, read_image
from cfmrfn.data.samples import Sample
from cfmrfn.errors import DataError

MEMORY_PART = (
    0.25  # of the machine, or of what its control group leaves, for all processes of a run
)

_PIECE = 64 << 20  # bytes of the tensors that hold the images: few, as each may need an open file
_AT_ONCE = 256


@dataclass(frozen=True)
class ImageCache:
    """Pixels of images, as they are decoded.

    Worker processes share the tensors: they are forked, or get them by PyTorch's pickling.

    Attributes:
        pieces: uint8, the pixels of many images one after the other, (channels, height, width)
            each; grey ones have one channel.
        places: int64 (images, 5): piece, first byte in it, channels, height and width; no channels
            where the image could not be read.
    """

    pieces: tuple[Tensor, ...]
    places: Tensor

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor | None:
        """The image, uint8 (1 or 3, height, width); None where it could not be read."""
        piece, first, *shape = self.places[index].tolist()
        if not shape[0]:
            return None
        return self.pieces[piece][first:][: shape[0] * shape[1] * shape[2]].view(shape)

    def part(self, places: slice) -> ImageCache:
        """Some of the images, in the same memory."""
        return ImageCache(self.pieces, self.places[places])

    @property
    def unreadable(self) -> int:
        """How many of the images could not be read."""
        return int((self.places[:, 2] == 0).sum())

    @property
    def is_grey(self) -> bool:
        """Whether every image that could be read is grey."""
        return bool((self.places[:, 2] <= 1).all())

    @property
    def nbytes(self) -> int:
        """Bytes that the images take."""
        return sum(map(len, self.pieces))


def cached(samples: Sequence[Sample], at_least: int | None, limit: int, threads: int) -> ImageCache:
    """Decodes all images, those that cannot be read aside.

    Args:
        samples: the images.
        at_least: as in `read_image`.
        limit: bytes that they may take.
        threads: that decode.

    Raises:
        DataError: they would take more, as is told from the first of them if it can be.
    """
    pieces: list[Tensor] = []
    places = torch.zeros(len(samples), 5, dtype=torch.int64)
    waiting: list[np.ndarray] = []
    total = held = 0
    bar = tqdm(total=len(samples), desc="reading images", unit="img", leave=False, disable=None)
    with bar, ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(samples), _AT_ONCE):
            some = samples[first : first + _AT_ONCE]
            for index, image in enumerate(
                pool.map(lambda one: _decoded(one, at_least), some), first
            ):
                if image is None:
                    continue
                places[index] = torch.tensor([len(pieces), held, *image.shape])
                waiting.append(image.reshape(-1))
                held += image.size
                total += image.size
                if held >= _PIECE:
                    pieces.append(torch.from_numpy(np.concatenate(waiting)))
                    waiting, held = [], 0
            done = first + len(some)
            if (expected := total * len(samples) // done) > limit:
                raise DataError(f"about {expected / 1e6:.1f} MB")
            bar.update(len(some))
    if waiting:
        pieces.append(torch.from_numpy(np.concatenate(waiting)))
    return ImageCache(tuple(pieces), places)


def memory_limit() -> int:
    """Bytes that this process may keep images in."""
    sysconf = getattr(os, "sysconf", None)  # Windows has none, and does not tell
    physical = 4 << 30 if sysconf is None else sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup/memory.max")
    text = group.read_text() if group.exists() else "max"
    memory = min(physical, int(text)) if text.strip().isdecimal() else physical
    limit = int(memory * MEMORY_PART)
    shared = Path("/dev/shm")
    # forked workers see the memory of the main process; others only what is shared by name
    method = multiprocessing.get_start_method(allow_none=True)
    if (method or multiprocessing.get_all_start_methods()[0]) != "fork" and shared.is_dir():
        limit = min(limit, shutil.disk_usage(shared).free // 2)
    return limit // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _decoded(sample: Sample, at_least: int | None) -> np.ndarray | None:
    try:
        image = np.asarray(read_image(sample, at_least)).transpose(2, 0, 1)
    except UNREADABLE:
        return None
    is_grey = (image[0] == image[1]).all() and (image[0] == image[2]).all()
    return image[:1] if is_grey else image
