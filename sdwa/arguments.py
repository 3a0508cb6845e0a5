"""Checks of the arguments of the function and the layer, which make a problem of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from sdwa.problem import (
    DTYPES,
    MAX_DILATION,
    MAX_HEAD_DIM,
    MAX_KERNEL_SIZE,
    PADDING_MODES,
    AttentionProblem,
    Causal,
    Dilation,
    Size,
    dtype_names,
)
from sdwa.torch_private import trace_paused


def make_problem(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size,
    dilation: Dilation,
    bias: Tensor | None,
    scale: float | None,
    padding_mode: str,
    key_mask: Tensor | None = None,
    is_causal: Causal = False,
) -> AttentionProblem:
    """The problem that the operator's arguments ask for, once they are checked.

    Where value has another head_dim than query and key, the problem has the larger of the two.

    Raises:
        TypeError: an argument of the wrong type, or a dtype that is not supported.
        ValueError: a value or shape that is not legal. Both name the argument, what came, and what
            is legal.
    """
    _check_tensors(query, key, value)
    check_padding_mode(padding_mode)
    *pixels, heads, head_dim = query.shape
    shifted = padding_mode == "shifted"
    kernel = as_kernel_size(kernel_size, shifted)
    pairs = as_dilation(dilation, heads, query.shape)
    if bias is not None:
        _check_bias(bias, query, kernel, shifted)
    if key_mask is not None:
        check_key_mask(key_mask, query.shape[:3], query.device)
    return AttentionProblem(
        shape=(*pixels, heads, max(head_dim, value.shape[4])),
        kernel_size=kernel,
        flat_dilation=tuple(step for pair in pairs for step in pair),
        scale=as_scale(scale, head_dim),
        masked=padding_mode != "zeros",
        shifted=shifted,
        is_causal=as_causal(is_causal),
        dtype=query.dtype,
        device=query.device,
    )


class Line:
    """The arguments of a call for sequences, (batch, length, ...), as those for maps of one row.

    Attributes:
        query, key, value, kernel_size, dilation, bias, key_mask, is_causal: for maps.

    Raises:
        TypeError, ValueError: as `make_problem`, of the arguments as they came.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: Size,
        dilation: Dilation,
        bias: Tensor | None,
        padding_mode: str,
        key_mask: Tensor | None,
        is_causal: Causal,
    ) -> None:
        with trace_paused():
            _check_tensors(query, key, value)
            check_padding_mode(padding_mode)
            shifted = padding_mode == "shifted"
            self.kernel_size = as_line_kernel_size(kernel_size, shifted)
            self.dilation: Dilation = dilation
            if not is_int(dilation):
                self.dilation = as_line_dilation(dilation, query.shape[2], query.shape)
            if bias is not None:
                _check_bias(bias, query, self.kernel_size[1:], shifted)
            if key_mask is not None:
                check_key_mask(key_mask, query.shape[:2], query.device)
            self.is_causal = as_line_causal(is_causal)
        self.query, self.key, self.value = (t.unsqueeze(1) for t in (query, key, value))
        self.bias = None if bias is None else bias.unsqueeze(1)
        self.key_mask = None if key_mask is None else key_mask.unsqueeze(1)


def as_line_kernel_size(kernel_size: Size, shifted: bool = False) -> tuple[int, int]:
    """(1, kernel) of the kernel size of sequences: an int, a sequence of one, or that pair."""
    size = _of_the_line(kernel_size, 1)
    if not is_int(size):
        raise TypeError(
            f"kernel_size must be an int for (batch, length, heads, head_dim), got {kernel_size!r}"
        )
    _check_kernel_size((int(size),), shifted, kernel_size)
    return 1, int(size)


def as_line_dilation(
    dilation: Dilation, heads: int, shape: Sequence[int] = ()
) -> tuple[tuple[int, int], ...]:
    """(1, dilation) of each head, from that of sequences: an int, or one entry per head."""
    return _as_pairs(dilation, heads, shape, line=True)


def as_line_causal(is_causal: Causal) -> tuple[bool, bool]:
    """(False, causal) of the is_causal of sequences: a bool, a sequence of one, or that pair."""
    is_causal = _of_the_line(is_causal, False)
    if not isinstance(is_causal, bool):
        raise TypeError(f"is_causal must be a bool for sequences, got {is_causal!r}")
    return False, is_causal


