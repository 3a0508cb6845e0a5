"""Backward kernels: delta, then the gradients of query, key, value and bias.

Every gradient is gathered by the program that owns it: a key collects from the queries whose
windows hold it, so nothing is added atomically and each sum has one order. Probabilities are
recomputed from lse. With delta = sum(grad_out * out) - grad_lse, for each tap of each query:

    probability = exp(score - lse)
    grad_probability = <grad_out, v>
    grad_score = probability * (grad_probability - delta)

and, summed over the taps t, or for the bias over all queries:

    grad_query = scale * sum_t grad_score k    grad_value = sum_t probability grad_out
    grad_key = scale * sum_t grad_score q      grad_bias = sum grad_score

Where nothing is left of a window its probabilities and its delta are 0, and so is all of that.
"""

# Triton's language grows tuples by addition only, and a tuple there has no fixed type.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment,index"

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
    load_lse,
    load_row,
    load_scalars,
    load_token,
    map_of_key_mask,
    map_view,
    store_token,
)
from .products import add_weighted_row, row_products, row_scores


@triton.jit(do_not_specialize=["height", "width", "heads", "blocks"])
def delta_kernel(
    grad_out_ptr,
    out_ptr,
    lse_ptr,
    grad_lse_ptr,
    delta_ptr,
    grad_out_strides,
    height,
    width,
    heads,
    blocks,
    HEAD_DIM: tl.constexpr,
    ALIGN: tl.constexpr,
    INDEX_64: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Writes delta (batch, height, width, heads) float32: sum(grad_out * out) - grad_lse.

    It is 0 where lse is -inf, whatever grad_lse is there: nothing goes back through a window with
    nothing left. lse may be None where there can be no such window.

    A program takes `BLOCK` of the width * heads tokens of one row of a map, one of `blocks`.
    grad_out has the given strides of (batch, height, width, heads), the others are contiguous;
    grad_lse may be None.
    """
    OUT_ALIGN: tl.constexpr = HEAD_DIM & -HEAD_DIM
    program = tl.program_id(0)
    row = program // blocks
    batch = row // height
    index = (program - row * blocks) * BLOCK + tl.arange(0, BLOCK)
    valid = index < width * heads
    x = index // heads
    head = index - x * heads

    # A row is a map of width x heads pixels here.
    y = row - batch * height
    strides = (grad_out_strides[0], grad_out_strides[2], grad_out_strides[3], grad_out_strides[1])
    grad_out_row = map_view(grad_out_ptr, strides, batch, y, ALIGN, INDEX_64)
    grad_out = load_token(grad_out_row, x, head, valid, HEAD_DIM, BLOCK_D, ALIGN)
    first = row.to(tl.int64) * (width * heads)
    out_row = (out_ptr + tl.multiple_of(first * HEAD_DIM, OUT_ALIGN), heads * HEAD_DIM, HEAD_DIM)
    out = load_token(out_row, x, head, valid, HEAD_DIM, BLOCK_D, OUT_ALIGN)

    product = grad_out[0] * out[0]
    for chunk in tl.static_range(1, (HEAD_DIM + BLOCK_D - 1) // BLOCK_D):
        product = tl.fma(grad_out[chunk], out[chunk], product)
    delta = tl.sum(product, axis=1)
    if grad_lse_ptr is not None:
        delta -= tl.load(grad_lse_ptr + first + index, mask=valid, other=0.0)
    if lse_ptr is not None:
        lse = tl.load(lse_ptr + first + index, mask=valid, other=0.0)
        delta = tl.where(lse == float("-inf"), 0.0, delta)
    tl.store(delta_ptr + first + index, delta, mask=valid)


@inline
def score_gradients(
    scores,
    grad_probabilities,
    lse,
    delta,
    KERNEL_W: tl.constexpr,
    MIRRORED: tl.constexpr,
    STRIP: tl.constexpr,
):
    """(probabilities, grad_scores) of a row of taps, flat tuples like those given.

    lse and delta belong to queries: to those of the strip, or, `MIRRORED`, to those of the row.
    """
    probabilities = ()
    grad_scores = ()
    for i in tl.static_range(STRIP):
        for tap in tl.static_range(KERNEL_W):
            lse_of_query = lse[i + tap if MIRRORED else i]
            delta_of_query = delta[i + tap if MIRRORED else i]
            probability = tl.exp(scores[i * KERNEL_W + tap] - lse_of_query)
            grad_score = probability * (grad_probabilities[i * KERNEL_W + tap] - delta_of_query)
            probabilities = probabilities + (probability,)
            grad_scores = grad_scores + (grad_score,)
    return probabilities, grad_scores


@inline
def query_row(
    grad_query,
    q,
    grad_out,
    lse,
    delta,
    k_map,
    v_map,
    key_mask_map,
    bias_row,
    bias_parts_row,
    y,
    x,
    dilation_w,
    height,
    width,
    scale,
    HEAD_DIM: tl.constexpr,
    KERNEL_W: tl.constexpr,
    MASKED: tl.constexpr,
    ALIGN: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """`grad_query` / scale plus what one row of taps, on map row `y`, adds to it.

    Writes the row's part of grad_bias to `bias_parts_row` (KERNEL_W,) unless that is None.
    """
    columns, valid = window_row(y, x, dilation_w, height, width, KERNEL_W, STRIP)
    keys = load_row(k_map, y, columns, valid, HEAD_DIM, BLOCK_D, ALIGN)
    values = load_row(v_map, y, columns, valid, HEAD_DIM, BLOCK_D, ALIGN)
    kept = kept_taps(key_mask_map, y, columns, valid, MASKED)
    scores = row_scores(q, keys, kept, bias_row, scale, KERNEL_W, False, STRIP, CHUNKS)
    grad_probabilities = row_products(grad_out, values, KERNEL_W, STRIP, CHUNKS)
    _, grad_scores = score_gradients(scores, grad_probabilities, lse, delta, KERNEL_W, False, STRIP)
    if bias_parts_row is not None:
        for tap in tl.static_range(KERNEL_W):
            total = grad_scores[tap]
            for query in tl.static_range(1, STRIP):
                total += grad_scores[query * KERNEL_W + tap]
            tl.store(bias_parts_row + tap, tl.sum(total, axis=0))
    return add_weighted_row(grad_query, keys, grad_scores, 0, KERNEL_W, STRIP, CHUNKS)


@inline
def key_row(
    grad_key,
    grad_value,
    k,
    v,
    kept,
    q_map,
    grad_out_map,
    lse_map,
    delta_map,
    bias_row,
    y,
    x,
    dilation_w,
    height,
    width,
    scale,
    HEAD_DIM: tl.constexpr,
    KERNEL_W: tl.constexpr,
    ALIGN: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    CAN_BE_EMPTY: tl.constexpr,
):
    """`grad_key` / scale and `grad_value` plus what one row of queries adds to them.

    Those are the queries on map row `y` that see these keys; one that is not `kept` gets nothing.
    """
    columns, valid = window_row(y, x, dilation_w, height, width, KERNEL_W, STRIP)
    queries = load_row(q_map, y, columns, valid, HEAD_DIM, BLOCK_D, ALIGN)
    grad_outs = load_row(grad_out_map, y, columns, valid, HEAD_DIM, BLOCK_D, ALIGN)
    lse = load_lse(lse_map, y, columns, valid, CAN_BE_EMPTY)
    delta = load_scalars(delta_map, y, columns, valid, 0.0)
    scores = row_scores(k, queries, kept, bias_row, scale, KERNEL_W, True, STRIP, CHUNKS)
    grad_probabilities = row_products(v, grad_outs, KERNEL_W, STRIP, CHUNKS)
    probabilities, grad_scores = score_gradients(
        scores, grad_probabilities, lse, delta, KERNEL_W, True, STRIP
    )
    grad_key = add_weighted_row(grad_key, queries, grad_scores, 0, KERNEL_W, STRIP, CHUNKS)
    grad_value = add_weighted_row(grad_value, grad_outs, probabilities, 0, KERNEL_W, STRIP, CHUNKS)
    return grad_key, grad_value


@triton.jit(do_not_specialize=["height", "width", "heads", "tiles", "scale"])
def backward_kernel(
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
    MASKED: tl.constexpr,
    ALIGN: tl.constexpr,
    INDEX_64: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Writes grad_query, grad_key, grad_value, contiguous, and each program's part of grad_bias.

    Of two groups of `heads` programs the first takes a tile as queries (grad_query and grad_bias),
    the second the same tile as keys (grad_key and grad_value): what one has read is in the L2 cache
    for the other.
    bias_parts: (batch * tiles, heads, KERNEL_H, KERNEL_W) float32, 0 where a head has no such tile,
    None where bias is; lse, delta: contiguous; the others as in `forward_kernel`.
    """
    CHUNKS: tl.constexpr = (HEAD_DIM + BLOCK_D - 1) // BLOCK_D
    OUT_ALIGN: tl.constexpr = HEAD_DIM & -HEAD_DIM
    # Whether a window can have nothing left: with neither, its centre tap always counts.
    CAN_BE_EMPTY: tl.constexpr = bias_ptr is not None or key_mask_ptr is not None
    block: tl.constexpr = BLOCK_H * BLOCK_W
    unit = tl.program_id(0) // (2 * heads)
    head = tl.program_id(0) - unit * 2 * heads
    takes_keys = head >= heads
    head = tl.where(takes_keys, head - heads, head)
    batch, head, tile = program_tile(unit * heads + head, heads, tiles)
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
    grad_out_map = map_view(grad_out_ptr, grad_out_strides, batch, head, ALIGN, INDEX_64)
    bias_head = head_of_bias(bias_ptr, head, KERNEL_H * KERNEL_W)
    key_mask_map = map_of_key_mask(key_mask_ptr, batch, height, width, INDEX_64)
    pixels = height.to(tl.int64) * width * heads
    scalar_strides = (pixels, width * heads, heads, 1)
    lse_map = map_view(lse_ptr, scalar_strides, batch, head, 1, INDEX_64)
    delta_map = map_view(delta_ptr, scalar_strides, batch, head, 1, INDEX_64)
    strides = (pixels * HEAD_DIM, width * heads * HEAD_DIM, heads * HEAD_DIM, HEAD_DIM)
    columns, valid = window_row(y, x, dilation_w, height, width, 1, STRIP)
    zeros = ()
    for _ in tl.static_range(STRIP * CHUNKS):
        zeros = zeros + (tl.zeros((block, BLOCK_D), tl.float32),)

    if takes_keys:
        k = load_row(k_map, y, columns, valid, HEAD_DIM, BLOCK_D, ALIGN)
        v = load_row(v_map, y, columns, valid, HEAD_DIM, BLOCK_D, ALIGN)
        kept = kept_taps(key_mask_map, y, columns, valid, False)
        grad_key = zeros
        grad_value = zeros
        for tap_h in range(KERNEL_H):
            row_y = tap_coordinate(y, tap_h, dilation_h, KERNEL_H)
            mirrored_h = KERNEL_H - 1 - tap_h
            bias_row = None if bias_head is None else bias_head + mirrored_h * KERNEL_W
            grad_key, grad_value = key_row(
                grad_key, grad_value, k, v, kept, q_map, grad_out_map, lse_map, delta_map, bias_row,
                row_y, x, dilation_w, height, width, scale,
                HEAD_DIM, KERNEL_W, ALIGN, STRIP, BLOCK_D, CHUNKS, CAN_BE_EMPTY,
            )  # fmt: skip
        grad_key_map = map_view(grad_key_ptr, strides, batch, head, OUT_ALIGN, INDEX_64)
        grad_value_map = map_view(grad_value_ptr, strides, batch, head, OUT_ALIGN, INDEX_64)
        for i in tl.static_range(STRIP):
            store_token(
                grad_key_map, y, columns[i], valid[i], grad_key, i * CHUNKS, scale,
                HEAD_DIM, BLOCK_D, OUT_ALIGN,
            )  # fmt: skip
            store_token(
                grad_value_map, y, columns[i], valid[i], grad_value, i * CHUNKS, 1.0,
                HEAD_DIM, BLOCK_D, OUT_ALIGN,
            )  # fmt: skip
    else:
        q = load_row(q_map, y, columns, valid, HEAD_DIM, BLOCK_D, ALIGN)
        grad_out = load_row(grad_out_map, y, columns, valid, HEAD_DIM, BLOCK_D, ALIGN)
        lse = load_lse(lse_map, y, columns, valid, CAN_BE_EMPTY)
        delta = load_scalars(delta_map, y, columns, valid, 0.0)
        parts = None
        if bias_ptr is not None:
            first = unit.to(tl.int64) * heads * (KERNEL_H * KERNEL_W)
            parts = head_of_bias(bias_parts_ptr + first, head, KERNEL_H * KERNEL_W)
        grad_query = zeros
        for tap_h in range(KERNEL_H):
            row_y = tap_coordinate(y, tap_h, dilation_h, KERNEL_H)
            bias_row = None if bias_head is None else bias_head + tap_h * KERNEL_W
            bias_parts_row = None if parts is None else parts + tap_h * KERNEL_W
            grad_query = query_row(
                grad_query, q, grad_out, lse, delta, k_map, v_map, key_mask_map,
                bias_row, bias_parts_row, row_y, x, dilation_w, height, width, scale,
                HEAD_DIM, KERNEL_W, MASKED, ALIGN, STRIP, BLOCK_D, CHUNKS,
            )  # fmt: skip
        grad_query_map = map_view(grad_query_ptr, strides, batch, head, OUT_ALIGN, INDEX_64)
        for i in tl.static_range(STRIP):
            store_token(
                grad_query_map, y, columns[i], valid[i], grad_query, i * CHUNKS, scale,
                HEAD_DIM, BLOCK_D, OUT_ALIGN,
            )  # fmt: skip
