"""Forward kernel: out and lse of a tile of queries of one head.

Windows of up to 9 taps see all scores before the first value and need no rescaling; larger ones run
an online softmax over the rows of the window. Scores are kept in natural units: the backward pass
subtracts lse from them again, and a change of base in between would cost digits where scores are
large. The compiler turns exp into exp2 and a factor.
"""

# Triton's language grows tuples by addition only, and a tuple there has no fixed type.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment,index,misc"

from __future__ import annotations

import triton
import triton.language as tl

from .geometry import (
    head_entry,
    is_tile,
    program_tile,
    strip_origins,
    tap_coordinate,
    window_row,
)
from .inline import inline
from .memory import (
    head_of_bias,
    kept_taps,
    load_row,
    map_of_key_mask,
    map_view,
    store_token,
)
from .products import add_weighted_row, row_scores

# Below every score that is a number, and finite: an excluded tap (-inf) then has weight 0, never
# NaN, even while no tap on the map has been seen.
LOWEST: tl.constexpr = tl.constexpr(-3.0e38)

# Chunks of keys, 16 bytes of each to a lane, up to which all are loaded before the first product.
MAX_KEYS: tl.constexpr = tl.constexpr(30)


@inline
def softmax_step(
    scores,
    peaks,
    sums,
    ROWS: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIP: tl.constexpr,
):
    """One step of the softmax over `ROWS` more rows of taps.

    peaks, sums: largest score so far of each query of the strip, and the sum of exp(score - peak).
    Returns the new weights, relative to the new peaks, the new peaks and sums, and the factors
    by which what was summed under the old peaks has to be multiplied.
    """
    new_peaks = ()
    factors = ()
    new_sums = ()
    for query in tl.static_range(STRIP):
        peak = peaks[query]
        for row in tl.static_range(ROWS):
            for tap in tl.static_range(KERNEL_W):
                peak = tl.maximum(peak, scores[(row * STRIP + query) * KERNEL_W + tap])
        factor = tl.exp(peaks[query] - peak)
        total = sums[query] * factor
        for row in tl.static_range(ROWS):
            for tap in tl.static_range(KERNEL_W):
                total += tl.exp(scores[(row * STRIP + query) * KERNEL_W + tap] - peak)
        new_peaks = new_peaks + (peak,)
        factors = factors + (factor,)
        new_sums = new_sums + (total,)
    weights = ()
    for row in tl.static_range(ROWS):
        for query in tl.static_range(STRIP):
            for tap in tl.static_range(KERNEL_W):
                score = scores[(row * STRIP + query) * KERNEL_W + tap]
                weights = weights + (tl.exp(score - new_peaks[query]),)
    return weights, new_peaks, new_sums, factors


@inline
def rescale(totals, factors, STRIP: tl.constexpr, CHUNKS: tl.constexpr):
    """The chunked tokens `totals` of a strip, each query's times its factor."""
    scaled = ()
    for query in tl.static_range(STRIP):
        for chunk in tl.static_range(CHUNKS):
            scaled = scaled + (totals[query * CHUNKS + chunk] * factors[query][:, None],)
    return scaled


