"""Autocast: whether it is on, tensors cast to its dtype, and doing without it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sdwa.arguments import check_tensor

# Asked once: torch.compile of PyTorch 2.11 cannot trace the question.
AUTOCAST_DEVICES = frozenset(
    kind
    for kind in ("cpu", "cuda", "xpu", "mps", "hpu", "xla")
    if torch.amp.is_autocast_available(kind)
)


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for tensors of this device."""
    return device.type in AUTOCAST_DEVICES and torch.is_autocast_enabled(device.type)


def autocast_off(device: torch.device) -> AbstractContextManager[Any]:
    """A context within which plain PyTorch code computes in the dtypes that it says."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def autocast_tensors(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors in autocast's dtype where it is on, as for any matrix product; float64 stays.

    Raises:
        TypeError, ValueError: as `check_tensor`: what is not legal must not become so by the cast.
        TypeError: float64 beside another dtype, which autocast does not bring together.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, tensor)
    if not autocasts(query.device):
        return query, key, value
    device_type = query.device.type
    dtypes = [tensor.dtype for tensor in (query, key, value)]
    if torch.float64 in dtypes:
        if len(set(dtypes)) > 1:
            mixture = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise TypeError(
                f"query, key and value must have one dtype, got {mixture}: autocast leaves float64 "
                f"as it is. Cast them to one dtype, or turn autocast off around the call with "
                f'torch.autocast("{device_type}", enabled=False)'
            )
        return query, key, value
    dtype = torch.get_autocast_dtype(device_type)
    return query.to(dtype), key.to(dtype), value.to(dtype)
