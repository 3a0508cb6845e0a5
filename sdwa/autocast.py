"""Autocast: whether it is on, and tensors cast to its dtype."""

from __future__ import annotations

import torch
from torch import Tensor

# Asked once: torch.compile of PyTorch 2.11 cannot trace the question.
AUTOCAST_DEVICES = frozenset(
    kind
    for kind in ("cpu", "cuda", "xpu", "mps", "hpu", "xla")
    if torch.amp.is_autocast_available(kind)
)


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for tensors of this device."""
    return device.type in AUTOCAST_DEVICES and torch.is_autocast_enabled(device.type)


def autocast_tensors(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors in autocast's dtype where it is on, as for any matrix product; float64 stays.

    Raises:
        TypeError: float64 beside another dtype, which autocast does not bring together.
    """
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