def as_kernel_size(kernel_size: Size, shifted: bool = False) -> tuple[int, int]:
    """(kernel_h, kernel_w) of an int or a pair of them, odd unless windows are shifted."""
    pair = _as_pair(kernel_size)
    if pair is None:
        raise TypeError(
            f"kernel_size must be an {'' if shifted else 'odd '}int or a pair (kernel_h, "
            f"kernel_w), got {kernel_size!r}"
        )
    _check_kernel_size(pair, shifted, kernel_size)
    return pair


def _check_kernel_size(sizes: Sequence[int], shifted: bool, came: Size) -> None:
    if not all(1 <= size <= MAX_KERNEL_SIZE for size in sizes):
        raise ValueError(
            f"kernel_size must be {'' if shifted else 'odd and '}from 1 to {MAX_KERNEL_SIZE}, "
            f"got {came!r}"
        )
    if not shifted and any(size % 2 == 0 for size in sizes):
        raise ValueError(
            f"kernel_size must be odd and from 1 to {MAX_KERNEL_SIZE}, got {came!r} "
            '(padding_mode="shifted" takes even ones)'
        )


def as_causal(is_causal: Causal) -> tuple[bool, bool]:
    """Whether the windows are causal along the height and along the width."""
    if isinstance(is_causal, bool):
        return is_causal, is_causal
    if (
        isinstance(is_causal, Sequence)
        and len(is_causal) == 2
        and all(isinstance(axis, bool) for axis in is_causal)
    ):
        return is_causal[0], is_causal[1]
    raise TypeError(
        f"is_causal must be a bool or a pair (height, width) of them, got {is_causal!r}"
    )


def as_dilation(
    dilation: Dilation, heads: int, shape: Sequence[int] = ()
) -> tuple[tuple[int, int], ...]:
    """(dilation_h, dilation_w) of each head, from one int or one entry per head.

    shape: of query, or (); the message says so where its heads seem to come first.
    """
    return _as_pairs(dilation, heads, shape, line=False)


def _as_pairs(
    dilation: Dilation, heads: int, shape: Sequence[int], line: bool
) -> tuple[tuple[int, int], ...]:
    """(dilation_h, dilation_w) of each head; with `line` of sequences, whose height is 1."""
    if is_int(dilation):
        entries: Sequence[Any] = (dilation,) * heads
    elif isinstance(dilation, Sequence) and not isinstance(dilation, (str, bytes)):
        entries = dilation
    else:
        raise TypeError(
            "dilation must be an int or a sequence with one entry per head, "
            f"got {type(dilation).__name__}"
        )
    if len(entries) != heads:
        hint = _heads_elsewhere_hint(shape, len(entries))
        if not line and len(entries) == 2 and all(is_int(entry) for entry in entries):
            hint += (
                f"; a dilation_h of {entries[0]} and a dilation_w of {entries[1]} for all heads is "
                f"({tuple(entries)},) * {heads}"
            )
        raise ValueError(
            f"dilation must have one entry per head: got {len(entries)} entries "
            f"{tuple(entries)!r} for {heads} heads{hint}"
        )
    pairs = []
    for entry in entries:
        pair = _as_line_pair(entry) if line else _as_pair(entry)
        if pair is None:
            legal = (
                "ints for (batch, length, heads, head_dim)"
                if line
                else "ints or pairs (dilation_h, dilation_w)"
            )
            raise TypeError(f"dilation entries must be {legal}, got {entry!r} in {dilation!r}")
        if not all(1 <= step <= MAX_DILATION for step in pair):
            raise ValueError(
                f"dilation must be from 1 to {MAX_DILATION}, got {entry!r} in {dilation!r}"
            )
        pairs.append(pair)
    return tuple(pairs)


def as_scale(scale: float | None, head_dim: int) -> float:
    """The factor of the scores, `head_dim ** -0.5` for None."""
    if scale is None:
        return float(head_dim**-0.5)
    if not is_number(scale):
        raise TypeError(f"scale must be a number, a tensor or None, got {type(scale).__name__}")
    try:
        number = float(scale)
    except OverflowError:  # of an int
        number = float("inf")
    if not abs(number) <= sys.float_info.max:  # torch.compile cannot trace `math.isfinite`
        raise ValueError(f"scale must be finite, got {scale!r}")
    return number


