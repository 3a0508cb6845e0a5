"""What a backend is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from sdwa.problem import AttentionProblem
from sdwa.registration import Bind, Call


class Backend(ABC):
    """One implementation of the operator. It says, as a list of reasons, why it cannot be used."""

    name: str
    device_type: str  # the kind of device that it is made for
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

    @abstractmethod
    def unavailable(self, device: torch.device) -> tuple[str, ...]:
        """Why nothing can run on this device; empty: something can."""

    def reasons(self, problem: AttentionProblem) -> tuple[str, ...]:
        """Why this problem cannot be run; empty: it can."""
        missing = self.unavailable(problem.device)
        if not missing and problem.dtype not in self.dtypes:
            legal = ", ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            return (f"dtype {problem.dtype} is not supported, only {legal}",)
        return missing

    @abstractmethod
    def bind(self, problem: AttentionProblem) -> Call:
        """What computes (out, lse) of this problem from query, key, value and bias.

        query, key and value are (batch, height, width, heads, head_dim); bias is
        (heads, kernel_h, kernel_w) in the accumulation type, contiguous, or None.
        """


class OperatorBackend(Backend):
    """A backend whose kernels are a pair of operators.

    Args:
        operator: what `sdwa.registration.register` made of the pair; None where it has no kernels.
    """

    def __init__(self, operator: Bind | None) -> None:
        self._operator = operator

    def bind(self, problem: AttentionProblem) -> Call:
        assert self._operator is not None
        return self._operator(
            problem.kernel_size, problem.flat_dilation, problem.scale, problem.masked
        )
