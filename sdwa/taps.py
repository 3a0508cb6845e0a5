"""Attention in two steps, tap by tap, in plain PyTorch: scores, and values weighted by them.

For those who ask for the weights in between (`sdwa.natten`). Nothing here holds a window's tokens
for all queries at once, as `sdwa.reference` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_compiling

from sdwa.problem import WindowAxis, accumulation_dtype
from sdwa.reference import taps_along

_BLOCK_BYTES = 2**20


class Taps:
    """Which pixels the taps of all windows of a map read.

    Attributes:
        count: taps of a window.
        on_map: (height, width, taps); those of causal windows that are not are left out.
        all_on_map: whether all are, as those of windows are that fit and are not causal.
    """

    def __init__(
        self,
        rows: tuple[WindowAxis, int, int],
        columns: tuple[WindowAxis, int, int],
        device: torch.device,
    ) -> None:
        self._axes = rows, columns
        sources, on_axes, self._places = [], [], []
        for axis, length, dilation in (rows, columns):
            coordinate, distance = taps_along(axis, length, dilation, device)
            # Of a causal window that begins before the map, the taps on it come first.
            missing = (coordinate < 0).sum(1, keepdim=True)
            coordinate, distance = coordinate + missing * dilation, distance + missing
            on_axes.append(torch.arange(axis.size, device=device) < axis.size - missing)
            sources.append(coordinate.clamp(0, length - 1))
            self._places.append(distance + axis.size - 1)
        self._rows, self._columns = sources
        self.count = self._rows.shape[1] * self._columns.shape[1]
        on_map = on_axes[0][:, None, :, None] & on_axes[1][None, :, None, :]
        self.on_map = on_map.flatten(2)
        self.all_on_map = all(axis.shifted or axis.size == 1 for axis, *_ in (rows, columns))

    def __repr__(self) -> str:
        """The same for the same windows: `torch.jit.trace` compares what two runs print."""
        return f"Taps{self._axes}"

    def blocks(self, x: Tensor) -> Iterator[slice]:
        """The rows of queries: on a CPU in parts whose tokens, of a tap, stay in its cache."""
        if x.device.type != "cpu" or is_compiling():  # sizes may be unknown then
            yield slice(None)
            return
        height = self._rows.shape[0]
        rows = max(1, int(height * _BLOCK_BYTES / max(1, x.nbytes)))
        for first in range(0, height, rows):
            yield slice(first, first + rows)

    def each(self, x: Tensor, rows: slice) -> Iterator[tuple[int, Tensor]]:
        """Number of each tap, and what it reads of x (batch, heads, height, width, channels)."""
        number = 0
        for h in range(self._rows.shape[1]):
            row = x.index_select(2, self._rows[rows, h])
            for w in range(self._columns.shape[1]):
                read = row.index_select(3, self._columns[:, w])
                yield number, self._kept(read, rows, number)
                number += 1

    def add_back(self, to: Tensor, rows: slice, attn: Tensor, x: Tensor) -> None:
        """Adds attn * x at each query of the rows to what its taps read of `to`: `each` turned."""
        of_rows = x[:, :, rows].to(to.dtype)
        number = 0
        for h in range(self._rows.shape[1]):
            sources = self._rows[rows, h]
            row = to.new_zeros(*to.shape[:2], len(sources), *to.shape[3:])
            for w in range(self._columns.shape[1]):
                added = self._kept(_apart(attn, rows, number, x) * of_rows, rows, number)
                row.index_add_(3, self._columns[:, w], added)
                number += 1
            to.index_add_(2, sources, row)

    def bias(self, rpb: Tensor) -> Tensor:
        """(heads, height, width, taps) of a bias by distance."""
        rows, columns = self._places
        if rpb.dim() == 2:
            rpb = rpb.unsqueeze(1)
        of_rows = rpb.index_select(1, rows.flatten()).unflatten(1, rows.shape)  # type: ignore[no-untyped-call]
        of_both = of_rows.index_select(3, columns.flatten()).unflatten(3, columns.shape)
        return of_both.permute(0, 1, 3, 2, 4).flatten(3)  # type: ignore[no-any-return]

    def _kept(self, x: Tensor, rows: slice, tap: int) -> Tensor:
        return x if self.all_on_map else torch.where(self.on_map[rows, :, tap, None], x, 0)


# Scores, weighted sums, and the sums that go back to the keys: each is differentiated by the
# others.


def _apart(attn: Tensor, rows: slice, tap: int, like: Tensor) -> Tensor:
    return attn[:, :, rows, :, tap, None].to(accumulation_dtype(like.dtype))


class _Product(Function):
    """What they have in common: two tensors and the taps."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.taps = inputs
        ctx.save_for_backward(*tensors)


class Scores(_Product):
    """scores[q, t] = <query[q], key[what t reads]>"""

    @staticmethod
    def forward(query: Tensor, key: Tensor, taps: Taps) -> Tensor:
        accumulate = accumulation_dtype(query.dtype)
        scores = query.new_empty(*query.shape[:-1], taps.count)
        for rows in taps.blocks(key):
            of_rows = query[:, :, rows].to(accumulate)
            for tap, read in taps.each(key, rows):
                scores[:, :, rows, :, tap] = (of_rows * read.to(accumulate)).sum(-1)
        return scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key = ctx.saved_tensors
        return Sums.apply(grad, key, ctx.taps), SumsBack.apply(grad, query, ctx.taps), None


class Sums(_Product):
    """out[q] = sum_t attn[q, t] * value[what t reads]"""

    @staticmethod
    def forward(attn: Tensor, value: Tensor, taps: Taps) -> Tensor:
        out = value.new_zeros(value.shape, dtype=accumulation_dtype(value.dtype))
        for rows in taps.blocks(value):
            of_rows = out[:, :, rows]
            for tap, read in taps.each(value, rows):
                of_rows.addcmul_(_apart(attn, rows, tap, value), read.to(out.dtype))
        return out.to(value.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        attn, value = ctx.saved_tensors
        return Scores.apply(grad, value, ctx.taps), SumsBack.apply(attn, grad, ctx.taps), None


class SumsBack(_Product):
    """out[k] = sum of attn[q, t] * x[q] over the queries and taps that read k"""

    @staticmethod
    def forward(attn: Tensor, x: Tensor, taps: Taps) -> Tensor:
        out = x.new_zeros(x.shape, dtype=accumulation_dtype(x.dtype))
        for rows in taps.blocks(x):
            taps.add_back(out, rows, attn, x)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        attn, x = ctx.saved_tensors
        return Scores.apply(x, grad, ctx.taps), Sums.apply(attn, grad, ctx.taps), None
