"""Loads and stores of the Triton kernels: tokens in chunks, always computed on in float32.

A *map* is the part of a tensor that belongs to one image and one head: a pointer to its pixel
(0, 0) and the strides of a row and a column. A *token* is one pixel of it, `HEAD_DIM` consecutive
features, held as a tuple of cdiv(HEAD_DIM, BLOCK_D) chunks of `BLOCK_D` features. So head
dimensions such as 24, 48 or 96 waste nothing (3 chunks of 8, 16, 32), and a thread can own several
16-byte accesses, which makes sums over the head dimension cheaper. A ragged last chunk is masked,
never read or written.

`ALIGN` is a power of two that divides all strides: what makes wide accesses legal.
"""

# Triton's language grows tuples by addition only, and a tuple there has no fixed type.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment,index"

from __future__ import annotations

import triton.language as tl

from .inline import inline


@inline
def map_view(ptr, strides, batch, head, ALIGN: tl.constexpr, INDEX_64: tl.constexpr):
    """The map of one image and head of a tensor with `strides` (batch, height, width, heads).

    The way to the map is 64-bit always; inside it offsets are 32-bit unless `INDEX_64`.
    """
    start = batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[3]
    stride_h = strides[1]
    stride_w = strides[2]
    if INDEX_64:
        stride_h = tl.cast(stride_h, tl.int64)
        stride_w = tl.cast(stride_w, tl.int64)
    return ptr + tl.multiple_of(start, ALIGN), stride_h, stride_w


@inline
def map_of_key_mask(ptr, batch, height, width, INDEX_64: tl.constexpr):
    """The map of one image of the key mask, contiguous (batch, height, width); None without one."""
    view = None
    if ptr is not None:
        strides = (height.to(tl.int64) * width, width, 1, 0)
        view = map_view(ptr, strides, batch, batch, 1, INDEX_64)
    return view


@inline
def head_of_bias(ptr, head, TAPS: tl.constexpr):
    """Pointer to what is one head's of a tensor (heads, TAPS), None where that is None."""
    start = None  # not returned as it stands, which Triton before 3.7 would make a tensor
    if ptr is not None:
        start = ptr + head.to(tl.int64) * TAPS
    return start


@inline
def token_pointers(view, y, x, ALIGN: tl.constexpr):
    """Pointers (BLOCK, 1) to the first element of the tokens at `y`, `x` (BLOCK,)."""
    offset = tl.multiple_of(y * view[1] + x * view[2], ALIGN)
    return (view[0] + offset)[:, None]


@inline
def chunk_mask(valid, chunk: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Mask of one chunk of the tokens that are `valid` (BLOCK,): broadcasts to (BLOCK, BLOCK_D)."""
    mask = valid[:, None]
    if (chunk + 1) * BLOCK_D > HEAD_DIM:
        feature = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        mask = mask & (feature < HEAD_DIM)[None, :]
    return mask


@inline
def as_float32(value):
    """`value` in float32.

    A bfloat16 is the upper half of a float32. Said like this, it takes one instruction; Triton's
    own conversion takes two for every second value.
    """
    if value.dtype == tl.bfloat16:
        bits = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@inline
def load_token(
    view, y, x, valid, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr
):
    """Tokens at `y`, `x` (BLOCK,), zero where not `valid`: a float32 (BLOCK, BLOCK_D) per chunk."""
    pointers = token_pointers(view, y, x, ALIGN)
    token = ()
    for chunk in tl.static_range((HEAD_DIM + BLOCK_D - 1) // BLOCK_D):
        feature = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        mask = chunk_mask(valid, chunk, HEAD_DIM, BLOCK_D)
        value = tl.load(pointers + feature[None, :], mask=mask, other=0.0)
        token = token + (as_float32(value),)
    return token


@inline
def load_row(
    view, y, columns, valid, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr
):
    """The tokens of row `y` at each of `columns`, chunk fastest (see `geometry.window_row`)."""
    tokens = ()
    for column in tl.static_range(len(columns)):
        tokens = tokens + load_token(
            view, y, columns[column], valid[column], HEAD_DIM, BLOCK_D, ALIGN
        )
    return tokens


@inline
def store_token(
    view,
    y,
    x,
    valid,
    tokens,
    first: tl.constexpr,
    factor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """Writes `factor` times the token that starts at entry `first` of `tokens`."""
    pointers = token_pointers(view, y, x, ALIGN)
    for chunk in tl.static_range((HEAD_DIM + BLOCK_D - 1) // BLOCK_D):
        feature = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        mask = chunk_mask(valid, chunk, HEAD_DIM, BLOCK_D)
        value = (tokens[first + chunk] * factor).to(view[0].dtype.element_ty)
        tl.store(pointers + feature[None, :], value, mask=mask)


@inline
def load_scalars(view, y, columns, valid, other):
    """One number per pixel of row `y` at each of `columns`: a tuple of (BLOCK,)."""
    values = ()
    for column in tl.static_range(len(columns)):
        pointers = view[0] + (y * view[1] + columns[column] * view[2])
        values = values + (tl.load(pointers, mask=valid[column], other=other),)
    return values


@inline
def load_lse(lse_map, y, columns, valid, CAN_BE_EMPTY: tl.constexpr):
    """lse of the queries of row `y` at each of `columns`, for exp(score - lse).

    It is inf, which makes every probability exp(-inf), off the map and for a window that has
    nothing left, whose scores and lse are all -inf.
    """
    values = load_scalars(lse_map, y, columns, valid, float("inf"))
    if CAN_BE_EMPTY:
        loaded = values
        values = ()
        for column in tl.static_range(len(columns)):
            lse = loaded[column]
            values = values + (tl.where(lse == float("-inf"), float("inf"), lse),)
    return values


@inline
def kept_taps(key_mask_map, y, columns, valid, MASKED: tl.constexpr):
    """Whether the taps of row `y` at each of `columns` are in the softmax: a tuple of (BLOCK,).

    None where all are. Off the map the padding mode alone decides, on it the key mask, if there is
    one.
    """
    kept = None
    if key_mask_map is not None:
        kept = ()
        entries = load_scalars(key_mask_map, y, columns, valid, 0 if MASKED else 1)
        for column in tl.static_range(len(columns)):
            kept = kept + (entries[column] != 0,)
    elif MASKED:
        kept = valid
    return kept
