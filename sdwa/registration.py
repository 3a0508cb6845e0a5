"""Makes the operator pairs known to PyTorch.

The compiled pair serves the CPU and CUDA; Triton's has the same schema (csrc/library.cpp). Both are
registered alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch.autograd import Function
from torch.compiler import is_compiling
from torch.utils.flop_counter import register_flop_formula

from sdwa import decompositions, rules
from sdwa.autocast import autocast_tensors
from sdwa.problem import Call, Window
from sdwa.torch_private import (
    above_kernel_skipped,
    autocast_skipped,
    in_forward_mode,
    in_transform,
    lower_to_kernel,
    plain_apply,
    plain_call,
    register_autocast,
    register_decomposition,
)

# What it registers lives as long as it does.
_LIBRARY = torch.library.Library("sdwa", "FRAGMENT")  # type: ignore[no-untyped-call]


class OperatorPair:
    """A forward and a backward operator, differentiable, batched, cast and compiled by PyTorch.

    Args:
        forward_name, backward_name: of the operators in `torch.ops.sdwa`. They must be defined, and
            so must those of the same names with "_kernel" at the end, for compiled graphs.
    """

    def __init__(self, forward_name: str, backward_name: str) -> None:
        self.forward = getattr(torch.ops.sdwa, forward_name).default
        self.operate = plain_call(self.forward)
        self.backward = getattr(torch.ops.sdwa, backward_name).default
        # The backward operator gets what the forward one was given: autocast needs no rule for it.
        register_autocast(_LIBRARY, forward_name, self._autocast)
        _describe(
            self.forward,
            fake=rules.forward_fake,
            save=_save_forward,
            differentiate=self._differentiate_forward,
            vmap=rules.vmap_forward,
            flops=rules.forward_flops,
            decomposition=decompositions.forward,
        )
        _describe(
            self.backward,
            fake=rules.backward_fake,
            save=_save_backward,
            differentiate=_differentiate_backward,
            vmap=rules.vmap_backward,
            flops=rules.backward_flops,
            decomposition=decompositions.backward,
        )

    def bind(self, window: Window) -> Call:
        """What computes (out, lse) of that window, differentiable in every way."""
        if is_compiling():
            # A compiled transform has no way to the rules, but through the plain operations.
            traced = decompositions.forward if in_transform() else self.forward
            return lambda query, key, value, bias, key_mask: traced(
                query, key, value, bias, key_mask, *window
            )
        if torch.jit.is_tracing():  # type: ignore[no-untyped-call]
            # It records operators, and no functions of autograd. The older ONNX exporter traces as
            # well, and knows standard operators alone.
            exported = torch.onnx.is_in_onnx_export()
            recorded = decompositions.forward if exported else self.forward
            return lambda query, key, value, bias, key_mask: recorded(
                query, key, value, bias, key_mask, *window
            )
        operate = self.operate

        # On a small map each step between the user's call and the kernel counts.
        def call(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            bias: Tensor | None,
            key_mask: Tensor | None,
        ) -> tuple[Tensor, Tensor]:
            if in_forward_mode():
                return decompositions.forward(query, key, value, bias, key_mask, *window)
            if in_transform():
                return _Forward.apply(self, query, key, value, bias, key_mask, *window)  # type: ignore[no-any-return]
            if is_grad_enabled() and (
                query.requires_grad
                or key.requires_grad
                or value.requires_grad
                or (bias is not None and bias.requires_grad)
            ):
                return _apply_eagerly(self, query, key, value, bias, key_mask, *window)  # type: ignore[no-any-return]
            with above_kernel_skipped():
                return operate(query, key, value, bias, key_mask, *window)  # type: ignore[no-any-return]

        return call

    def differentiate(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of query, key, value and bias, from the backward operator's arguments."""
        if in_forward_mode():
            return decompositions.backward(*inputs)
        if in_transform():
            return _Backward.apply(self, *inputs)  # type: ignore[no-any-return]
        return self.backward(*inputs)  # type: ignore[no-any-return]

    def _autocast(self, _: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        tensors = autocast_tensors(*inputs[:3])
        with autocast_skipped():
            return self.forward(*tensors, *inputs[3:])  # type: ignore[no-any-return]

    def _differentiate_forward(
        self, ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None
    ) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        # Hooks of saved tensors may have laid them anew, all alike.
        if not saved[0].stride(-1) == saved[5].stride(-1) == 1:
            saved = [None if x is None else x.contiguous() for x in saved]
        query, key, value, bias, key_mask, out, lse = saved
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        elif grad_out.stride(-1) != 1:
            grad_out = grad_out.contiguous()
        if grad_lse is not None:
            grad_lse = grad_lse.contiguous()
        *grads, grad_bias = self.differentiate(
            grad_out, grad_lse, query, key, value, bias, key_mask, out, lse, *ctx.window
        )
        nothing = (None,) * (1 + len(ctx.window))  # for key_mask and the window
        return *grads, None if bias is None else grad_bias, *nothing


def _describe(
    operator: Any,
    *,
    fake: Callable[..., Any],
    save: Callable[..., None],
    differentiate: Callable[..., Any],
    vmap: Callable[..., Any],
    flops: Callable[..., int],
    decomposition: Callable[..., Any],
) -> None:
    """Tells PyTorch all that it asks of an operator, and of the one that compiled graphs call."""
    kernel = getattr(torch.ops.sdwa, f"{operator.overloadpacket.__name__}_kernel").default
    torch.library.register_fake(kernel, fake)
    register_flop_formula(kernel.overloadpacket)(flops)
    fake = lower_to_kernel(operator, kernel, fake)
    torch.library.register_fake(operator, fake)
    torch.library.register_autograd(operator, differentiate, setup_context=save)
    torch.library.register_vmap(operator, partial(vmap, operator))
    register_decomposition(operator)(decomposition)
    # Fake tensors of symbolic sizes would go through the decomposition otherwise.
    register_decomposition(operator, type="meta")(fake)
    register_flop_formula(operator.overloadpacket)(flops)


# What the derivative of an operator needs, kept in the context of its call.


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, bias, key_mask, *ctx.window = inputs
    ctx.save_for_backward(query, key, value, bias, key_mask, *output)
    ctx.set_materialize_grads(False)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_out, grad_lse, query, key, value, bias, key_mask, _, _, *ctx.window = inputs
    ctx.save_for_backward(grad_out, grad_lse, query, key, value, bias, key_mask)


def _differentiate_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    # out and lse are functions of the other inputs: all of the derivative is taken there.
    *saved, key_mask = ctx.saved_tensors
    nothing = (None,) * (3 + len(ctx.window))  # for key_mask, out, lse and the window
    return *decompositions.second_derivative(saved, key_mask, ctx.window, grads), *nothing


# The operators as functions of autograd, whose first input is the pair. They are quicker than what
# `torch.library.register_autograd` makes, and `torch.func` knows them.


class _Forward(Function):
    """The forward operator, for `torch.func`."""

    @staticmethod
    def forward(pair: OperatorPair, *inputs: Any) -> tuple[Tensor, Tensor]:
        with above_kernel_skipped():
            return pair.operate(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.pair = inputs[0]
        _save_forward(ctx, inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> Any:
        return None, *ctx.pair._differentiate_forward(ctx, grad_out, grad_lse)

    @staticmethod
    def vmap(info: Any, in_dims: Any, pair: OperatorPair, *inputs: Any) -> Any:
        def attend(*inputs: Any) -> tuple[Tensor, Tensor]:
            query, key, value, bias, key_mask, *window = inputs
            return pair.bind(tuple(window))(query, key, value, bias, key_mask)

        return rules.vmap_forward(attend, info, in_dims[1:], *inputs)


class _EagerForward(Function):
    """The forward operator, for eager calls.

    Of the two ways to write a function, the one that `torch.func` does not take is far quicker.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _Forward.forward(*inputs)
        _Forward.setup_context(ctx, inputs, output)
        return output

    backward = _Forward.backward


class _Backward(Function):
    """The backward operator, for `torch.func`."""

    @staticmethod
    def forward(pair: OperatorPair, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return pair.backward(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save_backward(ctx, inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, *_differentiate_backward(ctx, *grads)

    @staticmethod
    def vmap(info: Any, in_dims: Any, pair: OperatorPair, *inputs: Any) -> Any:
        return rules.vmap_backward(pair.differentiate, info, in_dims[1:], *inputs)


_apply_eagerly = plain_apply(_EagerForward)
