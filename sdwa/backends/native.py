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
from sdwa.torch_private import constant_when_compiled, trace_paused

# Why a library is not loaded, or None. The CPU's also defines the operators.
MISSING_CPU = load_library("sdwa_cpu", "attention_forward_kernel")
if message := stale():
    warnings.warn(message, RuntimeWarning, stacklevel=2)
MISSING_CUDA = MISSING_CPU or load_library("sdwa_cuda", "cuda_architectures")
PAIR = None if MISSING_CPU else OperatorPair("attention_forward", "attention_backward")
# Coordinates are 32-bit; csrc/checks.h has it too, for direct calls of the operators.
MAX_EXTENT = 2**30
# The first driver of each major version of CUDA.
FIRST_DRIVER = {12: "525", 13: "580"}


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
            compiled, runtime, driver = compiled_for()
            if too_old := driver_too_old(runtime, driver):
                reasons.append(too_old)
            major, minor = torch.cuda.get_device_capability(device)
            if not runs_on(compiled, major, minor):
                reasons.append(
                    f"compiled for {compiled}, this GPU is {major}.{minor}: reinstall with "
                    f'TORCH_CUDA_ARCH_LIST={major}.{minor}, or use backend="triton"'
                )
        return tuple(reasons)


@constant_when_compiled
def compiled_for() -> tuple[str, int, int]:
    """The library's architectures and CUDA version, and the CUDA version of the driver."""
    with trace_paused():  # torch.jit.trace records no text
        return torch.ops.sdwa.cuda_architectures(), *torch.ops.sdwa.cuda_versions()


def driver_too_old(runtime: int, driver: int) -> str | None:
    """Why a CUDA runtime does not start on a driver, or None; versions as 12080 for 12.8.

    A driver made for some CUDA takes every runtime of that major version, and older ones.
    """
    major = runtime // 1000
    if driver // 1000 >= major:
        return None
    needed = f", {FIRST_DRIVER[major]} or newer" if major in FIRST_DRIVER else ""
    return (
        f"compiled with CUDA {_dotted(runtime)}, which needs an NVIDIA driver for CUDA {major}"
        f"{needed}; this one is for CUDA {_dotted(driver)}: update it, reinstall with an nvcc of "
        f'CUDA {driver // 1000}, or use backend="triton"'
    )


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


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
