"""What one call of the operator asks for: made once, by `sdwa.arguments`, and passed on whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PADDING_MODES = ("zeros", "masked", "shifted")
# Larger ones are not tested on every backend.
MAX_HEAD_DIM = 256
MAX_KERNEL_SIZE = 255
MAX_DILATION = 2**31 - 1  # coordinates are 32-bit in the kernels

Size = int | Sequence[int]
Dilation = int | Sequence[int | Sequence[int]]
Causal = bool | Sequence[bool]
# The arguments of the operators after the tensors: kernel_size, flat_dilation, scale, masked, and
# then, unless they are all False, shifted, causal_h and causal_w.
Window = tuple[Any, ...]
# (query, key, value, bias, key_mask) -> (out, lse), with everything else fixed. bias has the shape
# `AttentionProblem.bias_shape`, in the accumulation type, contiguous, or is None; key_mask is
# (batch, height, width), bool, contiguous, or None.
Call = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]


class WindowAxis(NamedTuple):
    """The windows of all heads along one axis, in taps; a tap is a dilation of the head apart.

    csrc/window_geometry.h has the same for the kernels.

    Attributes:
        size: taps.
        before: of these, how many lie before the query.
        shifted: a window that would leave the map moves inwards, as far as its phase allows.
    """

    size: int
    before: int
    shifted: bool

    @staticmethod
    def of(kernel_size: int, shifted: bool, causal: bool) -> WindowAxis:
        """The axis that kernel_size, padding_mode and is_causal ask for."""
        if not causal:
            return WindowAxis(kernel_size, kernel_size // 2, shifted and kernel_size > 1)
        if shifted:  # NATTEN's: as many taps as ever, the last of them the query
            return WindowAxis(kernel_size, kernel_size - 1, False)
        return WindowAxis(kernel_size // 2 + 1, kernel_size // 2, False)

    @property
    def is_plain(self) -> bool:
        """Whether it is centred on the query, at the border as well."""
        return not self.shifted and self.size == 2 * self.before + 1


@dataclass(frozen=True)
class AttentionProblem:
    """One call of sliding dilated window attention, without its data.

    Attributes:
        shape: (batch, height, width, heads, head_dim) of query, key and value.
        kernel_size: (kernel_h, kernel_w), both odd unless the windows are shifted.
        flat_dilation: dilation_h, dilation_w of each head in turn, as the operators take it.
        scale: factor of the scores, already resolved (`head_dim ** -0.5` where the user gave None).
        masked: a tap off the map is left out; otherwise it counts as a zero key and a zero value.
        shifted: windows move inwards at the border; then masked as well, for what does not fit.
        is_causal: for each axis, whether a query attends to nothing after itself along it.
        dtype, device: of query, key and value.
    """

    shape: tuple[int, ...]
    kernel_size: tuple[int, int]
    flat_dilation: tuple[int, ...]
    scale: float
    masked: bool
    shifted: bool
    is_causal: tuple[bool, bool]
    dtype: torch.dtype
    device: torch.device

    @property
    def dilation(self) -> tuple[tuple[int, int], ...]:
        """(dilation_h, dilation_w) of each head."""
        return tuple(zip(self.flat_dilation[::2], self.flat_dilation[1::2], strict=True))

    @property
    def window(self) -> Window:
        """What the operators take after the tensors."""
        window = self.kernel_size, self.flat_dilation, self.scale, self.masked
        if not self.shifted and not any(self.is_causal):
            return window
        return (*window, self.shifted, *self.is_causal)

    @property
    def axes(self) -> tuple[WindowAxis, WindowAxis]:
        """The windows along the height and along the width."""
        (kernel_h, kernel_w), (causal_h, causal_w) = self.kernel_size, self.is_causal
        return (
            WindowAxis.of(kernel_h, self.shifted, causal_h),
            WindowAxis.of(kernel_w, self.shifted, causal_w),
        )

    @property
    def bias_shape(self) -> tuple[int, int, int]:
        """As the operators take bias: by tap, or by distance where the windows are shifted."""
        heads, (along_h, along_w) = self.shape[3], self.axes
        return (heads, *self.distances) if self.shifted else (heads, along_h.size, along_w.size)

    def bias_parts(self, shape: Sequence[int]) -> list[tuple[int, int, int]]:
        """Which parts of a bias of any shape that users may give are those of `bias_shape`.

        Returns:
            (dimension, first, size) of each dimension that is to be cut.
        """
        dims = zip((1, 2), self.bias_shape[1:], self.kernel_size, strict=True)
        return [
            (dim, (shape[dim] - full) // 2, size) for dim, size, full in dims if shape[dim] != size
        ]

    @property
    def distances(self) -> tuple[int, int]:
        """Distances in taps from a query to a key that a window can have, along each axis."""
        return 2 * self.kernel_size[0] - 1, 2 * self.kernel_size[1] - 1


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of lse, bias and every sum: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dtype_names(dtypes: Sequence[torch.dtype]) -> str:
    """As messages list them: "float32, bfloat16 or float16"."""
    *names, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{', '.join(names)} or {last}" if names else last
