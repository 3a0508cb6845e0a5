"""Block shapes of the Triton kernels: a static choice by problem, from `block_table.py`."""

from __future__ import annotations

import os
from typing import NamedTuple

from .block_table import BLOCK_TABLE

PASSES = ("forward", "backward")
# Classes of problems that share an entry of the table: head dimensions up to, windows up to.
HEAD_DIM_CLASSES = (16, 32, 64, 128, 256)
WINDOW_CLASSES = (3, 5, 13)


class Shape(NamedTuple):
    """An entry of the table. What it says nothing about follows from the problem.

    strip: queries of one row that a lane works on together. chunks: at most so many tiles hold a
    token. block_w: strips side by side in a tile. warps: of 32 threads each. lane_bytes: of every
    chunk of a token that a lane owns; less than 16 where a lane has no registers for them.
    """

    strip: int
    chunks: int
    block_w: int
    warps: int
    lane_bytes: int


class Blocks(NamedTuple):
    """Launch parameters of a kernel. A tile is block_h rows of block_w strips of one head."""

    block_h: int
    block_w: int
    strip: int
    block_d: int
    warps: int

    @property
    def constants(self) -> dict[str, int]:
        """As the kernels' compile-time arguments."""
        return {
            "BLOCK_H": self.block_h,
            "BLOCK_W": self.block_w,
            "STRIP": self.strip,
            "BLOCK_D": self.block_d,
        }


def table_key(
    which: str, element_size: int, head_dim: int, kernel_size: tuple[int, int]
) -> tuple[str, int, int, int]:
    """Key of the table: pass, bytes per element, and the smallest classes that hold the problem.

    Windows beyond 13 x 13 run with the shapes of that class.
    """
    side = 3 if kernel_size[0] * kernel_size[1] <= 9 else max(kernel_size)
    window = next((c for c in WINDOW_CLASSES if side <= c), WINDOW_CLASSES[-1])
    return which, element_size, next(c for c in HEAD_DIM_CLASSES if head_dim <= c), window


def choose_blocks(
    which: str,
    element_size: int,
    head_dim: int,
    kernel_size: tuple[int, int],
    height: int,
    width: int,
) -> Blocks:
    """Block shape for a pass ("forward" or "backward") of a problem."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        # A program then costs the same whatever its size: it takes a whole map, whose phases make
        # up less than twice its width.
        block_d = chunk_width(head_dim, 1)
        return Blocks(power_of_two(height), power_of_two(2 * width), 1, block_d, 1)
    shape = Shape(*BLOCK_TABLE[table_key(which, element_size, head_dim, kernel_size)])
    return fit_blocks(shape, element_size, head_dim, height, width)


def candidates(
    which: str, element_size: int, head_dim: int, kernel_size: tuple[int, int]
) -> list[Shape]:
    """What the tuning script and `SDWA_TRITON_AUTOTUNE=1` try."""
    small_window = kernel_size[0] * kernel_size[1] <= 9
    strips = (1, 2, 3, 4) if small_window else (1, 2)
    # Elements of one tensor that a lane holds at a time: beyond this nothing fits the registers.
    limit = 64 if which == "forward" else 24
    return [
        Shape(strip, chunks, block_w, warps, lane_bytes)
        for strip in strips
        for chunks in (1, 2, 3)
        for block_w in (1, 2, 4)
        for warps in (2, 4, 8)
        for lane_bytes in (8, 16)
        if strip * chunks * lane_bytes // element_size <= limit
    ]


def fit_blocks(shape: Shape, element_size: int, head_dim: int, height: int, width: int) -> Blocks:
    """The launch parameters that an entry means for a problem: tiles no larger than a small map.

    A lane owns the same bytes of every chunk of a token, so that each warp holds as many strips as
    its lanes make up. Where tokens are aligned to less than 16 bytes it takes 8.
    """
    block_d = chunk_width(head_dim, shape.chunks)
    aligned = (head_dim & -head_dim) * element_size >= 16
    lanes = max(1, block_d * element_size // (shape.lane_bytes if aligned else 8))
    strips = max(1, 32 * shape.warps // lanes)
    strip = min(shape.strip, width)
    block_w = min(shape.block_w, strips, power_of_two(-(-width // strip)))
    block_h = min(strips // block_w, power_of_two(height))
    warps = max(1, block_h * block_w * lanes // 32)
    return Blocks(block_h, block_w, strip, block_d, min(shape.warps, warps))


def chunk_width(head_dim: int, chunks: int) -> int:
    """Lanes of a chunk: the power of two that wastes the fewest lanes in at most `chunks` chunks.

    Of equals the narrowest, but none below 8, which is one access of 16 bytes in half precision.
    """
    widths = [w for w in (8, 16, 32, 64, 128, 256) if head_dim <= chunks * w]
    if head_dim < widths[0]:
        return min(widths[0], power_of_two(head_dim))
    return min(widths, key=lambda width: -(-head_dim // width) * width)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
