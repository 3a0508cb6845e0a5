"""The plain PyTorch implementation as a backend: runs anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from sdwa import reference
from sdwa.backends.base import Backend
from sdwa.problem import AttentionProblem


class ReferenceBackend(Backend):
    name = "reference"
    device_type = "cpu"

    def unavailable(self, device: torch.device) -> tuple[str, ...]:
        return ()

    def attend(
        self,
        problem: AttentionProblem,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return reference.attention(problem, query, key, value, bias)
