"""What the fuzz draws: one call of the operator with everything that can vary."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

MODES = ("zeros", "masked", "shifted")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("contiguous", "packed", "sliced", "heads_first", "expanded", "far")
NAMES = ("query", "key", "value", "bias")
SPECIALS = (math.nan, math.inf, -math.inf)


@dataclass(frozen=True)
class Problem:
    """A call; its numbers are drawn from `seed`.

    Attributes:
        shape: (batch, height, width, heads, head_dim).
        value_dim: head_dim of value.
        dilation: of each head, (along the height, along the width).
        layouts: of query, key and value in memory.
        spread: standard deviation of query and key; large ones give scores of 1e4 and more.
        bias: "tap", "distance" or None; `left_out` is the part of it that is -inf.
        kept: part of the keys that key_mask keeps, or None.
        graded: tensors whose gradient is asked for; none: the forward pass alone.
        d_out, d_lse: whether the loss depends on out and on lse.
        summed: the loss is their plain sum, whose gradient has no strides.
        special: what one number is instead, or None, and the tensor that it stands in.
    """

    seed: int
    shape: tuple[int, int, int, int, int]
    value_dim: int
    kernel_size: tuple[int, int]
    dilation: tuple[tuple[int, int], ...]
    padding_mode: str
    is_causal: tuple[bool, bool]
    dtype: torch.dtype
    scale: float | None
    layouts: tuple[str, str, str]
    spread: float
    bias: str | None
    bias_dtype: torch.dtype
    left_out: float
    kept: float | None
    graded: tuple[str, ...]
    d_out: bool
    d_lse: bool
    summed: bool
    special: tuple[str, float] | None

    @property
    def bias_shape(self) -> tuple[int, int, int]:
        sizes = self.kernel_size
        if self.bias == "distance":
            sizes = 2 * sizes[0] - 1, 2 * sizes[1] - 1
        return self.shape[3], *sizes


def mostly(common: st.SearchStrategy, rare: st.SearchStrategy, one_in: int = 8):
    """One of `one_in` is rare."""
    return st.integers(1, one_in).flatmap(lambda number: rare if number == one_in else common)


@st.composite
def problems(
    draw: st.DrawFn, budget: int, plain: bool = False, side: int = 40, taps: int = 255**2
) -> Problem:
    """Any legal problem of at most about `budget` multiply-adds forward, the simplest first.

    Args:
        budget: products that a query, a tap and a feature stand for.
        plain: only what the kernels themselves take: one head_dim, both gradients.
        side: the largest map's, but for a few of one long row or column where it is 40.
        taps: of the largest window.
    """

    mode = draw(st.sampled_from(MODES))
    odd = st.integers(0, 6).map(lambda n: 2 * n + 1)
    sizes = st.integers(1, 13) if mode == "shifted" else odd
    long = st.sampled_from([(1, 255), (255, 1), (31, 1), (1, 101), (255, 3)])
    usual = st.sampled_from([(3, 3), (5, 5), (7, 7)])
    kernel = draw(mostly(usual, mostly(st.tuples(sizes, sizes), long), 2))
    if kernel[0] * kernel[1] > taps:
        kernel = (3, 3)
    left = max(1, budget // (kernel[0] * kernel[1]))

    def size(strategy, most: int) -> int:
        nonlocal left
        drawn = min(strategy if isinstance(strategy, int) else draw(strategy), max(1, left), most)
        left //= max(1, drawn)
        return drawn

    dims = st.sampled_from([16, 24, 32, 48, 60, 64, 96, 128]) | st.integers(1, 256)
    dim = size(dims, 256)
    heads = size(mostly(st.integers(1, 3), st.integers(1, 12), 3), 12)
    if draw(st.integers(0, 30)) == 30 and side == 40:
        length = size(st.sampled_from([1000, 4099, 100_000]), 100_000)
        height, width = draw(st.sampled_from([(1, length), (length, 1)]))
    else:
        height, width = size(st.integers(1, side), side), size(st.integers(1, side), side)
    batch = draw(st.integers(0, min(5, max(1, left))))
    steps = st.integers(1, 4) | st.integers(1, 50) | st.integers(2**31 - 5, 2**31 - 1)
    dilation = draw(
        st.tuples(steps, steps).map(lambda d: (d,) * heads)
        | st.lists(st.tuples(steps, steps), min_size=heads, max_size=heads).map(tuple)
    )

    dtype = draw(st.sampled_from(DTYPES))
    bias = draw(st.sampled_from([None, "distance", "tap"][: 2 if mode == "shifted" else 3]))
    kept = draw(st.none() | st.sampled_from([0.9, 0.5, 0.05]))
    far = height > 1 and dtype in (torch.bfloat16, torch.float16)
    layout = st.sampled_from(LAYOUTS[:-1])
    layouts = tuple(
        "far" if far and not plain and draw(st.integers(0, 200)) == 200 else draw(layout)
        for _ in range(3)
    )
    names = NAMES if bias else NAMES[:-1]
    graded = names
    if not plain and draw(st.booleans()):
        graded = tuple(draw(st.lists(st.sampled_from(names), unique=True)))
    d_out = draw(st.booleans()) or plain
    special = None
    if draw(st.integers(0, 7)) == 7:
        where = st.sampled_from(("query", "key", "value", "d_out"))
        special = draw(st.tuples(where, st.sampled_from(SPECIALS)))
    return Problem(
        seed=draw(st.integers(0, 2**20)),
        shape=(batch, height, width, heads, dim),
        value_dim=dim if plain else draw(mostly(st.just(dim), dims)),
        kernel_size=kernel,
        dilation=dilation,
        padding_mode=mode,
        is_causal=draw(mostly(st.just((False, False)), st.tuples(st.booleans(), st.booleans()), 3)),
        dtype=dtype,
        scale=draw(mostly(st.none(), st.sampled_from([0.0, -0.7, 1.0, 3.0]), 4)),
        layouts=layouts,
        spread=draw(mostly(st.just(1.0), st.sampled_from([1e-20, 1e-3, 10.0, 60.0]))),
        bias=bias,
        bias_dtype=draw(st.sampled_from(DTYPES)),
        left_out=0.0 if special else draw(st.sampled_from([0.0, 0.0, 0.2, 0.95, 1.0])),
        kept=None if special else kept,
        graded=graded,
        d_out=d_out,
        d_lse=draw(st.booleans()) or not d_out,
        summed=not plain and draw(st.integers(0, 5)) == 5,
        special=special,
    )


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers, otherwise in memory; "expanded" repeats those of one image and column."""
    batch, height, width, heads, dim = tensor.shape
    if layout == "packed":
        place = tensor.new_zeros(batch, height, width, 3, heads, dim)[:, :, :, 1]
    elif layout == "sliced":
        place = tensor.new_zeros(batch, 2 * height, width + 3, heads + 1, dim + 5)
        place = place[:, ::2, 2 : width + 2, 1:, 3 : dim + 3]
    elif layout == "heads_first":
        place = tensor.new_zeros(batch, heads, height, width, dim).permute(0, 2, 3, 1, 4)
    elif layout == "expanded":
        return tensor[:1, :, :1].expand(tensor.shape) if batch else tensor
    elif layout == "far":  # pages that are never touched take no memory
        stride = 2**31 // (height - 1) + width * heads * dim
        strides = (width * heads * dim, stride, heads * dim, dim, 1)
        elements = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
        place = torch.empty(max(0, elements), dtype=tensor.dtype)
        place = place.as_strided(tensor.shape, strides)
    else:
        return tensor
    return place.copy_(tensor)


