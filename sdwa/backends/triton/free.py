"""Kernels for windows that are not centred on their queries, or not at the border.

Those are shifted windows, which move inwards where they would leave the map, and causal ones. Each
query walks over its own window, tap by tap, and each key over the queries whose windows hold it: a
strip of queries shares no keys at the border, so that strips are of one query here.
"""

# Triton's language grows tuples by addition only, and a tuple there has no fixed type.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment,index,misc"

from __future__ import annotations

import triton
import triton.language as tl

from .forward import LOWEST, rescale
from .geometry import head_entry, is_tile, on_map, place, program_tile, strip_origins, window_start
from .inline import inline
from .memory import (
    head_of_bias,
    kept_taps,
    load_lse,
    load_scalars,
    load_token,
    map_of_key_mask,
    map_view,
    store_token,
)
from .products import inner_product, scaled


@inline
def load_bias(
    bias_head,
    row,
    column,
    reads,
    KERNEL_W: tl.constexpr,
    BY_DISTANCE: tl.constexpr,
):
    """The bias in that row and column of a head's, where `reads`, all (BLOCK,); else 0."""
    bias = 0.0
    if bias_head is not None:
        columns: tl.constexpr = 2 * KERNEL_W - 1 if BY_DISTANCE else KERNEL_W
        bias = tl.load(bias_head + row * columns + column, mask=reads, other=0.0)
    return bias


@inline
def add_weighted(totals, weight, token, CHUNKS: tl.constexpr):
    """`totals` plus a token times its weight, (BLOCK,)."""
    sums = ()
    for chunk in tl.static_range(CHUNKS):
        sums = sums + (totals[chunk] + weight[:, None] * token[chunk],)
    return sums


