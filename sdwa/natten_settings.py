"""What models import of NATTEN beside attention: its settings, and its count of operations.

NATTEN's settings choose among its kernels. There is nothing to choose here, so they are accepted
without effect, and questions are answered as things are: attention is fused, on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

_SETTINGS = (
    "disable_autotuner",
    "disable_gemm_na",
    "disable_tf32",
    "disable_tiled_na",
    "enable_gemm_na",
    "enable_tf32",
    "enable_tiled_na",
    "force_flex_attention",
    "set_memory_usage_preference",
    "use_autotuner",
    "use_deterministic_algorithms",
    "use_flex_attention",
    "use_fna",
    "use_fused_na",
    "use_gemm_na",
    "use_kv_parallelism_in_fused_na",
    "use_tf32_in_gemm_na",
    "use_tiled_na",
)

_TRUE = (
    "has_bfloat",
    "has_fna",
    "has_fused_na",
    "has_half",
    "is_fna_enabled",
    "is_fused_na_enabled",
    "is_memory_usage_default",
)

_FALSE = (
    "has_fp32_gemm",
    "has_fp64_gemm",
    "has_gemm",
    "has_tf32_gemm",
    "is_autotuner_enabled",
    "is_autotuner_enabled_for_backward",
    "is_autotuner_enabled_for_forward",
    "is_autotuner_thorough_for_backward",
    "is_autotuner_thorough_for_forward",
    "is_gemm_na_enabled",
    "is_kv_parallelism_in_fused_na_enabled",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "is_tf32_in_gemm_na_enabled",
    "is_tiled_na_enabled",
)


def context() -> ModuleType:
    """`natten.context`, whose functions `natten` has as well."""
    module = ModuleType("natten.context", __doc__)
    for names, answer in ((_SETTINGS, None), (_TRUE, True), (_FALSE, False)):
        for name in names:
            setattr(module, name, _function(name, answer))
    vars(module).update(
        has_cuda=torch.cuda.is_available,
        are_deterministic_algorithms_enabled=torch.are_deterministic_algorithms_enabled,
    )
    return module


def _function(name: str, answer: bool | None) -> Any:
    # Whatever an old model passes, as no argument has an effect.
    def function(*_: Any, **__: Any) -> bool | None:
        return answer

    function.__name__ = function.__qualname__ = name
    return function


def flops() -> ModuleType:
    """`natten.flops`."""
    module = ModuleType("natten.flops", __doc__)
    vars(module).update(add_natten_handle=add_natten_handle)
    return module


def add_natten_handle(flop_ctr: Any) -> Any:
    """Teaches fvcore's counter the operators of this package.

    As fvcore and NATTEN do, it counts a multiplication with its addition as one.

    Args:
        flop_ctr: a `fvcore.nn.FlopCountAnalysis`.

    Returns:
        The same.
    """
    return flop_ctr.set_op_handle(
        "sdwa::attention_forward",
        _fused,
        "prim::PythonOp.Scores",
        _scores,
        "prim::PythonOp.Sums",
        _sums,
    )


# Of the values of a traced graph, which know their shapes.


def _fused(inputs: Sequence[Any], _: Sequence[Any]) -> int:
    kernel_size = inputs[5].toIValue()
    if kernel_size is None:  # a list that is put together within the graph
        kernel_size = [size.toIValue() for size in inputs[5].node().inputs()]
    taps: int = math.prod(kernel_size)
    return 2 * math.prod(_shape(inputs[0])) * taps


def _scores(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _sums(inputs: Sequence[Any], _: Sequence[Any]) -> int:
    attn, value = inputs[:2]
    return math.prod(_shape(attn)) * _shape(value)[-1]


def _shape(value: Any) -> list[int]:
    return list(value.type().sizes())
