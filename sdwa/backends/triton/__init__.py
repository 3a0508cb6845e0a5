"""Triton kernels, for a GPU without the compiled ones. Importing this package imports no Triton."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from sdwa.backends.base import OperatorBackend
from sdwa.problem import AttentionProblem
from sdwa.registration import OperatorPair
from sdwa.torch_private import constant_when_compiled

MINIMUM_VERSION = (3, 6)  # as in pyproject.toml
PACKAGES = ("triton", "triton-rocm", "pytorch-triton-rocm", "triton-windows")

# As in csrc/library.cpp, which may not be compiled where Triton runs.
SCHEMAS = (
    "triton_attention_forward(Tensor query, Tensor key, Tensor value, Tensor? bias, "
    "Tensor? key_mask, int[] kernel_size, int[] dilation, float scale, bool masked, "
    "bool shifted=False, bool causal_h=False, bool causal_w=False) -> (Tensor out, Tensor lse)",
    "triton_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, "
    "Tensor value, Tensor? bias, Tensor? key_mask, Tensor out, Tensor lse, int[] kernel_size, "
    "int[] dilation, float scale, bool masked, bool shifted=False, bool causal_h=False, "
    "bool causal_w=False) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, "
    "Tensor grad_bias)",
)
_LIBRARY = torch.library.Library("sdwa", "FRAGMENT")


def interpreted() -> bool:
    """Whether Triton is asked to run its kernels in Python, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on")


@constant_when_compiled
def _asked_too_late() -> bool:
    """Whether it was asked for, or no more, after Triton was imported, which then decided it."""
    language = sys.modules.get("triton.language")
    zeros = getattr(language, "zeros", None)
    return zeros is not None and (type(zeros).__name__ == "InterpretedFunction") != interpreted()


def reasons_unavailable(device_type: str) -> tuple[str, ...]:
    """Why the kernels cannot run on a device of this type; empty: they can."""
    reasons = []
    if _MISSING_TRITON:
        reasons.append(_MISSING_TRITON)
    if device_type == "cuda":
        if not torch.cuda.is_available():
            reasons.append("PyTorch sees no GPU")
        elif interpreted():
            reasons.append("TRITON_INTERPRET=1 is set: Triton runs on the CPU")
    elif device_type != "cpu":
        reasons.append(f"runs on an NVIDIA or AMD GPU, not on {device_type}")
    elif not interpreted():
        reasons.append(
            "runs on an NVIDIA or AMD GPU, not on the CPU (TRITON_INTERPRET=1 interprets it there)"
        )
    if not reasons and _asked_too_late():
        reasons.append("TRITON_INTERPRET was changed after Triton was imported: set it before")
    return tuple(reasons)


def _find_triton() -> str | None:
    """Why there is no usable Triton; None: there is one."""
    minimum = ".".join(map(str, MINIMUM_VERSION))
    if not find_spec("triton"):
        return f"triton is not installed, {minimum} or newer is needed"
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(package)
            if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
                return f"{package} {version} is too old, {minimum} or newer is needed"
            break
    return None  # also where another package brings it, or a folder on the path


# Done once, at import: torch.compile would trace into it.
_MISSING_TRITON = _find_triton()


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return import_module("sdwa.backends.triton.launch").attention_forward(*arguments)  # type: ignore[no-any-return]


def _backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return import_module("sdwa.backends.triton.launch").attention_backward(*arguments)  # type: ignore[no-any-return]


def _define() -> OperatorPair:
    """Defines the pair and registers it. Triton itself is imported by the first call."""
    for schema, implementation in zip(SCHEMAS, (_forward, _backward), strict=True):
        for_graphs = schema.replace("(", "_kernel(", 1).replace("=False", "")
        for form in (schema, for_graphs):
            name = _LIBRARY.define(form, tags=(torch.Tag.pt2_compliant_tag,))
            for key in ("CUDA", "CPU"):
                _LIBRARY.impl(name, implementation, key)
    return OperatorPair("triton_attention_forward", "triton_attention_backward")


class TritonBackend(OperatorBackend):
    name = "triton"
    dtypes = (torch.float32, torch.bfloat16, torch.float16)

    def __init__(self) -> None:
        super().__init__(_define())

    @property
    def by_default(self) -> bool:  # type: ignore[override]
        return not interpreted()  # which is for finding faults in kernels

    @property
    def device_type(self) -> str:  # type: ignore[override]
        return "cpu" if interpreted() else "cuda"

    def reasons(self, problem: AttentionProblem) -> tuple[str, ...]:
        missing = super().reasons(problem)
        # A compiler's sizes may be symbols: the launch then says the same.
        if missing or is_compiling() or not all(isinstance(size, int) for size in problem.shape):
            return missing
        launch = import_module("sdwa.backends.triton.launch")
        return launch.reasons(  # type: ignore[no-any-return]
            problem.shape,
            problem.dtype.itemsize,
            launch.Windows(*problem.axes, problem.shifted, problem.masked),
            problem.flat_dilation,
        )

    def unavailable(self, device: torch.device) -> tuple[str, ...]:
        return reasons_unavailable(device.type)
