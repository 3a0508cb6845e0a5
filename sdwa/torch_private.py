"""Every private name of PyTorch that the package uses, and why.

A new PyTorch that breaks something breaks it here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _ExcludeDispatchKeyGuard,
    _is_any_autocast_enabled,
)

# `run_decompositions` and the ONNX exporter find a decomposition nowhere else.
from torch._decomp import register_decomposition
from torch._library.utils import get_layout_constraint_tag
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling
from torch.nn import Module
from torch.nn.modules.module import _has_any_global_hook

__all__ = [
    "CALL_HOOKS",
    "HOOKS",
    "above_kernel_skipped",
    "any_autocast",
    "autocast_skipped",
    "constant_when_compiled",
    "has_hooks",
    "in_forward_mode",
    "in_transform",
    "is_observed",
    "lower_to_kernel",
    "plain_apply",
    "plain_call",
    "register_autocast",
    "register_decomposition",
    "trace_paused",
    "varies",
]

_AUTOCAST_KEYS = ("AutocastCPU", "AutocastCUDA")
_AUTOCAST = DispatchKeySet(DispatchKey.AutocastCPU) | DispatchKeySet(DispatchKey.AutocastCUDA)

# Asked on every call: the public `torch.is_autocast_enabled` takes one device type at a time.
any_autocast = _is_any_autocast_enabled
# Whether a transform of `torch.func` is active: they do not take the quicker form of an autograd
# function.
in_transform = torch._C._are_functorch_transforms_active
# Makes a context manager within which autocast's rule does not cast a call again.
autocast_skipped = partial(_ExcludeDispatchKeyGuard, _AUTOCAST)
# Within this one a call takes the shortest way to its kernel. Modes such as that of fake tensors
# still see it.
above_kernel_skipped = partial(
    _ExcludeDispatchKeyGuard, _AUTOCAST | DispatchKeySet(DispatchKey.AutogradFunctionality)
)

# Where a module keeps its hooks, and those among them that its call runs.
HOOKS = tuple(name for name in vars(Module()) if name.endswith("_hooks"))
CALL_HOOKS = tuple(name for name in HOOKS if name.startswith(("_forward", "_backward")))


def has_hooks(module: Module, names: tuple[str, ...] = HOOKS) -> bool:
    """Whether a module has hooks of these names, or a `forward` that was put around its own."""
    return any(getattr(module, name) for name in names) or "forward" in vars(module)


def is_observed(module: Module) -> bool:
    """Whether somebody learns of a call of the module, by its hooks or by those of all modules."""
    return has_hooks(module, CALL_HOOKS) or _has_any_global_hook()  # type: ignore[no-untyped-call]


def in_forward_mode() -> bool:
    """Whether a level of `torch.autograd.forward_ad` is open."""
    return forward_ad._current_level >= 0


def constant_when_compiled(function: Callable[[], Any]) -> Callable[[], Any]:
    """Marks a function for `torch.compile` to call, and not to trace into.

    The public `torch.compiler.assume_constant_result` loads what `import sdwa` is not to wait for.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def trace_paused() -> AbstractContextManager[None]:
    """Makes a context manager within which `torch.jit.trace` records nothing.

    Sizes are ints there. Otherwise they are tensors while it records.
    """
    tracing = torch.jit.is_tracing()  # type: ignore[no-untyped-call]
    return _trace_paused() if tracing else nullcontext()


@contextmanager
def _trace_paused() -> Iterator[None]:
    set_state: Any = torch._C._set_tracing_state  # type: ignore[attr-defined]
    state = torch._C._get_tracing_state()
    set_state(None)
    try:
        yield
    finally:
        set_state(state)


def plain_apply(function: type[Function]) -> Any:
    """`function.apply` without its question about `torch.func`, which takes as long as a kernel."""
    return super(Function, function).apply  # type: ignore[misc]


def plain_call(operator: Any) -> Any:
    """What calling the operator comes to, without a frame of Python in between."""
    return operator._op


def register_autocast(library: torch.library.Library, name: str, rule: Callable[..., Any]) -> None:
    """Makes `rule(keyset, *inputs)` what autocast does.

    The public `torch.library.register_autocast` casts every tensor. The bias must not be: it stays
    in the accumulation type.
    """
    for key in _AUTOCAST_KEYS:
        library.impl(name, rule, key, with_keyset=True)  # type: ignore[no-untyped-call]


def lower_to_kernel(operator: Any, kernel: Any, fake: Callable[..., Any]) -> Callable[..., Any]:
    """The fake, which also has Inductor call `kernel` where the graph has the operator.

    `kernel` is the operator without rules for autograd and autocast. Those are written in Python,
    and a call goes through them also where nothing is left to differentiate or to cast.

    Inductor calls it although there is a decomposition. Every compilation runs the fakes, so they
    tell Inductor where it is loaded; importing sdwa does not load it.
    """
    arguments = operator._schema.arguments

    def lowered(*inputs: Any) -> Any:
        inductor: Any = sys.modules.get("torch._inductor.lowering")
        if inductor is not None and operator not in inductor.lowerings:
            layout = inductor.tag_to_layout_constraint(get_layout_constraint_tag(operator))
            inductor.make_fallback(operator, layout, warn=False)
            call = inductor.fallback_handler(kernel)

            def lower(*given: Any, **named: Any) -> Any:
                others = arguments[len(given) :]  # by name or left out; the kernel has no defaults
                return call(*given, *(named.get(a.name, a.default_value) for a in others))

            inductor.register_lowering(operator, type_promotion_kind=None)(lower)
        return fake(*inputs)

    return lowered


def varies(number: Any) -> bool:
    """Whether torch.compile is at work and keeps that number as a variable of its graph.

    Inductor would hand an operator the number that it was compiled with.
    """
    if not is_compiling() or not isinstance(number, (int, float)):
        return False
    # Loaded by then. It brings sympy, which `import sdwa` is not to wait for.
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not has_static_value(number)
