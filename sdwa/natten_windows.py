"""The windows of NATTEN's functions and layers, on the operator and on the split products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdwa.arguments import check_dense, is_int, is_number
from sdwa.autocast import autocast_off, autocasts
from sdwa.functional import sliding_dilated_window_attention
from sdwa.problem import DTYPES, WindowAxis, accumulation_dtype, dtype_names
from sdwa.taps import Scores, Sums, Taps
from sdwa.torch_private import trace_paused

Sizes = int | Sequence[int]
Flags = bool | Sequence[bool] | None

CAUSAL_BIAS = (
    "rpb must be None for causal windows, as in NATTEN: "
    "sdwa.sliding_dilated_window_attention takes both"
)


def drops(dropout: nn.Module) -> bool:
    """Whether this dropout, which may be in another mode than its module, drops anything now."""
    return dropout.training and getattr(dropout, "p", 1) > 0


class Windows:
    """The windows of a call, of one or two dimensions.

    Attributes:
        kernel_size, dilation, is_causal: one of each per dimension.
    """

    def __init__(
        self, kernel_size: tuple[int, ...], dilation: tuple[int, ...], is_causal: tuple[bool, ...]
    ) -> None:
        self.kernel_size, self.dilation, self.is_causal = kernel_size, dilation, is_causal
        self.dims = len(kernel_size)

    @staticmethod
    def of(
        dims: int, kernel_size: Sizes, dilation: Sizes | None, is_causal: Flags, stride: Sizes = 1
    ) -> Windows:
        """From arguments as NATTEN takes them.

        Raises:
            ValueError: one that is not legal.
        """
        if set(_sizes("stride", stride, dims)) != {1}:
            raise ValueError(
                f"stride must be 1, as strides above 1 are not computed here; got {stride!r}"
            )
        flags = False if is_causal is None else is_causal
        causal = tuple(flags) if isinstance(flags, Sequence) else (flags,) * dims
        if len(causal) != dims or not all(isinstance(flag, bool) for flag in causal):
            raise ValueError(f"is_causal must be a bool or {dims} of them, got {is_causal!r}")
        steps = _sizes("dilation", 1 if dilation is None else dilation, dims)
        return Windows(_sizes("kernel_size", kernel_size, dims), steps, causal)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rpb: Tensor | None,
        scale: float | None,
        more_keys: Tensor | None,
        more_values: Tensor | None,
    ) -> Tensor:
        """See `na1d`."""
        with trace_paused():
            self._check_call(query, key, value, rpb, more_keys, more_values)
            heads, width = query.shape[-2:]
        check_scale("scale", scale)
        scale = scale or width**-0.5
        query, key, value = (
            t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value)
        )
        step = self.dilation if self.dims == 2 else self.dilation[0]
        out, lse = sliding_dilated_window_attention(
            *(query, key, value, self.kernel_size, (step,) * heads),
            bias=rpb,
            scale=scale,
            padding_mode="shifted",
            is_causal=self.is_causal if self.dims == 2 else self.is_causal[0],
            return_lse=True,
        )
        if more_keys is None or more_values is None:
            return out
        with autocast_off(query.device):  # it would round the scores
            return _with_more(out, lse, query, scale, more_keys, more_values)

    def _check_call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rpb: Tensor | None,
        more_keys: Tensor | None,
        more_values: Tensor | None,
    ) -> None:
        axes = f"batch, {self._axes}, heads, head_dim"
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            _check(name, tensor, axes)
        self._check_rpb(rpb, query.shape[-2], query)
        self.check_fits(query.shape[1:-2])
        sizes = {"batch": query.shape[0], "heads": query.shape[-2], "head_dim": query.shape[-1]}
        if more_keys is not None and more_values is not None:
            tokens = "batch, tokens, heads, head_dim"
            _check("additional_keys", more_keys, tokens, **sizes)
            _check_beside("additional_keys", more_keys, "query", query)
            sizes |= {"tokens": more_keys.shape[1], "head_dim": value.shape[-1]}
            _check("additional_values", more_values, tokens, **sizes)
            _check_beside("additional_values", more_values, "query", query)
        elif more_keys is not None or more_values is not None:
            raise ValueError("additional_keys and additional_values must both be given, or none")

    def attend_and_drop(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rpb: Tensor | None,
        scale: float,
        drop: nn.Module,
    ) -> tuple[Tensor, Tensor]:
        """The same, heads last, by the split functions: attention weights go through `drop`.

        Returns:
            The result, and those weights, (batch, heads, [height,] length, taps).
        """
        query, key, value = (t.movedim(-2, 1) for t in (query * scale, key, value))
        weights = drop(self.scores(query, key, rpb, None).softmax(-1))
        return self.weighted(weights, value, None).movedim(1, -2), weights

    def scores(
        self, query: Tensor, key: Tensor, rpb: Tensor | None, more_keys: Tensor | None
    ) -> Tensor:
        """See `na1d_qk`."""
        sizes = self._check_heads_first("query", query)
        self._check_heads_first("key", key)
        if key.shape != query.shape:
            raise ValueError(
                f"key must have the shape of query: got {tuple(key.shape)} beside "
                f"{tuple(query.shape)}"
            )
        _check_beside("key", key, "query", query)
        self._check_rpb(rpb, query.shape[1], query)
        if more_keys is not None:
            _check("additional_keys", more_keys, "batch, heads, tokens, head_dim", **sizes)
            _check_beside("additional_keys", more_keys, "query", query)
        taps = self._taps(query)
        scores = Scores.apply(self._as_map(query), self._as_map(key), taps)
        if rpb is not None:
            scores = scores + taps.bias(rpb.to(scores.dtype))
        if not taps.all_on_map:
            scores = scores.masked_fill(~taps.on_map, float("-inf"))
        if self.dims == 1:
            scores = scores.squeeze(2)
        if more_keys is not None:
            with autocast_off(query.device):
                more = torch.einsum("bn...d,bnkd->bn...k", query, more_keys.to(query.dtype))
            scores = torch.cat([scores, more], -1)
        return scores  # type: ignore[no-any-return]

    def weighted(self, attn: Tensor, value: Tensor, more_values: Tensor | None) -> Tensor:
        """See `na1d_av`."""
        sizes = self._check_heads_first("value", value)
        if more_values is not None:
            _check("additional_values", more_values, "batch, heads, tokens, head_dim", **sizes)
            _check_beside("additional_values", more_values, "value", value)
        taps = self._taps(value)
        more = 0 if more_values is None else more_values.shape[2]
        shape = (*value.shape[:-1], taps.count + more)
        if not isinstance(attn, Tensor):
            raise TypeError(f"attn must be a tensor, got {type(attn).__name__}")
        if attn.shape != shape:
            raise ValueError(f"attn must be {tuple(shape)}, got shape {tuple(attn.shape)}")
        _check_beside("attn", attn, "value", value)
        own, others = attn[..., : taps.count], attn[..., taps.count :]
        out = Sums.apply(self._as_map(own), self._as_map(value), taps)
        if self.dims == 1:
            out = out.squeeze(2)
        if more_values is not None:
            with autocast_off(value.device):
                more_out = torch.einsum(
                    "bn...k,bnkd->bn...d", others.to(value.dtype), more_values.to(value.dtype)
                )
            out = out + more_out
        return out  # type: ignore[no-any-return]

    def _as_map(self, x: Tensor) -> Tensor:
        return x if self.dims == 2 else x.unsqueeze(2)

    def _taps(self, x: Tensor) -> Taps:
        with trace_paused():
            sizes = [1] * (2 - self.dims) + list(x.shape[2:-1])
            rows, columns = (
                (WindowAxis.of(size, True, causal), length, step)
                for size, causal, length, step in zip(
                    (1, *self.kernel_size)[-2:],
                    (False, *self.is_causal)[-2:],
                    sizes,
                    (1, *self.dilation)[-2:],
                    strict=True,
                )
            )
            return Taps(rows, columns, x.device)

    @property
    def _axes(self) -> str:
        return "height, width" if self.dims == 2 else "length"

    def _check_heads_first(self, name: str, x: Tensor) -> dict[str, int]:
        """Sizes of the axes that a tensor has beside its pixels."""
        _check(name, x, f"batch, heads, {self._axes}, head_dim")
        self.check_fits(x.shape[2:-1])
        return {"batch": x.shape[0], "heads": x.shape[1], "head_dim": x.shape[-1]}

    def _check_rpb(self, rpb: Tensor | None, heads: int, query: Tensor) -> None:
        if rpb is None:
            return
        if any(self.is_causal):
            raise NotImplementedError(CAUSAL_BIAS)
        if not isinstance(rpb, Tensor):
            raise TypeError(f"rpb must be a tensor or None, got {type(rpb).__name__}")
        shape = (heads, *(2 * size - 1 for size in self.kernel_size))
        if tuple(rpb.shape) != shape:
            axes = "2 * kernel_h - 1, 2 * kernel_w - 1" if self.dims == 2 else "2 * kernel_size - 1"
            raise ValueError(f"rpb must be (heads, {axes}) = {shape}, got {tuple(rpb.shape)}")
        _check_dtype("rpb", rpb)
        _check_device("rpb", rpb, "query", query)

    def check_fits(self, lengths: Sequence[int]) -> None:
        """Raises ValueError where a window is larger than NATTEN allows."""
        for length, size, step in zip(lengths, self.kernel_size, self.dilation, strict=True):
            if size * step > length:
                raise ValueError(
                    "kernel_size * dilation must be at most the extent of the input, as in NATTEN: "
                    f"got {size} * {step} for {length}; sdwa.sliding_dilated_window_attention "
                    'with padding_mode="shifted" takes such windows'
                )


def _with_more(
    out: Tensor, lse: Tensor, query: Tensor, scale: float, keys: Tensor, values: Tensor
) -> Tensor:
    """The attention to further tokens as well, of that to windows and its lse.

    keys, values: (batch, tokens, heads, head_dim).
    """
    accumulate = accumulation_dtype(query.dtype)
    query = query.to(accumulate) * scale
    scores = torch.einsum("b...nd,bknd->b...nk", query, keys.to(accumulate))
    more_lse = scores.logsumexp(-1)
    weights = (scores - more_lse.unsqueeze(-1)).exp()
    more = torch.einsum("b...nk,bknd->b...nd", weights, values.to(accumulate))
    share = (lse - more_lse).sigmoid().unsqueeze(-1)
    return (share * out.to(accumulate) + (1 - share) * more).to(out.dtype)


def _check(name: str, x: Any, axes: str, **sizes: int) -> None:
    """Raises TypeError or ValueError where the argument `name` is no tensor of these axes.

    sizes: of those that are known.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    check_dense(name, x)
    _check_dtype(name, x)
    found = dict(zip(axes.split(", "), x.shape, strict=False))
    if x.dim() != len(axes.split(", ")) or any(found[axis] != n for axis, n in sizes.items()):
        known = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise ValueError(
            f"{name} must be ({axes}){' with ' + known if known else ''}, got shape "
            f"{tuple(x.shape)}"
        )


