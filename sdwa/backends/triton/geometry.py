"""Window arithmetic of the Triton kernels: the pixels a program owns, and those its taps touch.

For a head with dilation r the map falls into r_h x r_w independent *phases*, on each of which the
window is an ordinary dense one. A strip is `STRIP` neighbouring queries of one row of a phase, so
that a key loaded once serves up to `STRIP` of them.

Rows are numbered phase by phase: all rows of phase 0, then of phase 1, and so on, which numbers
every row of the map exactly once whatever the dilation. Strips of a row are numbered phase by phase
too; a phase whose width is no multiple of `STRIP` ends in a strip that hangs over the edge, and its
surplus queries are masked.

The strips of a map are cut into columns `BLOCK_W` strips wide. A *line* is one row of a column.
Lines are numbered down the first column, then down the second, and so on, and a program owns a tile
of `BLOCK_H` lines in a row of one head. So only the last tile of a map is not full, whatever the
height.

All coordinates are 32-bit; `launch.py` refuses maps and windows for which that would not do.
"""

# Triton's language grows tuples by addition only, and a tuple there has no fixed type.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment,index"

from __future__ import annotations

from collections.abc import Sequence

import triton.language as tl

from .inline import inline

# Columns of the head table, one row of int32 per head: what a program would otherwise divide for.
TABLE_COLUMNS: tl.constexpr = tl.constexpr(5)


def head_table(
    dilation: Sequence[int], height: int, width: int, strip: int
) -> tuple[tuple[int, int, int, int, int], ...]:
    """The head table: (dilation_h, dilation_w, rows, long_phases, strips) of each head.

    dilation: flattened (dilation_h, dilation_w) per head. A dilation beyond the map is replaced by
    the map's extent, which leaves the same taps on the map (the centre row or column alone) and
    keeps coordinates small. rows: rows of a short phase; the first `long_phases` phases have one
    more. strips: strips in a row of one phase.
    """
    rows = []
    for dilation_h, dilation_w in zip(dilation[::2], dilation[1::2], strict=True):
        dilation_h = min(dilation_h, height)
        dilation_w = min(dilation_w, width)
        phase_width = -(-width // dilation_w)
        rows.append(
            (
                dilation_h,
                dilation_w,
                height // dilation_h,
                height % dilation_h,
                -(-phase_width // strip),
            )
        )
    return tuple(rows)


def head_tiles(
    table: Sequence[Sequence[int]], height: int, block_h: int, block_w: int
) -> tuple[int, ...]:
    """Tiles that cover a map, for each head of the table."""
    lines = [height * -(-dilation_w * strips // block_w) for _, dilation_w, _, _, strips in table]
    return tuple(-(-number // block_h) for number in lines)


@inline
def program_tile(program, heads, tiles):
    """(batch, head, tile) of a program, where `tiles` is the most that any head has.

    Heads run fastest: programs that start together then read neighbouring memory. Batch runs
    slowest, so that one image's keys and values stay in the L2 cache.
    """
    unit = program // heads
    batch = unit // tiles
    return batch, program - unit * heads, unit - batch * tiles


@inline
def head_entry(table_ptr, head):
    """The entry of a head in the head table."""
    entry = ()
    for column in tl.static_range(TABLE_COLUMNS):
        entry = entry + (tl.load(table_ptr + head * TABLE_COLUMNS + column),)
    return entry


@inline
def is_tile(entry, tile, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Whether the head of this entry has so many tiles that this is one.

    It asks for all of the entry, so that none of it is loaded in a second turn.
    """
    dilation_h, dilation_w, rows, long_phases, strips = entry
    height = rows * dilation_h + long_phases
    return tile * BLOCK_H < height * tl.cdiv(dilation_w * strips, BLOCK_W)


@inline
def strip_origins(
    entry,
    tile,
    height,
    width,
    KERNEL_W: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    STRIP: tl.constexpr,
):
    """First pixel y, x of each strip of the tile, int32 (BLOCK_H * BLOCK_W,), and the dilation.

    entry: of the head, see `head_entry`. A strip beyond the map gets an x so far beyond it that
    none of its taps is on it either.
    """
    dilation_h, dilation_w, rows, long_phases, strips = entry
    index = tl.arange(0, BLOCK_H * BLOCK_W)
    line = tile * BLOCK_H + index // BLOCK_W
    column = line // height
    row = line - column * height
    in_long = row < long_phases * (rows + 1)
    length = rows + in_long.to(tl.int32)
    # Phases before this one, were they all of this length, start here.
    start = tl.where(in_long, 0, long_phases)
    phase = (row - start) // length
    y = (row - start - phase * length) * dilation_h + phase

    strip = column * BLOCK_W + index % BLOCK_W
    phase = strip // strips
    x = (strip - phase * strips) * (STRIP * dilation_w) + phase
    x = tl.where(phase < dilation_w, x, width + KERNEL_W * dilation_w)
    return y, x, dilation_h, dilation_w


@inline
def tap_coordinate(origin, tap, dilation, KERNEL: tl.constexpr):
    """Row (or column) that tap `tap` of a window of `KERNEL` taps centred on `origin` touches.

    The inverse map is the same one: key p is tap t of the query that tap `KERNEL - 1 - t` of a
    window centred on p touches.
    """
    return origin + (tap - KERNEL // 2) * dilation


@inline
def on_map(coordinate, extent):
    """0 <= coordinate < extent, in one comparison: a negative number is a large unsigned one."""
    return coordinate.to(tl.uint32, bitcast=True) < extent.to(tl.uint32, bitcast=True)


@inline
def place(pixel, dilation, extent):
    """(phase, index, length) of pixels along an axis: its phase, its place there, its pixels."""
    index = pixel // dilation
    phase = pixel - index * dilation
    return phase, index, (extent - phase + dilation - 1) // dilation


@inline
def window_start(index, length, KERNEL: tl.constexpr, BEFORE: tl.constexpr, SHIFTED: tl.constexpr):
    """Place in its phase, of `length` pixels, that the first tap of the query at `index` reads.

    `BEFORE` taps lie before the query, unless `SHIFTED`: then the window moves inwards at an end of
    the phase. It, and its last tap, may lie off the phase.
    """
    start = index - BEFORE
    if SHIFTED:
        start = tl.maximum(tl.minimum(start, length - KERNEL), 0)
    return start


@inline
def window_row(y, x, dilation_w, height, width, KERNEL_W: tl.constexpr, STRIP: tl.constexpr):
    """Columns that one row of taps of a strip touches, and whether they are on the map.

    y: map row of the taps, x: first query of the strip, both (BLOCK,). Returns two flat tuples of
    STRIP + KERNEL_W - 1 entries (BLOCK,); tap t of query i of the strip is entry i + t.
    """
    row_on_map = on_map(y, height)
    columns = ()
    valid = ()
    for column in tl.static_range(STRIP + KERNEL_W - 1):
        tap_x = tap_coordinate(x, column, dilation_w, KERNEL_W)
        columns = columns + (tap_x,)
        valid = valid + (row_on_map & on_map(tap_x, width),)
    return columns, valid
