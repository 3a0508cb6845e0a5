"""Number formats: what `--precision` may be, the autocast that it stands for, and sums."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "bf16", "fp16"]

AUTOCAST_DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

WITHOUT_FLOAT64 = {"mps"}  # types of devices


def sum_dtype(device: torch.device) -> torch.dtype:
    """For sums over many images: float64, or float32 where the device has none."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to `precision`, or nothing at "float32"."""
    dtype = AUTOCAST_DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
