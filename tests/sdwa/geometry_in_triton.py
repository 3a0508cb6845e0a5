"""What Triton's window arithmetic computes, by small kernels that run in the interpreter."""

# mypy: disable-error-code="assignment,index"

import torch
import triton
import triton.language as tl

from sdwa.backends.triton.blocks import power_of_two
from sdwa.backends.triton.geometry import (
    head_entry,
    head_table,
    head_tiles,
    on_map,
    program_tile,
    strip_origins,
    tap_coordinate,
    window_row,
)
from sdwa.backends.triton.memory import kept_taps, map_of_key_mask
from sdwa.backends.triton.products import row_scores


@triton.jit
def axis_kernel(
    sources_ptr, on_map_ptr, dilation, length, KERNEL: tl.constexpr, BLOCK: tl.constexpr
):
    """For pixels 0 .. BLOCK - 1 what each tap reads, and whether that is on the map.

    Both int32 (BLOCK, KERNEL).
    """
    pixel = tl.arange(0, BLOCK)
    for tap in tl.static_range(KERNEL):
        source = tap_coordinate(pixel, tap, dilation, KERNEL)
        tl.store(sources_ptr + pixel * KERNEL + tap, source)
        tl.store(on_map_ptr + pixel * KERNEL + tap, on_map(source, length).to(tl.int32))


@triton.jit
def scores_kernel(
    scores_ptr,
    bias_ptr,
    key_mask_ptr,
    dilation,
    length,
    KERNEL: tl.constexpr,
    MASKED: tl.constexpr,
    MIRRORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scores (BLOCK, KERNEL) of a map of one row whose queries and keys are zero."""
    pixel = tl.arange(0, BLOCK)
    y = pixel * 0
    height = length * 0 + 1
    key_mask_map = map_of_key_mask(key_mask_ptr, tl.program_id(0), height, length, False)
    if MIRRORED:
        columns, valid = window_row(y, pixel, dilation, height, length, 1, 1)
    else:
        columns, valid = window_row(y, pixel, dilation, height, length, KERNEL, 1)
    kept = kept_taps(key_mask_map, y, columns, valid, MASKED)
    zero = tl.zeros((BLOCK, 1), tl.float32)
    keys = ()
    for _ in tl.static_range(KERNEL):
        keys = keys + (zero,)  # noqa: RUF005
    scores = row_scores((zero,), keys, kept, bias_ptr, 1.0, KERNEL, MIRRORED, 1, 1)
    for tap in tl.static_range(KERNEL):
        tl.store(scores_ptr + pixel * KERNEL + tap, scores[tap] + tl.zeros((BLOCK,), tl.float32))


@triton.jit
def owner_kernel(
    pixels_ptr,
    table_ptr,
    height,
    width,
    tiles,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    STRIP: tl.constexpr,
):
    """Writes y and x of each query of each strip, -1 off the map.

    (strips, STRIP, 2), in the order in which the kernels number them: line by line.
    """
    _, head, tile = program_tile(tl.program_id(0), 1, tiles)
    entry = head_entry(table_ptr, head)
    y, x, _, dilation_w = strip_origins(entry, tile, height, width, 1, BLOCK_H, BLOCK_W, STRIP)
    columns, valid = window_row(y, x, dilation_w, height, width, 1, STRIP)
    index = tl.arange(0, BLOCK_H * BLOCK_W)
    strip = tile * (BLOCK_H * BLOCK_W) + index
    for query in tl.static_range(STRIP):
        entry = pixels_ptr + (strip * STRIP + query) * 2
        tl.store(entry, tl.where(valid[query], y, -1))
        tl.store(entry + 1, tl.where(valid[query], columns[query], -1))


@triton.jit
def reach_kernel(
    rows_ptr, counts_ptr, table_ptr, tile, height, KERNEL: tl.constexpr, BLOCK: tl.constexpr
):
    """Map row of each query of a tile of a map of one column, and how many of its taps are on it.

    Both int32 (BLOCK,).
    """
    entry = head_entry(table_ptr, 0)
    width = tile * 0 + 1
    y, x, dilation, _ = strip_origins(entry, tile, height, width, 1, BLOCK, 1, 1)
    count = tl.zeros((BLOCK,), tl.int32)
    for tap in tl.static_range(KERNEL):
        is_on_map = on_map(tap_coordinate(y, tap, dilation, KERNEL), height) & on_map(x, width)
        count += is_on_map.to(tl.int32)
    query = tl.arange(0, BLOCK)
    tl.store(rows_ptr + query, y)
    tl.store(counts_ptr + query, count)


def sources_of(kernel_size, dilation, length):
    """(what each tap of each pixel reads, whether it is on the map): two nested lists."""
    block = power_of_two(length)
    sources, inside = (torch.zeros(block, kernel_size, dtype=torch.int32) for _ in range(2))
    axis_kernel[(1,)](sources, inside, dilation, length, KERNEL=kernel_size, BLOCK=block)
    return sources[:length].tolist(), inside[:length].bool().tolist()


def scores_of(kernel_size, dilation, length, *, masked, mirrored, key_mask=None):
    """Scores of each tap of each pixel where the bias of tap t is t and all else is zero.

    key_mask: whether each pixel is kept as a key, or None.
    """
    block = power_of_two(length)
    scores = torch.zeros(block, kernel_size)
    scores_kernel[(1,)](
        scores,
        torch.arange(kernel_size, dtype=torch.float32),
        None if key_mask is None else torch.tensor(key_mask, dtype=torch.uint8),
        dilation,
        length,
        KERNEL=kernel_size,
        MASKED=masked,
        MIRRORED=mirrored,
        BLOCK=block,
    )
    return scores[:length].tolist()


def reach_of(kernel_size, dilation, height, tile, block):
    """(map row of each query of that tile of `block` rows, how many of its taps are on the map)."""
    table = torch.tensor(head_table((dilation, 1), height, 1, 1), dtype=torch.int32)
    rows, counts = (torch.zeros(block, dtype=torch.int32) for _ in range(2))
    reach_kernel[(1,)](rows, counts, table, tile, height, KERNEL=kernel_size, BLOCK=block)
    return rows.tolist(), counts.tolist()


def owned_pixels(dilation, height, width, strip, block_h, block_w):
    """For the one head of `dilation` the queries of each strip, (y, x) pairs on the map."""
    table = head_table(dilation, height, width, strip)
    (tiles,) = head_tiles(table, height, block_h, block_w)
    pixels = torch.full((tiles * block_h * block_w, strip, 2), -2, dtype=torch.int32)
    owner_kernel[(tiles,)](
        pixels,
        torch.tensor(table, dtype=torch.int32),
        height,
        width,
        tiles,
        BLOCK_H=block_h,
        BLOCK_W=block_w,
        STRIP=strip,
    )
    assert (pixels != -2).all()
    return [[(y, x) for y, x in queries if y >= 0] for queries in pixels.tolist()]