def tensors_of(problem: Problem) -> dict[str, Tensor]:
    """query, key, value, and where the problem has them bias, key_mask, d_out and d_lse."""
    generator = torch.Generator().manual_seed(problem.seed)
    batch, height, width, heads, dim = problem.shape
    map_shape = (batch, height, width, heads)

    def normal(*shape: int, spread: float = 1.0) -> Tensor:
        return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)

    accumulation = torch.float64 if problem.dtype == torch.float64 else torch.float32
    tensors = {
        "query": normal(*map_shape, dim, spread=problem.spread),
        "key": normal(*map_shape, dim, spread=problem.spread),
        "value": normal(*map_shape, problem.value_dim),
    }
    if problem.d_out:
        tensors["d_out"] = normal(*map_shape, problem.value_dim)
    if problem.special and (name := problem.special[0]) in tensors and tensors[name].numel():
        flat = tensors[name].view(-1)
        flat[int(torch.randint(flat.numel(), (), generator=generator))] = problem.special[1]
    tensors = {name: tensor.to(problem.dtype) for name, tensor in tensors.items()}
    for name, layout in zip(NAMES, problem.layouts, strict=False):
        tensors[name] = laid_out(tensors[name], layout)
    if problem.d_lse:
        tensors["d_lse"] = normal(*map_shape).to(accumulation)
    if problem.summed:
        for name in ("d_out", "d_lse"):
            if name in tensors:
                tensors[name] = torch.ones((), dtype=tensors[name].dtype).expand_as(tensors[name])
    if problem.bias:
        bias = normal(*problem.bias_shape)
        bias[torch.rand(bias.shape, generator=generator) < problem.left_out] = -math.inf
        tensors["bias"] = bias.to(problem.bias_dtype)
    if problem.kept is not None:
        tensors["key_mask"] = torch.rand(map_shape[:3], generator=generator) < problem.kept
    return tensors
