"""What a backend is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sdwa.problem import AttentionProblem
from sdwa.registration import Attend


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
    def attend(
        self,
        problem: AttentionProblem,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(out, lse) of query, key, value (batch, height, width, heads, head_dim).

        bias is (heads, kernel_h, kernel_w) in the accumulation type, contiguous, or None.
        """


class OperatorBackend(Backend):
    """A backend whose kernels are a pair of operators.

    Args:
        operator: what `sdwa.registration.register` made of the pair; None where it has no kernels.
    """

    def __init__(self, operator: Attend | None) -> None:
        self._operator = operator

    def attend(
        self,
        problem: AttentionProblem,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        assert self._operator is not None
        return self._operator(
            query,
            key,
            value,
            bias,
            problem.kernel_size,
            problem.flat_dilation,
            problem.scale,
            problem.masked,
        )
