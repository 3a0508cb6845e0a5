"""Named problems of the operator, with awkward sizes, and their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """One problem.

    `strictly_causal`: the bias is -inf from the query on, so that masked windows in the first
    corner of the map have nothing left. A `bias` is by tap, but by distance with shifted windows.
    `key_mask`: one that leaves out most keys, here and there a
    whole window. `layout`: how query, key and value lie in memory.
    """

    name: str
    shape: tuple[int, int, int, int, int]  # batch, height, width, heads, head_dim
    kernel_size: int | tuple[int, int] = 3
    dilation: int | tuple = 1
    bias: bool = False
    strictly_causal: bool = False
    key_mask: bool = False
    scale: float | None = None
    padding_mode: str = "zeros"
    is_causal: bool | tuple[bool, bool] = False
    layout: str = "contiguous"

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("paper", (2, 7, 7, 8, 64), dilation=(1, 1, 2, 2, 2, 3, 3, 3)),
    Case(
        "paper_masked", (2, 7, 7, 8, 32), dilation=(1, 1, 2, 2, 2, 3, 3, 3), padding_mode="masked"
    ),
    Case("one_pixel", (2, 1, 1, 3, 8), dilation=(1, 2, 5)),
    Case("one_pixel_masked", (1, 1, 1, 2, 4), padding_mode="masked"),
    Case("one_row", (1, 1, 13, 2, 16), dilation=(1, 4)),
    Case("one_column", (1, 17, 1, 2, 16), dilation=(2, 3)),
    Case("tall", (1, 19, 5, 3, 24), dilation=(3, 1, 2)),
    Case("wide_packed", (2, 5, 23, 4, 16), dilation=(1, 2, 3, 4), layout="packed"),
    Case("strided_map", (1, 9, 7, 2, 20), dilation=2, layout="strided"),
    Case("expanded_key", (3, 6, 5, 2, 8), dilation=(1, 2), layout="expanded"),
    Case("heads_first", (2, 8, 6, 3, 12), dilation=(1, 2, 3), layout="heads_first"),
    Case("bias", (2, 7, 9, 4, 16), dilation=(1, 1, 2, 3), bias=True),
    Case("bias_masked", (2, 7, 9, 4, 16), dilation=(1, 1, 2, 3), bias=True, padding_mode="masked"),
    Case("bias_5x5", (1, 11, 8, 3, 10), kernel_size=5, dilation=(1, 2, 3), bias=True),
    Case("dilation_beyond_map", (1, 4, 3, 3, 6), dilation=(2, 5, 7)),
    Case("dilation_by_axis", (1, 9, 10, 2, 8), dilation=((1, 3), (2, 1)), bias=True),
    Case("window_1x1", (1, 5, 6, 2, 8), kernel_size=1),
    Case("window_3x5", (1, 8, 9, 2, 8), kernel_size=(3, 5), dilation=(1, 2), bias=True),
    Case("window_5", (1, 13, 11, 2, 32), kernel_size=5, dilation=(1, 2)),
    Case(
        "window_7_masked", (1, 11, 13, 2, 10), kernel_size=7, dilation=(1, 2), padding_mode="masked"
    ),
    Case("window_11x9", (1, 10, 7, 1, 12), kernel_size=(11, 9)),
    Case("window_13_beyond_map", (1, 6, 5, 2, 4), kernel_size=13, dilation=(1, 2)),
    Case("head_dim_1", (1, 5, 7, 3, 1), dilation=(1, 2, 3)),
    Case("head_dim_3", (2, 5, 4, 2, 3), dilation=(1, 2)),
    Case("head_dim_60", (1, 6, 7, 2, 60), dilation=(1, 2)),
    Case("head_dim_96", (1, 5, 6, 2, 96), dilation=(1, 2)),
    Case("head_dim_100", (1, 5, 6, 1, 100)),
    Case("head_dim_128", (1, 6, 5, 2, 128), dilation=(1, 3)),
    Case("head_dim_256", (1, 4, 5, 1, 256)),
    Case("many_heads", (1, 4, 4, 37, 4), dilation=tuple(1 + n % 4 for n in range(37))),
    Case("scale_zero", (1, 5, 5, 2, 8), scale=0.0, bias=True),
    # scores of hundreds, whose last bits count: both passes must round them alike
    Case("scale_large", (1, 6, 6, 2, 16), scale=30.0),
    Case("scale_large_5x5", (1, 11, 10, 2, 128), 5, dilation=(1, 2), scale=12.0),
    Case("scale_large_7x7", (1, 11, 10, 2, 64), 7, dilation=(1, 2), scale=15.0),
    Case("scale_large_shifted", (1, 7, 7, 2, 24), scale=24.0, padding_mode="shifted"),
    Case("scale_negative", (1, 6, 6, 2, 16), scale=-0.7, padding_mode="masked"),
    Case("batch_0", (0, 5, 6, 2, 8), dilation=(1, 2), bias=True),
    Case("larger_map", (1, 31, 29, 4, 32), dilation=(1, 2, 3, 4)),
    Case("key_mask", (2, 9, 11, 3, 32), dilation=(1, 2, 3), key_mask=True),
    Case(
        "key_mask_masked",
        (2, 7, 7, 8, 64),
        dilation=(1, 1, 2, 2, 2, 3, 3, 3),
        bias=True,
        padding_mode="masked",
        key_mask=True,
    ),
    Case(
        "key_mask_5x5", (2, 8, 9, 2, 20), kernel_size=5, dilation=(1, 2), bias=True, key_mask=True
    ),
    Case(
        "key_mask_7_masked",
        (1, 9, 10, 2, 32),
        kernel_size=7,
        dilation=(1, 3),
        padding_mode="masked",
        key_mask=True,
        layout="packed",
    ),
    Case("key_mask_9x3", (1, 7, 8, 2, 6), kernel_size=(9, 3), dilation=(1, 2), key_mask=True),
    Case("key_mask_1x1", (2, 4, 5, 2, 8), kernel_size=1, key_mask=True),
    Case(
        "nothing_left",
        (2, 6, 7, 3, 16),
        dilation=(1, 2, 3),
        bias=True,
        strictly_causal=True,
        padding_mode="masked",
    ),
    Case(
        "nothing_left_5x5",
        (1, 7, 6, 2, 24),
        kernel_size=5,
        dilation=(1, 2),
        bias=True,
        strictly_causal=True,
        padding_mode="masked",
    ),
    Case(
        "nothing_left_3x7",
        (1, 5, 9, 2, 5),
        kernel_size=(3, 7),
        bias=True,
        strictly_causal=True,
        padding_mode="masked",
        key_mask=True,
    ),
    Case("strictly_causal", (1, 6, 7, 2, 16), dilation=(1, 2), bias=True, strictly_causal=True),
    Case("shifted", (2, 7, 9, 4, 16), dilation=(1, 1, 2, 3), padding_mode="shifted"),
    Case(
        "shifted_bias", (2, 7, 9, 4, 16), dilation=(1, 1, 2, 3), bias=True, padding_mode="shifted"
    ),
    Case("shifted_7", (1, 15, 17, 2, 32), 7, dilation=(1, 2), bias=True, padding_mode="shifted"),
    Case("shifted_even", (1, 11, 9, 3, 20), (4, 6), (1, 2, 1), bias=True, padding_mode="shifted"),
    Case("shifted_2", (1, 5, 8, 2, 10), 2, dilation=(1, 3), padding_mode="shifted"),
    Case("shifted_1x5", (1, 6, 13, 2, 8), (1, 5), dilation=(1, 2), padding_mode="shifted"),
    # phases shorter than the window, in one axis or both
    Case(
        "shifted_short", (1, 9, 6, 3, 12), 5, dilation=(1, 2, 3), bias=True, padding_mode="shifted"
    ),
    Case("shifted_13_beyond_map", (1, 6, 5, 2, 4), 13, dilation=(1, 2), padding_mode="shifted"),
    Case("shifted_one_pixel", (2, 1, 1, 2, 8), 3, bias=True, padding_mode="shifted"),
    Case(
        "shifted_key_mask",
        (2, 8, 9, 2, 24),
        kernel_size=5,
        dilation=(1, 2),
        bias=True,
        padding_mode="shifted",
        key_mask=True,
        layout="packed",
    ),
    Case("causal", (1, 7, 8, 2, 16), 5, dilation=(1, 2), bias=True, is_causal=True),
    Case(
        "causal_rows_masked",
        (2, 6, 7, 2, 20),
        dilation=(1, 2),
        padding_mode="masked",
        is_causal=(True, False),
        key_mask=True,
    ),
    Case(
        "causal_7x3_masked",
        (1, 7, 6, 2, 8),
        kernel_size=(7, 3),
        bias=True,
        padding_mode="masked",
        is_causal=True,
    ),
    Case(
        "causal_columns_shifted",
        (1, 7, 9, 2, 16),
        kernel_size=(3, 4),
        dilation=(1, 2),
        bias=True,
        padding_mode="shifted",
        is_causal=(False, True),
    ),
    Case("causal_shifted", (1, 8, 7, 2, 10), 3, bias=True, padding_mode="shifted", is_causal=True),
)


def draw(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Tensors of a case: query, key, value, grad_out, grad_lse and, where it has them, bias
    and key_mask."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    batch, height, width, heads, head_dim = case.shape
    if case.layout == "packed":
        query = normal(*case.shape)
        packed = normal(batch, height, width, 2, heads, head_dim).to(device, dtype)
        key, value = packed.unbind(3)
    else:
        query, key, value = normal(3, *case.shape).unbind(0)
    query, key, value = (t.to(device, dtype) for t in (query, key, value))
    if case.layout == "strided":
        query, key, value = (
            torch.zeros(batch, 2 * height, width + 3, heads + 1, head_dim + 5, dtype=dtype)
            .to(device)[:, ::2, :width, 1:, :head_dim]
            .copy_(t)
            for t in (query, key, value)
        )
    elif case.layout == "expanded":
        key, value = (t[:1, :, :1].expand(case.shape) for t in (key, value))
    elif case.layout == "heads_first":
        query, key, value = (
            t.permute(0, 3, 1, 2, 4).contiguous().permute(0, 2, 3, 1, 4)
            for t in (query, key, value)
        )
    tensors = {
        "query": query,
        "key": key,
        "value": value,
        "grad_out": normal(*case.shape).to(device, dtype),
        "grad_lse": normal(*case.shape[:4]).to(
            device, torch.float64 if dtype == torch.float64 else torch.float32
        ),
    }
    if case.bias:
        kernel = (
            case.kernel_size if isinstance(case.kernel_size, tuple) else (case.kernel_size,) * 2
        )
        if case.padding_mode == "shifted":
            kernel = tuple(2 * size - 1 for size in kernel)
        tensors["bias"] = normal(heads, *kernel).to(device, dtype)
        if case.strictly_causal:
            tensors["bias"].flatten(1)[:, kernel[0] * kernel[1] // 2 :] = float("-inf")
    if case.key_mask:
        kept = torch.rand(case.shape[:3], generator=generator) < 0.3
        tensors["key_mask"] = kept.to(device)
    return tensors
