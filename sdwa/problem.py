"""What one call of the operator asks for: made once, by `sdwa.arguments`, and passed on whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PADDING_MODES = ("zeros", "masked")
# Larger ones are not tested on every backend.
MAX_HEAD_DIM = 256
MAX_KERNEL_SIZE = 255
MAX_DILATION = 2**31 - 1  # coordinates are 32-bit in the kernels

Size = int | Sequence[int]
Dilation = int | Sequence[int | Sequence[int]]
# The arguments of the operators after the tensors: kernel_size, flat_dilation, scale, masked.
Window = tuple[Sequence[int], Sequence[int], float, bool]
# (query, key, value, bias, key_mask) -> (out, lse), with everything else fixed. bias is
# (heads, kernel_h, kernel_w) in the accumulation type, contiguous, or None; key_mask is
# (batch, height, width), bool, contiguous, or None.
Call = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AttentionProblem:
    """One call of sliding dilated window attention, without its data.

    Attributes:
        shape: (batch, height, width, heads, head_dim) of query, key and value.
        kernel_size: (kernel_h, kernel_w), both odd.
        flat_dilation: dilation_h, dilation_w of each head in turn, as the operators take it.
        scale: factor of the scores, already resolved (`head_dim ** -0.5` where the user gave None).
        masked: a tap off the map is left out; otherwise it counts as a zero key and a zero value.
        dtype, device: of query, key and value.
    """

    shape: tuple[int, ...]
    kernel_size: tuple[int, int]
    flat_dilation: tuple[int, ...]
    scale: float
    masked: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def dilation(self) -> tuple[tuple[int, int], ...]:
        """(dilation_h, dilation_w) of each head."""
        return tuple(zip(self.flat_dilation[::2], self.flat_dilation[1::2], strict=True))

    @property
    def window(self) -> Window:
        """What the operators take after the tensors."""
        return self.kernel_size, self.flat_dilation, self.scale, self.masked


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of lse, bias and every sum: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dtype_names(dtypes: Sequence[torch.dtype]) -> str:
    """As messages list them: "float32, bfloat16 or float16"."""
    *names, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{', '.join(names)} or {last}" if names else last