def check_scale_tensor(scale: Tensor, query: Tensor) -> None:
    """Raises TypeError or ValueError where scale is not a factor of query, or one for each head.

    That is a tensor of shape (), (1,) or (heads,), of a dtype of `DTYPES` and, unless its shape is
    (), on the device of query.
    """
    check_tensor("query", query)
    check_dense("scale", scale)
    heads = query.shape[-2]
    if scale.dtype not in DTYPES:
        raise TypeError(f"scale must be {dtype_names(DTYPES)}, got {scale.dtype}")
    if scale.dim() > 1 or scale.numel() not in (1, heads):
        raise ValueError(
            f"scale must be a number, or a tensor of shape (), (1,) or (heads,) = ({heads},), "
            f"got shape {tuple(scale.shape)}"
        )
    if scale.device != query.device and scale.dim() > 0:  # PyTorch takes single numbers anywhere
        raise ValueError(
            f"scale must be on the device of query: got {scale.device} beside {query.device}"
        )


def check_padding_mode(padding_mode: str) -> None:
    """Raises ValueError where it is not one of `PADDING_MODES`."""
    if padding_mode not in PADDING_MODES:
        *others, last = (f'"{mode}"' for mode in PADDING_MODES)
        legal = f"{', '.join(others)} or {last}"
        raise ValueError(f"padding_mode must be {legal}, got {padding_mode!r}")


def check_count(name: str, value: Any) -> None:
    """Raises TypeError or ValueError where the argument `name` is not an int of at least 1."""
    if not is_int(value):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")


def check_share(name: str, value: Any) -> None:
    """Raises TypeError or ValueError where the argument `name` is not a number from 0 to 1."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value!r}")


def is_int(value: Any) -> bool:
    """Whether it is an int, NumPy's too; a bool is not one."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is an int or a float, NumPy's too; a bool is not one."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _as_pair(value: Any) -> tuple[int, int] | None:
    if is_int(value):
        return (int(value), int(value))
    if (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and len(value) == 2
        and all(is_int(v) for v in value)
    ):
        return (int(value[0]), int(value[1]))
    return None


def _as_line_pair(value: Any) -> tuple[int, int] | None:
    value = _of_the_line(value, 1)
    return (1, int(value)) if is_int(value) else None


def _of_the_line(value: Any, across: Any) -> Any:
    """What is meant for the axis of sequences: alone, in a sequence of one, or behind `across`."""
    alone = (
        isinstance(value, Sequence)
        and len(value) in (1, 2)
        and all((type(other), other) == (type(across), across) for other in value[:-1])
    )
    return value[-1] if alone else value


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raises TypeError or ValueError where the argument `name` is not a map of features.

    That is a dense tensor of 5 dimensions, of 4 for sequences, and a dtype of `DTYPES`.
    """
    check_dense(name, tensor)
    if tensor.dim() not in (4, 5):
        raise ValueError(
            f"{name} must be (batch, height, width, heads, head_dim), or (batch, length, heads, "
            f"head_dim) as query, key and value are, got shape {tuple(tensor.shape)}"
        )
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be {dtype_names(DTYPES)}, got {tensor.dtype}")


def check_dense(name: str, tensor: Tensor, legal: str = "a tensor") -> None:
    """Raises TypeError where the argument `name` is not a dense tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be {legal}, got {type(tensor).__name__}")
    if tensor.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one: pad its images to one size, and say "
            "by key_mask what is padding"
        )
    if tensor.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor, got {tensor.layout}: call .to_dense() on it"
        )


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError where the argument `name` is not a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, tensor)
        if tensor.dim() != query.dim():
            raise ValueError(
                f"query and {name} must both be (batch, height, width, heads, head_dim), or "
                f"both (batch, length, heads, head_dim): got shapes {tuple(query.shape)} and "
                f"{tuple(tensor.shape)}"
            )
        if tensor.dtype != query.dtype:
            raise TypeError(
                f"{name} must have the dtype of query: got {tensor.dtype} beside {query.dtype}"
            )
        if tensor.device != query.device:
            raise ValueError(
                f"{name} must be on the device of query: got {tensor.device} beside {query.device}"
            )
        own_head_dim = name == "value"
        same = -1 if own_head_dim else None
        if tensor.shape[:same] != query.shape[:same]:
            but = ", but for head_dim" if own_head_dim else ""
            raise ValueError(
                f"{name} must have the shape of query{but}: got {tuple(tensor.shape)} "
                f"beside {tuple(query.shape)}"
            )
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1 and tensor.numel() > 0:
            raise ValueError(
                f"{name} must have stride 1 in head_dim, its last dimension, "
                f"got strides {tensor.stride()}: call .contiguous() on it"
            )
    if any(size < 1 for size in query.shape[1:-1]):
        axes = "height, width" if query.dim() == 5 else "length"
        raise ValueError(
            f"query must have {axes} and heads of at least 1, got shape {tuple(query.shape)}"
        )
    for name, tensor in (("query", query), ("value", value)):
        if not 1 <= tensor.shape[-1] <= MAX_HEAD_DIM:
            raise ValueError(
                f"{name} must have a head_dim from 1 to {MAX_HEAD_DIM}, "
                f"got shape {tuple(tensor.shape)}"
            )