@triton.jit(do_not_specialize=["height", "width", "heads", "tiles", "scale"])
def forward_free_kernel(
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
    BEFORE_H: tl.constexpr,
    BEFORE_W: tl.constexpr,
    SHIFTED_H: tl.constexpr,
    SHIFTED_W: tl.constexpr,
    BY_DISTANCE: tl.constexpr,
    MASKED: tl.constexpr,
    ALIGN: tl.constexpr,
    INDEX_64: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """As `forward_kernel`, for windows of KERNEL_H x KERNEL_W taps, BEFORE_H and BEFORE_W of them
    before the query.

    SHIFTED_H, SHIFTED_W: they move inwards at the border. bias: by the distance from query to key,
    (heads, 2 KERNEL_H - 1, 2 KERNEL_W - 1), where BY_DISTANCE.
    """
    CHUNKS: tl.constexpr = (HEAD_DIM + BLOCK_D - 1) // BLOCK_D
    OUT_ALIGN: tl.constexpr = HEAD_DIM & -HEAD_DIM
    BIAS: tl.constexpr = (
        (2 * KERNEL_H - 1) * (2 * KERNEL_W - 1) if BY_DISTANCE else KERNEL_H * KERNEL_W
    )
    batch, head, tile = program_tile(tl.program_id(0), heads, tiles)
    entry = head_entry(table_ptr, head)
    if not is_tile(entry, tile, BLOCK_H, BLOCK_W):
        return
    y, x, dilation_h, dilation_w = strip_origins(
        entry, tile, height, width, KERNEL_W, BLOCK_H, BLOCK_W, STRIP
    )
    valid = on_map(y, height) & on_map(x, width)
    q_map = map_view(q_ptr, q_strides, batch, head, ALIGN, INDEX_64)
    k_map = map_view(k_ptr, k_strides, batch, head, ALIGN, INDEX_64)
    v_map = map_view(v_ptr, v_strides, batch, head, ALIGN, INDEX_64)
    bias_head = head_of_bias(bias_ptr, head, BIAS)
    key_mask_map = map_of_key_mask(key_mask_ptr, batch, height, width, INDEX_64)
    phase_h, index_h, length_h = place(y, dilation_h, height)
    phase_w, index_w, length_w = place(x, dilation_w, width)
    start_h = window_start(index_h, length_h, KERNEL_H, BEFORE_H, SHIFTED_H)
    start_w = window_start(index_w, length_w, KERNEL_W, BEFORE_W, SHIFTED_W)

    q = load_token(q_map, y, x, valid, HEAD_DIM, BLOCK_D, ALIGN)
    block: tl.constexpr = BLOCK_H * BLOCK_W
    peak = tl.full((block,), LOWEST, tl.float32)
    total = tl.zeros((block,), tl.float32)
    out = ()
    for _ in tl.static_range(CHUNKS):
        out = out + (tl.zeros((block, BLOCK_D), tl.float32),)
    for tap_h in range(KERNEL_H):
        row = start_h + tap_h
        tap_y = phase_h + row * dilation_h
        for tap_w in range(KERNEL_W):
            column = start_w + tap_w
            tap_x = phase_w + column * dilation_w
            reads = valid & on_map(row, length_h) & on_map(column, length_w)
            key = load_token(k_map, tap_y, tap_x, reads, HEAD_DIM, BLOCK_D, ALIGN)
            bias_row = row - index_h + (KERNEL_H - 1) if BY_DISTANCE else row - start_h
            bias_column = column - index_w + (KERNEL_W - 1) if BY_DISTANCE else column - start_w
            bias = load_bias(bias_head, bias_row, bias_column, valid, KERNEL_W, BY_DISTANCE)
            score = scaled(inner_product(q, 0, key, 0, CHUNKS), scale, bias)
            kept = kept_taps(key_mask_map, tap_y, (tap_x,), (reads,), MASKED)
            if kept is not None:
                score = tl.where(kept[0], score, float("-inf"))
            new_peak = tl.maximum(peak, score)
            factor = tl.exp(peak - new_peak)
            weight = tl.exp(score - new_peak)
            total = total * factor + weight
            peak = new_peak
            value = load_token(v_map, tap_y, tap_x, reads, HEAD_DIM, BLOCK_D, ALIGN)
            out = add_weighted(rescale(out, (factor,), 1, CHUNKS), weight, value, CHUNKS)

    pixels = height.to(tl.int64) * width * heads
    out_strides = (pixels * HEAD_DIM, width * heads * HEAD_DIM, heads * HEAD_DIM, HEAD_DIM)
    out_map = map_view(out_ptr, out_strides, batch, head, OUT_ALIGN, INDEX_64)
    lse_map = map_view(lse_ptr, (pixels, width * heads, heads, 1), batch, head, 1, INDEX_64)
    inverse = tl.where(total == 0.0, 0.0, 1.0 / total)
    store_token(out_map, y, x, valid, out, 0, inverse[:, None], HEAD_DIM, BLOCK_D, OUT_ALIGN)
    lse = peak + tl.log(total)
    tl.store(lse_map[0] + y * lse_map[1] + x * lse_map[2], lse, mask=valid)


@triton.jit(do_not_specialize=["height", "width", "heads", "tiles", "scale"])
def backward_free_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    key_mask_ptr,
    grad_out_ptr,
    lse_ptr,
    delta_ptr,
    grad_query_ptr,
    grad_key_ptr,
    grad_value_ptr,
    bias_parts_ptr,
    table_ptr,
    q_strides,
    k_strides,
    v_strides,
    grad_out_strides,
    height,
    width,
    heads,
    tiles,
    scale,
    HEAD_DIM: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    BEFORE_H: tl.constexpr,
    BEFORE_W: tl.constexpr,
    SHIFTED_H: tl.constexpr,
    SHIFTED_W: tl.constexpr,
    BY_DISTANCE: tl.constexpr,
    MASKED: tl.constexpr,
    ALIGN: tl.constexpr,
    INDEX_64: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """As `backward_kernel`, for the windows of `forward_free_kernel`.

    bias_parts: (batch * tiles, heads) and the extents of a head's bias.
    """
    CHUNKS: tl.constexpr = (HEAD_DIM + BLOCK_D - 1) // BLOCK_D
    OUT_ALIGN: tl.constexpr = HEAD_DIM & -HEAD_DIM
    BIAS_H: tl.constexpr = 2 * KERNEL_H - 1 if BY_DISTANCE else KERNEL_H
    BIAS_W: tl.constexpr = 2 * KERNEL_W - 1 if BY_DISTANCE else KERNEL_W
    # Queries whose windows hold one key, at most.
    AFTER_H: tl.constexpr = KERNEL_H - 1 - BEFORE_H
    AFTER_W: tl.constexpr = KERNEL_W - 1 - BEFORE_W
    MOST_H: tl.constexpr = 2 * KERNEL_H - 1 if SHIFTED_H else KERNEL_H
    MOST_W: tl.constexpr = 2 * KERNEL_W - 1 if SHIFTED_W else KERNEL_W
    block: tl.constexpr = BLOCK_H * BLOCK_W
    unit = tl.program_id(0) // (2 * heads)
    head = tl.program_id(0) - unit * 2 * heads
    takes_keys = head >= heads
    head = tl.where(takes_keys, head - heads, head)
    batch, head, tile = program_tile(unit * heads + head, heads, tiles)
    entry = head_entry(table_ptr, head)
    if not is_tile(entry, tile, BLOCK_H, BLOCK_W):
        return
    y, x, dilation_h, dilation_w = strip_origins(
        entry, tile, height, width, KERNEL_W, BLOCK_H, BLOCK_W, STRIP
    )
    valid = on_map(y, height) & on_map(x, width)
    q_map = map_view(q_ptr, q_strides, batch, head, ALIGN, INDEX_64)
    k_map = map_view(k_ptr, k_strides, batch, head, ALIGN, INDEX_64)
    v_map = map_view(v_ptr, v_strides, batch, head, ALIGN, INDEX_64)
    grad_out_map = map_view(grad_out_ptr, grad_out_strides, batch, head, ALIGN, INDEX_64)
    bias_head = head_of_bias(bias_ptr, head, BIAS_H * BIAS_W)
    key_mask_map = map_of_key_mask(key_mask_ptr, batch, height, width, INDEX_64)
    pixels = height.to(tl.int64) * width * heads
    scalar_strides = (pixels, width * heads, heads, 1)
    lse_map = map_view(lse_ptr, scalar_strides, batch, head, 1, INDEX_64)
    delta_map = map_view(delta_ptr, scalar_strides, batch, head, 1, INDEX_64)
    strides = (pixels * HEAD_DIM, width * heads * HEAD_DIM, heads * HEAD_DIM, HEAD_DIM)
    phase_h, index_h, length_h = place(y, dilation_h, height)
    phase_w, index_w, length_w = place(x, dilation_w, width)
    zeros = ()
    for _ in tl.static_range(CHUNKS):
        zeros = zeros + (tl.zeros((block, BLOCK_D), tl.float32),)

    if takes_keys:
        k = load_token(k_map, y, x, valid, HEAD_DIM, BLOCK_D, ALIGN)
        v = load_token(v_map, y, x, valid, HEAD_DIM, BLOCK_D, ALIGN)
        kept = kept_taps(key_mask_map, y, (x,), (valid,), False)
        grad_key = zeros
        grad_value = zeros
        for n_h in range(MOST_H):
            # Shifted windows may hold a key that lies as far away as they are large.
            row = index_h + n_h - (KERNEL_H - 1 if SHIFTED_H else AFTER_H)
            row_y = phase_h + row * dilation_h
            tap_h = index_h - window_start(row, length_h, KERNEL_H, BEFORE_H, SHIFTED_H)
            reads_h = valid & on_map(row, length_h) & (tap_h >= 0) & (tap_h < KERNEL_H)
            for n_w in range(MOST_W):
                column = index_w + n_w - (KERNEL_W - 1 if SHIFTED_W else AFTER_W)
                column_x = phase_w + column * dilation_w
                tap_w = index_w - window_start(column, length_w, KERNEL_W, BEFORE_W, SHIFTED_W)
                reads = reads_h & on_map(column, length_w) & (tap_w >= 0) & (tap_w < KERNEL_W)
                query = load_token(q_map, row_y, column_x, reads, HEAD_DIM, BLOCK_D, ALIGN)
                grad_out = load_token(
                    grad_out_map, row_y, column_x, reads, HEAD_DIM, BLOCK_D, ALIGN
                )
                bias_row = index_h - row + (KERNEL_H - 1) if BY_DISTANCE else tap_h
                bias_column = index_w - column + (KERNEL_W - 1) if BY_DISTANCE else tap_w
                bias = load_bias(bias_head, bias_row, bias_column, reads, KERNEL_W, BY_DISTANCE)
                score = scaled(inner_product(k, 0, query, 0, CHUNKS), scale, bias)
                if kept is not None:
                    score = tl.where(kept[0], score, float("-inf"))
                lse = load_lse(lse_map, row_y, (column_x,), (reads,), True)
                delta = load_scalars(delta_map, row_y, (column_x,), (reads,), 0.0)
                probability = tl.exp(score - lse[0])
                grad_probability = inner_product(v, 0, grad_out, 0, CHUNKS)
                grad_score = probability * (grad_probability - delta[0])
                grad_key = add_weighted(grad_key, grad_score, query, CHUNKS)
                grad_value = add_weighted(grad_value, probability, grad_out, CHUNKS)
        grad_key_map = map_view(grad_key_ptr, strides, batch, head, OUT_ALIGN, INDEX_64)
        grad_value_map = map_view(grad_value_ptr, strides, batch, head, OUT_ALIGN, INDEX_64)
        store_token(grad_key_map, y, x, valid, grad_key, 0, scale, HEAD_DIM, BLOCK_D, OUT_ALIGN)
        store_token(grad_value_map, y, x, valid, grad_value, 0, 1.0, HEAD_DIM, BLOCK_D, OUT_ALIGN)
    else:
        q = load_token(q_map, y, x, valid, HEAD_DIM, BLOCK_D, ALIGN)
        grad_out = load_token(grad_out_map, y, x, valid, HEAD_DIM, BLOCK_D, ALIGN)
        lse = load_lse(lse_map, y, (x,), (valid,), True)
        delta = load_scalars(delta_map, y, (x,), (valid,), 0.0)
        start_h = window_start(index_h, length_h, KERNEL_H, BEFORE_H, SHIFTED_H)
        start_w = window_start(index_w, length_w, KERNEL_W, BEFORE_W, SHIFTED_W)
        # With the gradient of a bias by distance, one distance after the other for all queries of
        # the program, whichever tap has it; else one tap after the other.
        DISTANCES: tl.constexpr = BY_DISTANCE and bias_ptr is not None
        STEPS_H: tl.constexpr = BIAS_H if DISTANCES else KERNEL_H
        STEPS_W: tl.constexpr = BIAS_W if DISTANCES else KERNEL_W
        parts = None
        if bias_ptr is not None:
            first = unit.to(tl.int64) * heads * (BIAS_H * BIAS_W)
            parts = head_of_bias(bias_parts_ptr + first, head, BIAS_H * BIAS_W)
        grad_query = zeros
        for step_h in range(STEPS_H):
            row = step_h + (index_h - (KERNEL_H - 1) if DISTANCES else start_h)
            tap_h = row - start_h
            tap_y = phase_h + row * dilation_h
            is_tap_h = valid & (tap_h >= 0) & (tap_h < KERNEL_H)
            for step_w in range(STEPS_W):
                column = step_w + (index_w - (KERNEL_W - 1) if DISTANCES else start_w)
                tap_w = column - start_w
                tap_x = phase_w + column * dilation_w
                is_tap = is_tap_h & (tap_w >= 0) & (tap_w < KERNEL_W)
                reads = is_tap & on_map(row, length_h) & on_map(column, length_w)
                key = load_token(k_map, tap_y, tap_x, reads, HEAD_DIM, BLOCK_D, ALIGN)
                value = load_token(v_map, tap_y, tap_x, reads, HEAD_DIM, BLOCK_D, ALIGN)
                bias_row = row - index_h + (KERNEL_H - 1) if BY_DISTANCE else tap_h
                bias_column = column - index_w + (KERNEL_W - 1) if BY_DISTANCE else tap_w
                bias = load_bias(bias_head, bias_row, bias_column, is_tap, KERNEL_W, BY_DISTANCE)
                score = scaled(inner_product(q, 0, key, 0, CHUNKS), scale, bias)
                kept = kept_taps(key_mask_map, tap_y, (tap_x,), (reads,), MASKED)
                if kept is not None:
                    score = tl.where(kept[0], score, float("-inf"))
                probability = tl.where(is_tap, tl.exp(score - lse[0]), 0.0)
                grad_probability = inner_product(grad_out, 0, value, 0, CHUNKS)
                grad_score = probability * (grad_probability - delta[0])
                if parts is not None:
                    tl.store(parts + step_h * BIAS_W + step_w, tl.sum(grad_score, axis=0))
                grad_query = add_weighted(grad_query, grad_score, key, CHUNKS)
        grad_query_map = map_view(grad_query_ptr, strides, batch, head, OUT_ALIGN, INDEX_64)
        store_token(grad_query_map, y, x, valid, grad_query, 0, scale, HEAD_DIM, BLOCK_D, OUT_ALIGN)
