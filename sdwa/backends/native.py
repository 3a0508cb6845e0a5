"""The compiled kernels, C++ on the CPU and CUDA C++ on an NVIDIA GPU: one pair of operators.

The libraries are loaded on import, so that exported programs find their operators.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch.compiler import is_compiling

from sdwa.backends.base import OperatorBackend
from sdwa.extension import load_library, stale
from sdwa.problem import AttentionProblem
from sdwa.registration import OperatorPair

# Why a library is not loaded, or None. The CPU's also defines the operators.
MISSING_CPU = load_library("sdwa_cpu")
if message := stale():
    warnings.warn(message, RuntimeWarning, stacklevel=2)
MISSING_CUDA = MISSING_CPU or load_library("sdwa_cuda")
PAIR = None if MISSING_CPU else OperatorPair("attention_forward", "attention_backward")
# Coordinates are 32-bit; csrc/checks.h has it too, for direct calls of the operators.
MAX_EXTENT = 2**30


class NativeBackend(OperatorBackend):
    """What both compiled backends refuse."""

    def __init__(self) -> None:
        super().__init__(PAIR)

    def reasons(self, problem: AttentionProblem) -> tuple[str, ...]:
        missing = super().reasons(problem)
        if not missing and not is_compiling() and max(problem.shape[1:3]) > MAX_EXTENT:
            return (f"query must have height and width up to {MAX_EXTENT}, got {problem.shape}",)
        return missing


class CpuBackend(NativeBackend):
    name = "cpu"
    device_type = "cpu"

    def unavailable(self, device: torch.device) -> tuple[str, ...]:
        reasons = []
        if device.type != "cpu":
            reasons.append(f"runs on the CPU, not on {device.type}")
        if MISSING_CPU is not None:
            reasons.append(MISSING_CPU)
        return tuple(reasons)


class CudaBackend(NativeBackend):
    name = "cuda"
    device_type = "cuda"

    def unavailable(self, device: torch.device) -> tuple[str, ...]:
        reasons = []
        if device.type != "cuda":
            reasons.append(f"runs on an NVIDIA GPU, not on {device.type}")
        if not torch.cuda.is_available():
            reasons.append("PyTorch sees no CUDA device")
        if MISSING_CUDA is not None:
            reasons.append(MISSING_CUDA)
        if not reasons:
            compiled = torch.ops.sdwa.cuda_architectures()
            major, minor = torch.cuda.get_device_capability(device)
            if not runs_on(compiled, major, minor):
                reasons.append(
                    f"compiled for {compiled}, this GPU is {major}.{minor}: reinstall with "
                    f'TORCH_CUDA_ARCH_LIST={major}.{minor}, or use backend="triton"'
                )
        return tuple(reasons)


@cache
def runs_on(architectures: str, major: int, minor: int) -> bool:
    """Whether code compiled for `architectures`, such as "8.0;9.0+PTX", runs on a GPU major.minor.

    Machine code runs on GPUs of its major version from its minor version on; PTX on all later ones.
    """
    for entry in architectures.split(";"):
        compiled = tuple(int(part) for part in entry.removesuffix("+PTX").split("."))
        if compiled <= (major, minor) and (compiled[0] == major or entry.endswith("+PTX")):
            return True
    return False
