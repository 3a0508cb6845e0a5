"""The problems that are timed, in named sets, and what each needs at the least."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

PAPER = (1, 1, 2, 2, 2, 3, 3, 3)


@dataclass(frozen=True)
class Shape:
    """One attention problem without its data.

    Attributes:
        name: identifies it in tables and files.
        batch: images; `gpu_batch` on a GPU, so that the data is several times its L2 cache.
        height, width: of the map; a height of 1 is a sequence.
        heads, head_dim: number of heads, and channels of each.
        dilation: of each head.
        kernel_size: taps along each side of the window; those of a sequence lie along it.
        padding_mode: of the operator: "zeros", "masked" or "shifted".
        gpu_only: too large for a CPU.
    """

    name: str
    batch: int
    height: int
    width: int
    heads: int
    head_dim: int
    dilation: tuple[int, ...]
    kernel_size: int = 3
    padding_mode: str = "zeros"
    gpu_batch: int | None = None
    gpu_only: bool = False

    def on(self, device: torch.device) -> Shape:
        """The same with the batch for that kind of device."""
        batch = self.batch if device.type == "cpu" or self.gpu_batch is None else self.gpu_batch
        return dataclasses.replace(self, batch=batch)

    def as_json(self) -> dict[str, Any]:
        """Its fields, in the types that a JSON file gives back."""
        return {**dataclasses.asdict(self), "dilation": list(self.dilation)}

    @property
    def dims(self) -> tuple[int, int, int, int, int]:
        """(batch, height, width, heads, head_dim)"""
        return (self.batch, self.height, self.width, self.heads, self.head_dim)

    @property
    def window(self) -> tuple[int, int]:
        """Taps along the height and along the width."""
        return (1 if self.height == 1 else self.kernel_size, self.kernel_size)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the operator is called with after the tensors."""
        return {
            "kernel_size": self.window,
            "dilation": self.dilation,
            "padding_mode": self.padding_mode,
        }

    def padding(self, dilation: int) -> tuple[int, int]:
        """Rows and columns of zeros on each side that windows at that dilation read."""
        if self.padding_mode != "zeros":
            return (0, 0)
        return (dilation * (self.window[0] // 2), dilation * (self.window[1] // 2))

    @property
    def products(self) -> int:
        """Multiplications of the scores, and as many of the weighted sums."""
        return self.window[0] * self.window[1] * self.elements

    @property
    def tokens(self) -> int:
        """Pixels of the map."""
        return self.height * self.width

    @property
    def elements(self) -> int:
        """Of one of the tensors query, key, value, out."""
        return self.batch * self.tokens * self.heads * self.head_dim

    def fewest_bytes(self, what: str, dtype: torch.dtype) -> int:
        """Bytes that must cross the memory bus at least.

        Forward: read query, key, value, write out and lse. Backward: read those three and the
        gradient of out, write their three gradients, read lse and one sum per token and head.
        """
        rows = self.elements // self.head_dim
        lse = 8 if dtype == torch.float64 else 4
        forward = 4 * self.elements * dtype.itemsize + rows * lse
        backward = 7 * self.elements * dtype.itemsize + 2 * rows * lse
        return {
            "forward": forward,
            "backward": backward,
            "forward+backward": forward + backward,
        }[what]

    def operations(self, what: str) -> int:
        """Floating-point operations, a multiply-add counted as two: of the products only."""
        return {"forward": 2, "backward": 5, "forward+backward": 7}[what] * 2 * self.products

    def __str__(self) -> str:
        return self.name


def _dilations(heads: int) -> tuple[int, ...]:
    """1, 2 and 3 shared equally by the heads."""
    return tuple(1 + 3 * head // heads for head in range(heads))


def _map(side: int, batch: int, gpu_batch: int) -> Shape:
    return Shape(f"map{side}", batch, side, side, 8, 64, PAPER, gpu_batch=gpu_batch)


def _kernel(size: int) -> Shape:
    name = f"kernel{size}"
    return Shape(name, 4, 28, 28, 6, 32, _dilations(6), kernel_size=size, gpu_batch=128)


def _head_dim(size: int) -> Shape:
    return Shape(f"head_dim{size}", 4, 28, 28, 6, size, _dilations(6), gpu_batch=8192 // size)


def _shifted(name: str, side: int, heads: int, kernel_size: int, *dilation: int) -> Shape:
    dilations = dilation * (heads // len(dilation))
    batch = 2**20 // side**2
    return Shape(name, 1, side, side, heads, 32, dilations, kernel_size, "shifted", batch)


SHAPE_SETS: dict[str, tuple[Shape, ...]] = {
    # The network's own: 224 x 224 images, 8 heads of 64 channels.
    "paper": (
        Shape("paper", 200, 7, 7, 8, 64, PAPER, gpu_batch=200),
        Shape("paper_one_image", 1, 7, 7, 8, 64, PAPER),
    ),
    # The first two stages of DilateFormer Tiny (heads of 24) and Base (heads of 32).
    "dilateformer": (
        Shape("tiny56", 8, 56, 56, 3, 24, (1, 2, 3), gpu_batch=512),
        Shape("tiny28", 8, 28, 28, 6, 24, _dilations(6), gpu_batch=512),
        Shape("base56", 8, 56, 56, 3, 32, (1, 2, 3), gpu_batch=512),
        Shape("base28", 8, 28, 28, 6, 32, _dilations(6), gpu_batch=512),
    ),
    # Time per pixel over the side of the map shows how an implementation scales.
    "maps": (
        _map(14, 32, 1024),
        _map(28, 8, 256),
        _map(56, 2, 64),
        _map(112, 1, 16),
        _map(224, 1, 4),
    ),
    # Rows whose bytes divide by 16, by 8, by less; and several parts of a row.
    "head_dims": tuple(_head_dim(size) for size in (12, 16, 20, 31, 60, 96, 128, 256)),
    "kernels": tuple(_kernel(size) for size in (3, 5, 7, 9, 11, 13)),
    # NATTEN's own windows, which move inwards at the border; one dilation for all heads, as there.
    # The fifth has one per head. Maps of DiNAT, and a sequence.
    "shifted": (
        _shifted("shifted56k3", 56, 4, 3, 1),
        _shifted("shifted56k3d4", 56, 4, 3, 4),
        _shifted("shifted56k7", 56, 4, 7, 1),
        _shifted("shifted56k7d4", 56, 4, 7, 4),
        _shifted("shifted56k7heads", 56, 4, 7, 1, 2, 3, 4),
        _shifted("shifted14k7", 14, 8, 7, 1),
        _shifted("shifted14k7d2", 14, 8, 7, 2),
        Shape("row4096k13", 1, 1, 4096, 4, 32, (1,) * 4, 13, "shifted", gpu_batch=256),
    ),
    # A globe at 2 degrees; one dilation for all heads.
    "sphere": tuple(
        Shape(f"sphere90k{size}", 1, 90, 180, 4, 32, (1,) * 4, kernel_size=size, gpu_batch=64)
        for size in (3, 7)
    ),
    # More than 2^31 elements per tensor.
    "large": (Shape("large", 86, 224, 224, 8, 64, PAPER, gpu_only=True),),
}
