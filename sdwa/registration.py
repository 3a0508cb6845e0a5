"""Makes the operator pairs known to PyTorch.

A pair is a forward and a backward operator of one schema (csrc/library.cpp). The compiled pair
serves the CPU and CUDA, Triton's has the same schema. Both are registered alike: fakes, autograd,
batching rules, autocast, decompositions, FLOP formulas.

The kernels know the first derivative. What else PyTorch may ask for is made of the reference:
further derivatives, forward mode, and the decomposition that ONNX export takes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import DispatchKey, DispatchKeySet, _ExcludeDispatchKeyGuard
from torch._decomp import register_decomposition
from torch._library.utils import get_layout_constraint_tag
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling
from torch.utils.flop_counter import register_flop_formula

from sdwa import reference
from sdwa.problem import AttentionProblem, accumulation_dtype, autocasts

# (query, key, value, bias) -> (out, lse), with everything else fixed
Call = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
# (kernel_size, dilation, scale, masked), as the operators take them, -> the call
Bind = Callable[..., Call]

HEADS = 3  # dimension of the heads in (batch, height, width, heads, head_dim)

_AUTOCAST_KEYS = ("AutocastCPU", "AutocastCUDA")
_AUTOCAST = DispatchKeySet(DispatchKey.AutocastCPU) | DispatchKeySet(DispatchKey.AutocastCUDA)
# Without these a call takes the shortest way to its kernel. Modes (fake tensors, ...) still see it.
_ABOVE_KERNEL = _AUTOCAST | DispatchKeySet(DispatchKey.AutogradFunctionality)
_vjp: Any = torch.func.vjp
# What it registers lives as long as it does.
_LIBRARY = torch.library.Library("sdwa", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(forward_name: str, backward_name: str) -> Bind:
    """Registers a defined pair with PyTorch.

    Args:
        forward_name, backward_name: of the operators in `torch.ops.sdwa`.

    Returns:
        What makes the differentiable operator of a window.
    """
    forward_operator = getattr(torch.ops.sdwa, forward_name).default
    backward_operator = getattr(torch.ops.sdwa, backward_name).default
    transforming = torch._C._are_functorch_transforms_active

    class Forward(Function):
        """The forward operator, for `torch.func`."""

        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
            with _ExcludeDispatchKeyGuard(_ABOVE_KERNEL):
                return forward_operator(*inputs)  # type: ignore[no-any-return]

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            query, key, value, bias, *ctx.window = inputs
            ctx.save_for_backward(query, key, value, bias, *output)
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> Any:
            query, key, value, bias, out, lse = ctx.saved_tensors
            if grad_out is None:
                grad_out = torch.zeros_like(out)
            elif grad_out.stride(-1) != 1:
                grad_out = grad_out.contiguous()
            if grad_lse is not None:
                grad_lse = grad_lse.contiguous()
            *grads, grad_bias = differentiate(
                grad_out, grad_lse, query, key, value, bias, out, lse, *ctx.window
            )
            return *grads, None if bias is None else grad_bias, None, None, None, None

        @staticmethod
        def vmap(*call: Any) -> Any:
            return _vmap_forward(lambda *inputs: bind(*inputs[4:])(*inputs[:4]), *call)

    class EagerForward(Function):
        """The forward operator, for eager calls.

        Of the two ways to write a function, the one that `torch.func` does not take is far quicker.
        """

        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
            output = Forward.forward(*inputs)
            Forward.setup_context(ctx, inputs, output)
            return output

        backward = Forward.backward

    class Backward(Function):
        """The backward operator, for `torch.func`."""

        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return backward_operator(*inputs)  # type: ignore[no-any-return]

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            grad_out, grad_lse, query, key, value, bias, _, _, *ctx.window = inputs
            ctx.save_for_backward(grad_out, grad_lse, query, key, value, bias)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            # out and lse are functions of the other inputs: all of the derivative is taken there.
            nothing = (None,) * 6
            return *_second_derivative(ctx.saved_tensors, ctx.window, grads), *nothing

        @staticmethod
        def vmap(*call: Any) -> Any:
            return _vmap_backward(differentiate, *call)

    # `Function.apply` asks about `torch.func` first, which takes as long as a small kernel.
    apply_eagerly: Any = super(Function, EagerForward).apply
    apply_forward: Any = Forward.apply
    apply_backward: Any = Backward.apply
    operate: Any = forward_operator._op  # what calling the operator comes to

    def bind(*window: Any) -> Call:
        if is_compiling():
            # A compiled transform has no way to the rules below, but through the plain operations.
            traced = _forward if transforming() else forward_operator
            return lambda query, key, value, bias: traced(query, key, value, bias, *window)

        # On a small map each step between the user's call and the kernel counts.
        def call(
            query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
        ) -> tuple[Tensor, Tensor]:
            if forward_ad._current_level >= 0:
                return _forward(query, key, value, bias, *window)
            if transforming():
                return apply_forward(query, key, value, bias, *window)  # type: ignore[no-any-return]
            if is_grad_enabled() and (
                query.requires_grad
                or key.requires_grad
                or value.requires_grad
                or (bias is not None and bias.requires_grad)
            ):
                return apply_eagerly(query, key, value, bias, *window)  # type: ignore[no-any-return]
            with _ExcludeDispatchKeyGuard(_ABOVE_KERNEL):
                return operate(query, key, value, bias, *window)  # type: ignore[no-any-return]

        return call

    def differentiate(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if forward_ad._current_level >= 0:
            return _backward(*inputs)
        if transforming():
            return apply_backward(*inputs)  # type: ignore[no-any-return]
        return backward_operator(*inputs)  # type: ignore[no-any-return]

    def autocast(_: DispatchKeySet, *inputs: Any) -> tuple[Tensor, Tensor]:
        tensors = autocast_tensors(*inputs[:3])
        with _ExcludeDispatchKeyGuard(_AUTOCAST):
            return forward_operator(*tensors, *inputs[3:])  # type: ignore[no-any-return]

    for key in _AUTOCAST_KEYS:
        # The backward operator gets what the forward one was given: it needs no rule.
        _LIBRARY.impl(forward_name, autocast, key, with_keyset=True)  # type: ignore[no-untyped-call]
    rules: list[Any] = [
        (forward_operator, Forward, _forward_fake, _vmap_forward, _forward, _forward_flops),
        (backward_operator, Backward, _backward_fake, _vmap_backward, _backward, _backward_flops),
    ]
    for operator, function, fake, vmap, decomposition, flops in rules:
        fake = _kept_whole(operator, fake)
        torch.library.register_fake(operator, fake)
        torch.library.register_autograd(
            operator, function.backward, setup_context=function.setup_context
        )
        torch.library.register_vmap(operator, partial(vmap, operator))
        register_decomposition(operator)(decomposition)
        # Fake tensors of symbolic sizes would go through the decomposition otherwise.
        register_decomposition(operator, type="meta")(fake)
        register_flop_formula(operator.overloadpacket)(flops)
    return bind


# Autocast


def autocast_tensors(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors in autocast's dtype where it is on, as for any matrix product; float64 stays.

    Raises:
        TypeError: float64 beside another dtype, which autocast does not bring together.
    """
    if not autocasts(query.device):
        return query, key, value
    device_type = query.device.type
    dtypes = [tensor.dtype for tensor in (query, key, value)]
    if torch.float64 in dtypes:
        if len(set(dtypes)) > 1:
            mixture = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise TypeError(
                f"query, key and value must have one dtype, got {mixture}: autocast leaves float64 "
                f"as it is. Cast them to one dtype, or turn autocast off around the call with "
                f'torch.autocast("{device_type}", enabled=False)'
            )
        return query, key, value
    dtype = torch.get_autocast_dtype(device_type)
    return query.to(dtype), key.to(dtype), value.to(dtype)


