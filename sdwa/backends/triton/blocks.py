"""Block shapes of the Triton kernels: a static choice by problem."""

from __future__ import annotations

from typing import NamedTuple

from sdwa.backends.triton import interpreted

PASSES = ("forward", "backward")
# Queries of the longest strip of any shape here.
MAX_STRIP = 4


class Shape(NamedTuple):
    """What is chosen for a class of problems; the rest of `Blocks` follows from the problem.

    strip: queries of one row that are worked on together. chunks: at most so many hold a token.
    block_w: strips side by side in a tile. warps: of 32 lanes each. lane_bytes: of every chunk of a
    token that a lane owns; less than 16 where a lane has no registers for them. registers: that a
    lane may have at most, None for what the assembler thinks best. Without a number it may save
    registers by loading every token just before its use, and then waits for memory each time.
    """

    strip: int
    chunks: int
    block_w: int
    warps: int
    lane_bytes: int
    registers: int | None = None


class Blocks(NamedTuple):
    """Launch parameters of a kernel. A tile is block_h rows of block_w strips of one head."""

    block_h: int
    block_w: int
    strip: int
    block_d: int
    warps: int
    registers: int | None = None

    @property
    def constants(self) -> dict[str, int]:
        """As the kernels' compile-time arguments."""
        return {
            "BLOCK_H": self.block_h,
            "BLOCK_W": self.block_w,
            "STRIP": self.strip,
            "BLOCK_D": self.block_d,
        }


# By pass, window and bytes per element. Chosen from the machine code (`triton_resources` of
# benchmarks/: no spills where there is no bias, few instructions per element, few waits for memory
# in a row), not yet from timings, which `triton_tune` takes. In float32 the passes of windows of
# 3 x 3 and 5 x 5 have chunks and lanes alike, so that scores, which both compute, have the same
# bits.
SHAPES = {
    ("forward", 3, 2): Shape(3, chunks=3, block_w=2, warps=4, lane_bytes=16),
    ("forward", 3, 4): Shape(3, chunks=2, block_w=2, warps=4, lane_bytes=16),
    ("forward", 5, 2): Shape(2, chunks=3, block_w=2, warps=4, lane_bytes=16, registers=168),
    ("forward", 5, 4): Shape(2, chunks=3, block_w=2, warps=4, lane_bytes=16, registers=128),
    ("forward", 7, 2): Shape(1, chunks=3, block_w=1, warps=4, lane_bytes=16, registers=128),
    ("forward", 7, 4): Shape(1, chunks=3, block_w=1, warps=4, lane_bytes=16, registers=128),
    ("forward", 13, 2): Shape(1, chunks=1, block_w=1, warps=4, lane_bytes=16, registers=168),
    ("forward", 13, 4): Shape(1, chunks=1, block_w=1, warps=4, lane_bytes=16, registers=168),
    ("backward", 3, 2): Shape(2, chunks=1, block_w=2, warps=4, lane_bytes=16),
    ("backward", 3, 4): Shape(2, chunks=2, block_w=2, warps=4, lane_bytes=16, registers=168),
    ("backward", 5, 2): Shape(2, chunks=1, block_w=2, warps=4, lane_bytes=16, registers=168),
    ("backward", 5, 4): Shape(1, chunks=3, block_w=2, warps=4, lane_bytes=16),
    ("backward", 7, 2): Shape(1, chunks=2, block_w=2, warps=4, lane_bytes=8, registers=168),
    ("backward", 7, 4): Shape(2, chunks=1, block_w=2, warps=4, lane_bytes=16, registers=168),
    ("backward", 13, 2): Shape(1, chunks=1, block_w=2, warps=4, lane_bytes=8),
    ("backward", 13, 4): Shape(1, chunks=1, block_w=2, warps=4, lane_bytes=8),
}
# The sides of windows up to which those hold. Larger windows run with the last.
WINDOW_CLASSES = (3, 5, 7, 13)


def choose_shape(which: str, element_size: int, kernel_size: tuple[int, int]) -> Shape:
    """The shape for a pass ("forward" or "backward"), bytes per element, and a window."""
    # Up to 9 taps the forward kernel works as on a window of 3 x 3.
    small = which == "forward" and kernel_size[0] * kernel_size[1] <= 9
    side = 3 if small else max(kernel_size)
    window = next((c for c in WINDOW_CLASSES if side <= c), WINDOW_CLASSES[-1])
    return SHAPES[which, window, element_size]


def choose_blocks(
    which: str,
    element_size: int,
    head_dim: int,
    kernel_size: tuple[int, int],
    height: int,
    width: int,
) -> Blocks:
    """Block shape for a pass ("forward" or "backward") of a problem."""
    if interpreted():
        # A program then costs the same whatever its size: it takes a whole map, whose phases make
        # up less than twice its width.
        block_d = chunk_width(head_dim, 1)
        return Blocks(power_of_two(height), power_of_two(2 * width), 1, block_d, 1)
    shape = choose_shape(which, element_size, kernel_size)
    return fit_blocks(shape, element_size, head_dim, height, width)


def candidates(which: str, element_size: int, kernel_size: tuple[int, int]) -> list[Shape]:
    """What the tuning script and `SDWA_TRITON_AUTOTUNE=1` try."""
    # Of the chunks and lanes that both passes share, see SHAPES.
    shared = element_size == 4 and max(kernel_size) <= 5
    known = choose_shape(which, element_size, kernel_size)
    small_window = kernel_size[0] * kernel_size[1] <= 9
    strips = range(1, MAX_STRIP + 1) if small_window else (1, 2)
    # Elements of one tensor that a lane holds at a time: beyond this nothing fits the registers.
    limit = 64 if which == "forward" else 24
    return [
        Shape(strip, chunks, block_w, warps, lane_bytes, registers)
        for strip in strips
        for chunks in ((known.chunks,) if shared else (1, 2, 3))
        for block_w in (1, 2)
        for warps in (2, 4)
        for lane_bytes in ((known.lane_bytes,) if shared else (8, 16))
        for registers in (None, 128, 168)
        if strip * chunks * lane_bytes // element_size <= limit
    ]


def fit_blocks(shape: Shape, element_size: int, head_dim: int, height: int, width: int) -> Blocks:
    """The launch parameters that a shape means for a problem: tiles no larger than a small map.

    A lane owns the same bytes of every chunk of a token, 8 where tokens are aligned to less than
    16 bytes, and a warp holds as many strips as its lanes suffice for.
    """
    block_d = chunk_width(head_dim, shape.chunks)
    aligned = (head_dim & -head_dim) * element_size >= 16
    lanes = max(1, block_d * element_size // (shape.lane_bytes if aligned else 8))
    strips = max(1, 32 * shape.warps // lanes)
    strip = min(shape.strip, width)
    block_w = min(shape.block_w, strips, power_of_two(-(-width // strip)))
    block_h = min(strips // block_w, power_of_two(height))
    warps = max(1, block_h * block_w * lanes // 32)
    return Blocks(block_h, block_w, strip, block_d, min(shape.warps, warps), shape.registers)


def chunk_width(head_dim: int, chunks: int) -> int:
    """Features of a chunk: the power of two that wastes fewest, with at most `chunks` per token.

    Of equals the narrowest, but none below 8, which is one access of 16 bytes in half precision.
    """
    widths = [w for w in (8, 16, 32, 64, 128, 256) if head_dim <= chunks * w]
    if head_dim < widths[0]:
        return min(widths[0], power_of_two(head_dim))
    return min(widths, key=lambda width: -(-head_dim // width) * width)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
