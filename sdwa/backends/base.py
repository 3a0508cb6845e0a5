"""What a backend is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from sdwa.problem import DTYPES, AttentionProblem, Call, dtype_names
from sdwa.registration import OperatorPair


class Backend(ABC):
    """One implementation of the operator. It says, as a list of reasons, why it cannot be used."""

    name: str
    device_type: str  # the kind of device that it is made for
    dtypes: tuple[torch.dtype, ...] = DTYPES
    by_default: bool = True  # whether it may be chosen where the user names none

    @abstractmethod
    def unavailable(self, device: torch.device) -> tuple[str, ...]:
        """Why nothing can run on this device; empty: something can."""

    def reasons(self, problem: AttentionProblem) -> tuple[str, ...]:
        """Why this problem cannot be run; empty: it can."""
        missing = self.unavailable(problem.device)
        if not missing and problem.dtype not in self.dtypes:
            legal = dtype_names(self.dtypes)
            return (f"dtype {problem.dtype} is not supported, only {legal}",)
        return missing

    @abstractmethod
    def bind(self, problem: AttentionProblem) -> Call:
        """What computes (out, lse) of this problem."""


class OperatorBackend(Backend):
    """A backend whose kernels are a pair of operators.

    Args:
        pair: None where there are no kernels.
    """

    def __init__(self, pair: OperatorPair | None) -> None:
        self._pair = pair

    def bind(self, problem: AttentionProblem) -> Call:
        assert self._pair is not None
        return self._pair.bind(problem.window)
