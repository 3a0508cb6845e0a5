"""Products of a strip of tokens with one row of taps: what forward and backward have in common.

A strip is a flat tuple of STRIP * CHUNKS chunks (BLOCK, BLOCK_D), a row of taps one of
(STRIP + KERNEL_W - 1) * CHUNKS; tap t of token i of the strip is token i + t of the row. Products
and weights are flat tuples of STRIP * KERNEL_W entries (BLOCK,).
"""

# Triton's language grows tuples by addition only, and a tuple there has no fixed type.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment,index"

from __future__ import annotations

import triton.language as tl

from .inline import inline


@inline
def scaled(product, scale, bias):
    """The score of an inner product, bias being 0.0 where there is none.

    It is rounded here, once. A product that the compiler may contract with what follows would lose
    nothing in score - lse, but lse is of rounded scores: where they are large, the probability of a
    window's largest score would no longer be 1 at most.
    """
    return tl.fma(product, scale, bias)


@inline
def inner_product(a, first_a: tl.constexpr, b, first_b: tl.constexpr, CHUNKS: tl.constexpr):
    """Sum over the head dimension of the tokens that start at entries of `a` and `b`, (BLOCK,)."""
    product = a[first_a] * b[first_b]
    for chunk in tl.static_range(1, CHUNKS):
        product = tl.fma(a[first_a + chunk], b[first_b + chunk], product)
    return tl.sum(product, axis=1)


@inline
def row_products(a, b, KERNEL_W: tl.constexpr, STRIP: tl.constexpr, CHUNKS: tl.constexpr):
    """Inner product of each token of the strip `a` with each tap of the row `b`, tap fastest."""
    products = ()
    for query in tl.static_range(STRIP):
        for tap in tl.static_range(KERNEL_W):
            product = inner_product(a, query * CHUNKS, b, (query + tap) * CHUNKS, CHUNKS)
            products = products + (product,)
    return products


@inline
def row_scores(
    q,
    keys,
    kept,
    bias_row,
    scale,
    KERNEL_W: tl.constexpr,
    MIRRORED: tl.constexpr,
    STRIP: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Scores of one row of taps: one (BLOCK,) per query of the strip and tap.

    q: chunked tokens of the strip; keys, kept: as `load_row` and `kept_taps` give them. A padded
    key is zero, so that its score is the bias alone; a key that is not kept has the score -inf.
    bias_row: pointer to the bias of this row of taps, or None. `MIRRORED`: q and keys have changed
    roles, and kept is that of the strip; tap t of it is then tap KERNEL_W - 1 - t of the window.
    """
    scores = ()
    for query in tl.static_range(STRIP):
        for tap in tl.static_range(KERNEL_W):
            score = inner_product(q, query * CHUNKS, keys, (query + tap) * CHUNKS, CHUNKS)
            bias_tap = KERNEL_W - 1 - tap if MIRRORED else tap
            score = scaled(score, scale, 0.0 if bias_row is None else tl.load(bias_row + bias_tap))
            if kept is not None:
                score = tl.where(kept[query if MIRRORED else query + tap], score, float("-inf"))
            scores = scores + (score,)
    return scores


@inline
def add_weighted_row(
    totals,
    tokens,
    weights,
    first: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIP: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """`totals` plus the tokens of one row of taps, each times its weight.

    The weight of query i and tap t is entry first + i * KERNEL_W + t of `weights`.
    """
    sums = ()
    for query in tl.static_range(STRIP):
        for chunk in tl.static_range(CHUNKS):
            total = totals[query * CHUNKS + chunk]
            for tap in tl.static_range(KERNEL_W):
                weight = weights[first + query * KERNEL_W + tap]
                total += weight[:, None] * tokens[(query + tap) * CHUNKS + chunk]
            sums = sums + (total,)
    return sums