@triton.jit(do_not_specialize=["height", "width", "heads", "tiles", "scale"])
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    key_mask_ptr,
    out_ptr,
    lse_ptr,
    table_ptr,
    q_strides,
    k_strides,
    v_strides,
    height,
    width,
    heads,
    tiles,
    scale,
    HEAD_DIM: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    MASKED: tl.constexpr,
    ALIGN: tl.constexpr,
    INDEX_64: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Writes out (batch, height, width, heads, head_dim) and lse (batch, height, width, heads).

    Both contiguous. q, k, v: the same shape with the given strides of (batch, height, width,
    heads); bias: (heads, KERNEL_H, KERNEL_W) float32 contiguous, or None; key_mask: (batch, height,
    width) uint8 contiguous, 0 where a key is left out, or None. table: `head_table`.
    """
    CHUNKS: tl.constexpr = (HEAD_DIM + BLOCK_D - 1) // BLOCK_D
    # The largest power of two that divides the strides of every contiguous tensor.
    OUT_ALIGN: tl.constexpr = HEAD_DIM & -HEAD_DIM
    batch, head, tile = program_tile(tl.program_id(0), heads, tiles)
    entry = head_entry(table_ptr, head)
    # Heads differ in their number of tiles.
    if not is_tile(entry, tile, BLOCK_H, BLOCK_W):
        return
    y, x, dilation_h, dilation_w = strip_origins(
        entry, tile, height, width, KERNEL_W, BLOCK_H, BLOCK_W, STRIP
    )
    q_map = map_view(q_ptr, q_strides, batch, head, ALIGN, INDEX_64)
    k_map = map_view(k_ptr, k_strides, batch, head, ALIGN, INDEX_64)
    v_map = map_view(v_ptr, v_strides, batch, head, ALIGN, INDEX_64)
    bias_head = head_of_bias(bias_ptr, head, KERNEL_H * KERNEL_W)
    key_mask_map = map_of_key_mask(key_mask_ptr, batch, height, width, INDEX_64)

    # A window one tap wide is the strip itself.
    columns, valid = window_row(y, x, dilation_w, height, width, 1, STRIP)
    q = load_row(q_map, y, columns, valid, HEAD_DIM, BLOCK_D, ALIGN)
    block: tl.constexpr = BLOCK_H * BLOCK_W
    out = ()
    peaks = ()
    sums = ()
    for _ in tl.static_range(STRIP):
        peaks = peaks + (tl.full((block,), LOWEST, tl.float32),)
        sums = sums + (tl.zeros((block,), tl.float32),)
    for _ in tl.static_range(STRIP * CHUNKS):
        out = out + (tl.zeros((block, BLOCK_D), tl.float32),)

    if KERNEL_H * KERNEL_W <= 9:
        EARLY: tl.constexpr = KERNEL_H * (STRIP + KERNEL_W - 1) * CHUNKS <= MAX_KEYS
        early_keys = ()
        if EARLY:
            for tap_h in tl.static_range(KERNEL_H):
                tap_y = tap_coordinate(y, tap_h, dilation_h, KERNEL_H)
                tap_columns, tap_valid = window_row(
                    tap_y, x, dilation_w, height, width, KERNEL_W, STRIP
                )
                keys = load_row(k_map, tap_y, tap_columns, tap_valid, HEAD_DIM, BLOCK_D, ALIGN)
                early_keys = early_keys + (keys,)
            # The assembler would load each key just before its use, and wait for memory each time:
            # a barrier is what loads do not move across.
            tl.debug_barrier()
        scores = ()
        for tap_h in tl.static_range(KERNEL_H):
            tap_y = tap_coordinate(y, tap_h, dilation_h, KERNEL_H)
            tap_columns, tap_valid = window_row(
                tap_y, x, dilation_w, height, width, KERNEL_W, STRIP
            )
            if EARLY:
                keys = early_keys[tap_h]
            else:
                keys = load_row(k_map, tap_y, tap_columns, tap_valid, HEAD_DIM, BLOCK_D, ALIGN)
            kept = kept_taps(key_mask_map, tap_y, tap_columns, tap_valid, MASKED)
            bias_row = None if bias_head is None else bias_head + tap_h * KERNEL_W
            scores = scores + row_scores(
                q, keys, kept, bias_row, scale, KERNEL_W, False, STRIP, CHUNKS
            )
        weights, peaks, sums, factors = softmax_step(scores, peaks, sums, KERNEL_H, KERNEL_W, STRIP)
        for tap_h in tl.static_range(KERNEL_H):
            tap_y = tap_coordinate(y, tap_h, dilation_h, KERNEL_H)
            tap_columns, tap_valid = window_row(
                tap_y, x, dilation_w, height, width, KERNEL_W, STRIP
            )
            values = load_row(v_map, tap_y, tap_columns, tap_valid, HEAD_DIM, BLOCK_D, ALIGN)
            out = add_weighted_row(
                out, values, weights, tap_h * STRIP * KERNEL_W, KERNEL_W, STRIP, CHUNKS
            )
    else:
        for tap_h in range(KERNEL_H):
            tap_y = tap_coordinate(y, tap_h, dilation_h, KERNEL_H)
            tap_columns, tap_valid = window_row(
                tap_y, x, dilation_w, height, width, KERNEL_W, STRIP
            )
            keys = load_row(k_map, tap_y, tap_columns, tap_valid, HEAD_DIM, BLOCK_D, ALIGN)
            kept = kept_taps(key_mask_map, tap_y, tap_columns, tap_valid, MASKED)
            bias_row = None if bias_head is None else bias_head + tap_h * KERNEL_W
            scores = row_scores(q, keys, kept, bias_row, scale, KERNEL_W, False, STRIP, CHUNKS)
            weights, peaks, sums, factors = softmax_step(scores, peaks, sums, 1, KERNEL_W, STRIP)
            values = load_row(v_map, tap_y, tap_columns, tap_valid, HEAD_DIM, BLOCK_D, ALIGN)
            out = rescale(out, factors, STRIP, CHUNKS)
            out = add_weighted_row(out, values, weights, 0, KERNEL_W, STRIP, CHUNKS)

    pixels = height.to(tl.int64) * width * heads
    out_strides = (pixels * HEAD_DIM, width * heads * HEAD_DIM, heads * HEAD_DIM, HEAD_DIM)
    out_map = map_view(out_ptr, out_strides, batch, head, OUT_ALIGN, INDEX_64)
    lse_map = map_view(lse_ptr, (pixels, width * heads, heads, 1), batch, head, 1, INDEX_64)
    for query in tl.static_range(STRIP):
        column = columns[query]
        mask = valid[query]
        inverse = 1.0 / sums[query]
        # With neither, the centre tap always counts.
        if bias_ptr is not None or key_mask_ptr is not None:
            # A window with nothing left has the sum 0, and gets out 0 and lse -inf.
            inverse = tl.where(sums[query] == 0.0, 0.0, inverse)
        store_token(
            out_map, y, column, mask, out, query * CHUNKS, inverse[:, None],
            HEAD_DIM, BLOCK_D, OUT_ALIGN,
        )  # fmt: skip
        lse = peaks[query] + tl.log(sums[query])
        tl.store(lse_map[0] + y * lse_map[1] + column * lse_map[2], lse, mask=mask)