def _check_dtype(name: str, x: Tensor) -> None:
    """Raises TypeError where `name` has no dtype of `DTYPES`."""
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be {dtype_names(DTYPES)}, got {x.dtype}")


def _check_beside(name: str, x: Tensor, other: str, beside: Tensor) -> None:
    """Raises TypeError or ValueError where `name` has not the dtype and device of `other`.

    Autocast may well have left two dtypes.
    """
    _check_dtype(name, x)
    if x.dtype != beside.dtype and not autocasts(x.device):
        raise TypeError(
            f"{name} must have the dtype of {other}: got {x.dtype} beside {beside.dtype}"
        )
    _check_device(name, x, other, beside)


def _check_device(name: str, x: Tensor, other: str, beside: Tensor) -> None:
    if x.device != beside.device:
        raise ValueError(
            f"{name} must be on the device of {other}: got {x.device} beside {beside.device}"
        )


def check_scale(name: str, scale: float | None) -> None:
    """Raises TypeError where the argument `name` is neither a number nor None."""
    if scale is not None and not is_number(scale):
        raise TypeError(f"{name} must be a number or None, got {type(scale).__name__}")


def _sizes(name: str, value: Sizes, dims: int) -> tuple[int, ...]:
    sizes: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    if len(sizes) != dims or not all(is_int(size) and size >= 1 for size in sizes):
        raise ValueError(f"{name} must be an int of at least 1, or {dims} of them, got {value!r}")
    return tuple(map(int, sizes))