# Fakes


def _kept_whole(operator: Any, fake: Callable[..., Any]) -> Callable[..., Any]:
    """The fake, which also has Inductor call the kernels although there is a decomposition.

    It would of itself, but where the variable CI is set it takes any decomposition for an oversight
    and stops. Every compilation runs the fakes, and importing sdwa need not import Inductor.
    """

    def kept_whole(*inputs: Any) -> Any:
        inductor: Any = sys.modules.get("torch._inductor.lowering")
        if inductor is not None and operator not in inductor.lowerings:
            layout = inductor.tag_to_layout_constraint(get_layout_constraint_tag(operator))
            inductor.make_fallback(operator, layout, warn=False)
        return fake(*inputs)

    return kept_whole


def _forward_fake(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    out = query.new_empty(query.shape)
    return out, query.new_empty(query.shape[:-1], dtype=accumulation_dtype(query.dtype))


def _backward_fake(
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


# The operators in plain PyTorch


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    kernel_size: Any,
    dilation: Any,
    scale: float,
    masked: bool,
) -> tuple[Tensor, Tensor]:
    problem = AttentionProblem(
        shape=tuple(query.shape),
        kernel_size=(kernel_size[0], kernel_size[1]),
        flat_dilation=tuple(dilation),
        scale=scale,
        masked=masked,
        dtype=query.dtype,
        device=query.device,
    )
    return reference.attention(problem, query, key, value, bias)


def _backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
    *window: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def forward(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return _forward(*tensors, *(() if bias is not None else (None,)), *window)  # type: ignore[arg-type]

    inputs = (query, key, value) if bias is None else (query, key, value, bias)
    (_, recomputed_lse), pull_back = _vjp(forward, *inputs)
    if grad_lse is None:
        grad_lse = torch.zeros_like(recomputed_lse)
    grads = [grad.contiguous() for grad in pull_back((grad_out, grad_lse))]
    grad_bias = grads[3] if len(grads) > 3 else recomputed_lse.new_empty(0)
    return grads[0], grads[1], grads[2], grad_bias


def _second_derivative(
    saved: tuple[Tensor | None, ...], window: list[Any], grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Derivatives of the backward operator.

    Args:
        saved: grad_out, grad_lse, query, key, value, bias, as the backward operator took them.
        window: kernel_size, dilation, scale, masked.
        grads: gradients of grad_query, grad_key, grad_value, grad_bias.

    Returns:
        Gradients of grad_out, grad_lse, query, key, value, bias; None where the input is.
    """

    def backward(*present: Tensor) -> tuple[Tensor, ...]:
        tensors = iter(present)
        inputs = [None if tensor is None else next(tensors) for tensor in saved]
        return _backward(*inputs, None, None, *window)  # type: ignore[arg-type]

    _, pull_back = _vjp(backward, *(t for t in saved if t is not None))
    results = iter(pull_back(tuple(grads)))
    return tuple(None if tensor is None else next(results) for tensor in saved)


# Batching rules: the dimension that `torch.func.vmap` adds becomes part of the batch. A bias of its
# own for each sample, or its gradient, makes it part of the heads instead, whose biases are apart.


def _vmap_forward(
    attend: Callable[..., tuple[Tensor, Tensor]],
    info: Any,
    in_dims: tuple[int | None, ...],
    *inputs: Any,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    *tensors, bias = inputs[:4]
    window = inputs[4:]
    size = info.batch_size
    into = 0 if bias is None or in_dims[3] is None else HEADS
    folded = [_fold(t, d, size, into) for t, d in zip(tensors, in_dims, strict=False)]
    if into == HEADS:
        bias = _fold(bias, in_dims[3], size, 0).contiguous()
        window = _repeat_heads(size, *window)
    outputs = attend(*folded, bias, *window)
    out, lse = (_unfold(t, size, into) for t in outputs)
    return (out, lse), (into, into)


def _vmap_backward(
    differentiate: Callable[..., tuple[Tensor, ...]],
    info: Any,
    in_dims: tuple[int | None, ...],
    *inputs: Any,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    grad_out, grad_lse, query, key, value, bias, out, lse, *window = inputs
    size = info.batch_size
    into = 0 if bias is None else HEADS
    tensors = {0: grad_out, 1: grad_lse, 2: query, 3: key, 4: value, 6: out, 7: lse}
    folded: dict[int, Tensor | None] = {
        n: None if t is None else _fold(t, in_dims[n], size, into) for n, t in tensors.items()
    }
    for n in (0, 1, 6, 7):
        folded[n] = None if (tensor := folded[n]) is None else tensor.contiguous()
    folded[5] = None
    if bias is not None:
        folded[5] = _fold(bias, in_dims[5], size, 0).contiguous()
        window = list(_repeat_heads(size, *window))
    *grads, grad_bias = differentiate(*(folded[n] for n in range(8)), *window)
    unfolded = [_unfold(grad, size, into) for grad in grads]
    if bias is None:
        return (*unfolded, grad_bias), (into, into, into, None)
    return (*unfolded, _unfold(grad_bias, size, 0)), (into, into, into, 0)


def _fold(tensor: Tensor, dim: int | None, size: int, into: int) -> Tensor:
    """Merges dimension `dim` of that size, new where it is None, into dimension `into`."""
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.movedim(0, into).flatten(into, into + 1)


def _unfold(tensor: Tensor, size: int, into: int) -> Tensor:
    return tensor.view(*tensor.shape[:into], size, -1, *tensor.shape[into + 1 :])


def _repeat_heads(
    size: int, kernel_size: Any, dilation: Any, scale: float, masked: bool
) -> tuple[Any, Any, float, bool]:
    return kernel_size, tuple(dilation) * size, scale, masked


# Operations, for `torch.utils.flop_counter`


def _forward_flops(query_shape: Any, *args: Any, out_shape: Any = None, **_: Any) -> int:
    """Scores and weighted values: two products of head_dim a tap, two operations each."""
    return int(4 * math.prod(args[3]) * math.prod(query_shape))


def _backward_flops(grad_out_shape: Any, *args: Any, out_shape: Any = None, **_: Any) -> int:
    """Scores again, gradient of the probabilities, of query, of key and of value."""
    return int(10 * math.prod(args[7]) * math.prod(grad_out_shape))
