"""What PyTorch asks of an operator besides its result: fakes, batching rules, FLOP formulas.

They hold for every pair of a forward and a backward operator (`sdwa.registration`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdwa.problem import Window, WindowAxis, accumulation_dtype

HEADS = 3  # dimension of the heads in (batch, height, width, heads, head_dim)


# Fakes: empty results of the right shape and dtype.


def forward_fake(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    out = query.new_empty(query.shape)
    return out, query.new_empty(query.shape[:-1], dtype=accumulation_dtype(query.dtype))


def backward_fake(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_query, grad_key, grad_value = (query.new_empty(query.shape) for _ in range(3))
    grad_bias = query.new_empty(
        (0,) if bias is None else bias.shape, dtype=accumulation_dtype(query.dtype)
    )
    return grad_query, grad_key, grad_value, grad_bias


# Batching rules: the dimension that `torch.func.vmap` adds becomes part of the batch. Where each
# sample has a bias of its own, or its gradient is wanted, it becomes part of the heads instead,
# each of which has its own bias. A sample that has a mask of its own as well is run by itself: all
# heads of an image share one.


def vmap_forward(
    attend: Callable[..., tuple[Tensor, Tensor]],
    info: Any,
    in_dims: tuple[int | None, ...],
    *inputs: Any,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    *tensors, bias, key_mask = inputs[:5]
    window = inputs[5:]
    size = info.batch_size
    into = 0 if bias is None or in_dims[3] is None else HEADS
    own_masks = key_mask is not None and in_dims[4] is not None
    if size == 0 or (into == HEADS and own_masks):
        return _one_by_one(attend, size, in_dims, inputs)
    if key_mask is not None and into == 0:
        key_mask = _merge(key_mask, in_dims[4], size, 0).contiguous()
    merged = [_merge(t, d, size, into) for t, d in zip(tensors, in_dims, strict=False)]
    if into == HEADS:
        bias = _merge(bias, in_dims[3], size, 0).contiguous()
        window = _repeat_heads(size, *window)
    outputs = attend(*merged, bias, key_mask, *window)
    out, lse = (_split(t, size, into) for t in outputs)
    return (out, lse), (into, into)


def vmap_backward(
    differentiate: Callable[..., tuple[Tensor, ...]],
    info: Any,
    in_dims: tuple[int | None, ...],
    *inputs: Any,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    grad_out, grad_lse, query, key, value, bias, key_mask, out, lse, *window = inputs
    size = info.batch_size
    into = 0 if bias is None else HEADS
    own_masks = key_mask is not None and in_dims[6] is not None
    if size == 0 or (into == HEADS and own_masks):
        return _one_by_one(differentiate, size, in_dims, inputs)
    tensors = {0: grad_out, 1: grad_lse, 2: query, 3: key, 4: value, 7: out, 8: lse}
    merged: dict[int, Tensor | None] = {
        n: None if t is None else _merge(t, in_dims[n], size, into) for n, t in tensors.items()
    }
    for n in (0, 1, 7, 8):
        merged[n] = None if (tensor := merged[n]) is None else tensor.contiguous()
    merged[5] = None
    merged[6] = key_mask
    if key_mask is not None and into == 0:
        merged[6] = _merge(key_mask, in_dims[6], size, 0).contiguous()
    if bias is not None:
        merged[5] = _merge(bias, in_dims[5], size, 0).contiguous()
        window = list(_repeat_heads(size, *window))
    *grads, grad_bias = differentiate(*(merged[n] for n in range(9)), *window)
    split = [_split(grad, size, into) for grad in grads]
    if bias is None:
        return (*split, grad_bias), (into, into, into, None)
    return (*split, _split(grad_bias, size, 0)), (into, into, into, 0)


def _merge(tensor: Tensor, dim: int | None, size: int, into: int) -> Tensor:
    """Merges dimension `dim` of that size, new where it is None, into dimension `into`."""
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.movedim(0, into).flatten(into, into + 1)


def _split(tensor: Tensor, size: int, into: int) -> Tensor:
    shape = tensor.shape
    return tensor.view(*shape[:into], size, shape[into] // size, *shape[into + 1 :])


def _one_by_one(
    operate: Callable[..., tuple[Tensor, ...]],
    size: int,
    in_dims: tuple[int | None, ...],
    inputs: tuple[Any, ...],
) -> tuple[Any, Any]:
    """Runs the samples one after the other, and stacks their results.

    Of no samples the results have the shapes of a sample of zeros.
    """
    if size == 0:
        zeros = [
            value.new_zeros(value.movedim(dim, 0).shape[1:]) if isinstance(dim, int) else value
            for value, dim in zip(inputs, in_dims, strict=True)
        ]
        nothing = tuple(result.new_empty(0, *result.shape) for result in operate(*zeros))
        return nothing, (0,) * len(nothing)

    def sample(number: int) -> tuple[Tensor, ...]:
        return operate(
            *(
                value.select(dim, number).contiguous() if isinstance(dim, int) else value
                for value, dim in zip(inputs, in_dims, strict=True)
            )
        )

    results = tuple(map(torch.stack, zip(*map(sample, range(size)), strict=True)))
    return results, (0,) * len(results)


def _repeat_heads(
    size: int, kernel_size: Sequence[int], dilation: Sequence[int], *others: Any
) -> Window:
    """The window's arguments for `size` times as many heads."""
    return kernel_size, tuple(dilation) * size, *others


# Operations, for `torch.utils.flop_counter`.


def forward_flops(query_shape: Any, *args: Any, out_shape: Any = None, **window: Any) -> int:
    """Scores and weighted values: two products of head_dim per tap, two operations each."""
    return int(4 * _taps(*args[4:], **window) * math.prod(query_shape))


def backward_flops(grad_out_shape: Any, *args: Any, out_shape: Any = None, **window: Any) -> int:
    """Scores again, gradient of the probabilities, of query, of key and of value."""
    return int(10 * _taps(*args[8:], **window) * math.prod(grad_out_shape))


def _taps(
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    scale: float,
    masked: bool,
    shifted: bool = False,
    causal_h: bool = False,
    causal_w: bool = False,
) -> int:
    """Taps of a window, also those off the map."""
    causal = causal_h, causal_w
    axes = (WindowAxis.of(n, shifted, c) for n, c in zip(kernel_size, causal, strict=True))
    return math.prod(axis.size for axis in axes)
