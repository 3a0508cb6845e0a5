"""The operators in plain PyTorch, made of the reference, for what the kernels do not know.

The kernels know the first derivative. Further derivatives, forward mode, compiled transforms and
the decomposition that exporters take come from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdwa import reference
from sdwa.problem import AttentionProblem, Window

_vjp: Any = torch.func.vjp


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    key_mask: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    scale: float,
    masked: bool,
    shifted: bool = False,
    causal_h: bool = False,
    causal_w: bool = False,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of the forward operator's arguments."""
    problem = AttentionProblem(
        shape=tuple(query.shape),
        kernel_size=(kernel_size[0], kernel_size[1]),
        flat_dilation=tuple(dilation),
        scale=scale,
        masked=masked,
        shifted=shifted,
        is_causal=(causal_h, causal_w),
        dtype=query.dtype,
        device=query.device,
    )
    return reference.attention(problem, query, key, value, bias, key_mask)


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    key_mask: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
    *window: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and bias, from the backward operator's arguments.

    out and lse are computed again, and may be None.
    """

    def attend(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return forward(*tensors, *(() if bias is not None else (None,)), key_mask, *window)  # type: ignore[arg-type,call-arg]

    inputs = (query, key, value) if bias is None else (query, key, value, bias)
    (_, recomputed_lse), pull_back = _vjp(attend, *inputs)
    if grad_lse is None:
        grad_lse = torch.zeros_like(recomputed_lse)
    grads = [grad.contiguous() for grad in pull_back((grad_out, grad_lse))]
    grad_bias = grads[3] if len(grads) > 3 else recomputed_lse.new_empty(0)
    return grads[0], grads[1], grads[2], grad_bias


def second_derivative(
    saved: Sequence[Tensor | None],
    key_mask: Tensor | None,
    window: Window,
    grads: tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """Derivatives of the backward operator.

    Args:
        saved: grad_out, grad_lse, query, key, value, bias, as the backward operator took them.
        key_mask: as well.
        window: the arguments that follow.
        grads: gradients of grad_query, grad_key, grad_value, grad_bias.

    Returns:
        Gradients of grad_out, grad_lse, query, key, value, bias; None where the input is.
    """

    def differentiate(*present: Tensor) -> tuple[Tensor, ...]:
        tensors = iter(present)
        inputs = [None if tensor is None else next(tensors) for tensor in saved]
        return backward(*inputs, key_mask, None, None, *window)  # type: ignore[arg-type]

    _, pull_back = _vjp(differentiate, *(t for t in saved if t is not None))
    results = iter(pull_back(tuple(grads)))
    return tuple(None if tensor is None else next(results) for tensor in saved)