def _check_bias(bias: Tensor, query: Tensor, kernel: tuple[int, ...], shifted: bool) -> None:
    """kernel: along each axis that query has."""
    check_dense("bias", bias, "a tensor or None")
    heads = query.shape[-2]
    by_tap, by_distance = (heads, *kernel), (heads, *(2 * size - 1 for size in kernel))
    if tuple(bias.shape) not in ((by_distance,) if shifted else (by_tap, by_distance)):
        names = ("kernel_h", "kernel_w") if len(kernel) == 2 else ("kernel",)
        legal = f"(heads, {', '.join(f'2 * {name} - 1' for name in names)}) = {by_distance}"
        if shifted:
            legal += ' with padding_mode="shifted"'
        else:
            legal = f"(heads, {', '.join(names)}) = {by_tap} or {legal}"
        hint = _heads_elsewhere_hint(query.shape, bias.shape[0] if bias.dim() else 0)
        raise ValueError(f"bias must be {legal}, got shape {tuple(bias.shape)}{hint}")
    if bias.dtype not in DTYPES:
        raise TypeError(f"bias must be {dtype_names(DTYPES)}, got {bias.dtype}")
    if bias.device != query.device:
        raise ValueError(
            f"bias must be on the device of query: got {bias.device} beside {query.device}"
        )


def check_key_mask(key_mask: Tensor, pixels: Sequence[int], device: torch.device) -> None:
    """Raises TypeError or ValueError where key_mask is not a mask of such pixels on that device.

    pixels: (batch, height, width) or (batch, length).
    """
    check_dense("key_mask", key_mask, "a tensor or None")
    if tuple(key_mask.shape) != tuple(pixels):
        axes = "batch, height, width" if len(pixels) == 3 else "batch, length"
        raise ValueError(
            f"key_mask must be ({axes}) = {tuple(pixels)}, got shape {tuple(key_mask.shape)}"
        )
    if key_mask.dtype != torch.bool:
        raise TypeError(f"key_mask must be bool, True where a key takes part: got {key_mask.dtype}")
    if key_mask.device != device:
        raise ValueError(
            f"key_mask must be on the device of query: got {key_mask.device} beside {device}"
        )


def _heads_elsewhere_hint(shape: Sequence[int], heads: int) -> str:
    """What to say of an argument for so many heads where query seems to have them elsewhere.

    As its second axis, or not split, as a map of channels that would be read as sequences.
    """
    if len(shape) == 4 and heads != shape[2] and heads > 1 and shape[3] % heads == 0:
        return (
            f"; query is (batch, length, heads, head_dim) = {tuple(shape)}: if it is a map whose "
            f"heads are not split, pass query.unflatten(-1, ({heads}, -1)), and key and value alike"
        )
    if len(shape) != 5 or heads == shape[3] or heads != shape[1]:
        return ""
    return (
        f"; query is (batch, height, width, heads, head_dim) = {tuple(shape)}: if its heads come "
        "first, pass query.permute(0, 2, 3, 1, 4), and key and value alike"
    )
