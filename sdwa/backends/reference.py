"""The plain PyTorch implementation as a backend: runs anywhere."""

from __future__ import annotations

from functools import partial

import torch

from sdwa import reference
from sdwa.backends.base import Backend
from sdwa.problem import AttentionProblem, Call


class ReferenceBackend(Backend):
    name = "reference"
    device_type = "cpu"

    def unavailable(self, device: torch.device) -> tuple[str, ...]:
        return ()

    def bind(self, problem: AttentionProblem) -> Call:
        return partial(reference.attention, problem)
