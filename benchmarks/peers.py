"""Who is timed: every backend of sdwa, and its peers made to compute the same function.

A contender says why it cannot run a problem, or prepares a function (query, key, value) -> out on
heads-last tensors (batch, height, width, heads, head_dim). Two peers compute something else, plain
windows and global attention: they show what multi-level dilation costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

import sdwa
from benchmarks.record import dtype_name
from benchmarks.shapes import Shape
from sdwa.backends import BACKENDS, Backend

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

# Global attention of a 224 x 224 map takes 5,000 times the products of a 3 x 3 window.
MOST_GLOBAL_TOKENS = 112 * 112
# NATTEN's CPU kernels take seconds for a million of these.
MOST_NATTEN_PRODUCTS = 60_000_000
# An uncompiled block mask holds one byte, and while it is made several, per (query, key, head).
MOST_MASK_BYTES = 2**28


@dataclass(frozen=True)
class Problem:
    """What a contender is asked for: a shape on a device, with gradients or without."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    training: bool


@dataclass(frozen=True)
class Contender:
    """Somebody who computes attention.

    Attributes:
        name: in tables, files and options.
        about: one line for `--help`.
        refuses: why it cannot run a problem, or None.
        prepare: makes the function that is timed. What it takes before, such as building a mask,
            it notes in the dictionary, in milliseconds.
        computes: "dilated", the operator; "window", at dilation 1; "global", all pixels.
        is_ours: one of sdwa's own backends; if it fails, so does the benchmark.
    """

    name: str
    about: str
    refuses: Callable[[Problem], str | None]
    prepare: Callable[[Problem, dict[str, Any]], Attend]
    computes: str = "dilated"
    is_ours: bool = False


def contenders() -> tuple[Contender, ...]:
    """All of them, in the order of tables: sdwa's backends first."""
    ours = [
        Contender(
            backend.name,
            f'sdwa with backend="{backend.name}"',
            partial(_backend_refuses, backend),
            partial(_prepare_backend, backend),
            is_ours=True,
        )
        for backend in BACKENDS
    ]
    peers = [
        Contender(
            "natten",
            "NATTEN, one call per dilation; zero padding is put around its maps, and cropped",
            _natten_refuses,
            _prepare_natten,
        ),
        Contender(
            "flex",
            "FlexAttention, compiled, with a block mask; zero padding is put around its keys",
            _flex_refuses,
            _prepare_flex,
        ),
        Contender(
            "harmonics",
            "torch-harmonics' kernel with the operator's windows; dilation and padding as NATTEN",
            _harmonics_refuses,
            _prepare_harmonics,
        ),
        Contender(
            "window",
            "sdwa at dilation 1 in every head: what dilation costs",
            lambda problem: None,
            _prepare_window,
            computes="window",
        ),
        Contender(
            "global",
            "scaled_dot_product_attention over all pixels",
            _global_refuses,
            lambda problem, notes: global_attention,
            computes="global",
        ),
    ]
    return (*ours, *peers)


# sdwa


def _backend_refuses(backend: Backend, problem: Problem) -> str | None:
    reasons = list(backend.unavailable(problem.device))
    if not reasons and problem.dtype not in backend.dtypes:
        reasons = [f"does not take {problem.dtype}"]
    return "; ".join(reasons) or None


def _prepare_backend(backend: Backend, problem: Problem, notes: dict[str, Any]) -> Attend:
    return partial(
        sdwa.sliding_dilated_window_attention, **problem.shape.arguments, backend=backend.name
    )


def _prepare_window(problem: Problem, notes: dict[str, Any]) -> Attend:
    arguments = {**problem.shape.arguments, "dilation": 1}
    return partial(sdwa.sliding_dilated_window_attention, **arguments)


# Global attention


def _global_refuses(problem: Problem) -> str | None:
    if problem.shape.tokens > MOST_GLOBAL_TOKENS:
        return f"{problem.shape.tokens:,} pixels, at most {MOST_GLOBAL_TOKENS:,} are timed"
    return None


def global_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every pixel attends to all; (batch, height, width, heads, head_dim) each."""
    heads_first = (t.flatten(1, 2).transpose(1, 2) for t in (query, key, value))
    out = scaled_dot_product_attention(*heads_first)
    return out.transpose(1, 2).unflatten(1, query.shape[1:3])


# Peers with one dilation for all heads


def _each_dilation(shape: Shape, attend_at: Callable[..., Tensor]) -> Attend:
    """Calls a peer once for each dilation, with the heads that have it.

    Args:
        attend_at: of (query, key, value, dilation).
    """
    groups = {d: [n for n, e in enumerate(shape.dilation) if e == d] for d in set(shape.dilation)}
    if len(groups) == 1:
        return partial(attend_at, dilation=shape.dilation[0])
    order = [head for heads in groups.values() for head in heads]
    back = sorted(range(len(order)), key=order.__getitem__)
    in_order = back == list(range(len(order)))

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outs = []
        for dilation, heads in groups.items():
            chosen = _as_slice(heads)
            maps = [t[..., chosen, :] for t in (query, key, value)]
            outs.append(attend_at(*maps, dilation=dilation))
        out = torch.cat(outs, dim=3)
        return out if in_order else out[..., back, :]

    return attend


def _as_slice(heads: list[int]) -> slice | list[int]:
    """Consecutive heads as a slice, which copies nothing."""
    whole = list(range(heads[0], heads[-1] + 1))
    return slice(heads[0], heads[-1] + 1) if whole == heads else heads


def _padded(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Heads-last maps with so many zeros on each side."""
    return pad(maps, (0, 0, 0, 0, columns, columns, rows, rows)) if rows or columns else maps


# NATTEN shifts its windows inwards at a border: padding_mode="shifted". What zero padding asks for
# it computes on maps padded by the reach of the window: windows of the pixels that are kept touch
# no border.


@cache
def _import_natten() -> tuple[ModuleType | None, tuple[int, ...], str]:
    """The module or None, its version, and why it cannot be imported."""
    # 0.17 reads a type alias that PyTorch has since removed, and asks for the GPU's capability even
    # where there is no GPU.
    if not hasattr(torch.cuda, "_device_t"):
        torch.cuda._device_t = object
    no_gpu = patch.object(torch.cuda, "get_device_capability", lambda *_: (0, 0))
    try:
        with nullcontext() if torch.cuda.is_available() else no_gpu:
            import natten
            import natten.functional
    except Exception as error:
        return None, (), f"cannot be imported: {_first_line(error)}"
    return natten, tuple(int(part) for part in natten.__version__.split(".")[:2]), ""


def _natten_refuses(problem: Problem) -> str | None:
    natten, version, missing = _import_natten()
    if natten is None:
        return missing
    if version < (0, 17):
        return f"version {natten.__version__} is not supported, 0.17 and newer are"
    if problem.device.type == "cpu":
        if version > (0, 17):
            return f"version {natten.__version__} has no CPU kernels; 0.17.5 was the last"
        if problem.dtype not in (torch.float32, torch.float64):
            return f"no {dtype_name(problem.dtype)} on the CPU"
        if problem.shape.products > MOST_NATTEN_PRODUCTS:
            millions = problem.shape.products / 1e6
            return f"{millions:.0f} million products take its CPU kernels minutes"
    elif version > (0, 17) and not natten.HAS_LIBNATTEN:
        return f"version {natten.__version__} is installed without its kernels"
    elif problem.dtype == torch.float64:
        return "no float64 on a GPU"
    if problem.shape.padding_mode == "masked":
        return "it leaves out no taps"
    return _natten_needs(problem.shape)


def _natten_needs(shape: Shape) -> str | None:
    """NATTEN takes no window that is larger than the map, padding included."""
    rows, columns = shape.padding(max(shape.dilation))
    for size, length, padding in zip(shape.window, shape.dims[1:3], (rows, columns), strict=True):
        if size > 1 and size * max(shape.dilation) > length + 2 * padding:
            return "a window is larger than the map"
    return None


def _prepare_natten(problem: Problem, notes: dict[str, Any]) -> Attend:
    natten, _, _ = _import_natten()
    assert natten is not None
    attend_at = _natten_unfused if problem.device.type == "cpu" else _natten_fused
    return _each_dilation(problem.shape, partial(attend_at, natten.functional, problem.shape))


def _natten_fused(
    functional: Any, shape: Shape, query: Tensor, key: Tensor, value: Tensor, dilation: int
) -> Tensor:
    rows, columns = shape.padding(dilation)
    maps = [_padded(t, rows, columns) for t in (query, key, value)]
    if shape.height == 1:
        sequences = [t.squeeze(1) for t in maps]
        out = functional.na1d(*sequences, kernel_size=shape.kernel_size, dilation=dilation)
        out = out.unsqueeze(1)
    else:
        out = functional.na2d(*maps, kernel_size=shape.kernel_size, dilation=dilation)
    return out[:, rows : rows + shape.height, columns : columns + shape.width]


def _natten_unfused(
    functional: Any, shape: Shape, query: Tensor, key: Tensor, value: Tensor, dilation: int
) -> Tensor:
    rows, columns = shape.padding(dilation)
    scale = query.shape[-1] ** -0.5
    query, key, value = (
        _padded(t, rows, columns).permute(0, 3, 1, 2, 4) for t in (query * scale, key, value)
    )  # (batch, heads, height, width, head_dim)
    if shape.height == 1:
        query, key, value = (t.squeeze(2) for t in (query, key, value))
        weights = functional.na1d_qk(query, key, shape.kernel_size, dilation).softmax(-1)
        out = functional.na1d_av(weights, value, shape.kernel_size, dilation).unsqueeze(2)
    else:
        weights = functional.na2d_qk(query, key, shape.kernel_size, dilation).softmax(-1)
        out = functional.na2d_av(weights, value, shape.kernel_size, dilation)
    out = out[:, :, rows : rows + shape.height, columns : columns + shape.width]
    return out.permute(0, 2, 3, 1, 4)


# FlexAttention: the mask tells which keys belong to a query's window. For zero padding, keys and
# values are padded by the longest reach, so that taps beyond the border are keys of their own.


def _flex_refuses(problem: Problem) -> str | None:
    if problem.dtype == torch.float64:
        return "no float64"
    if problem.device.type == "cpu":
        if problem.training:
            return "no gradients on the CPU"
        shape = problem.shape
        rows, columns = shape.padding(max(shape.dilation))
        keys = (shape.height + 2 * rows) * (shape.width + 2 * columns)
        mask = shape.heads * shape.tokens * keys
        if mask > MOST_MASK_BYTES:
            return f"its mask takes {mask / 2**30:.1f} GiB to build on the CPU"
    elif problem.shape.head_dim < 16:
        return "head dimension below 16"
    return None


def flex_mask(shape: Shape, device: torch.device) -> Callable[..., Tensor]:
    """Of (batch, head, query, key): whether the key lies in the query's window.

    Queries and keys are numbers of pixels, keys on the padded map.
    """
    rows, columns = shape.padding(max(shape.dilation))
    width = shape.width + 2 * columns
    dilation = torch.tensor(shape.dilation, device=device)

    def along(key: Tensor, query: Tensor, length: int, taps: int, step: Tensor) -> Tensor:
        """Whether a key lies in the query's window along one axis."""
        in_phase = (key - query) % step == 0
        if shape.padding_mode != "shifted":
            return in_phase & ((key - query).abs() <= taps // 2 * step)
        pixels = (length - 1 - query % step) // step + 1  # of the query's phase
        last = (pixels - taps).clamp(min=0)
        first = torch.minimum((query // step - taps // 2).clamp(min=0), last)
        return in_phase & (key // step >= first) & (key // step < first + taps)

    def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        down = key // width - rows, query // shape.width, shape.height, shape.window[0]
        right = key % width - columns, query % shape.width, shape.width, shape.window[1]
        return along(*down, dilation[head]) & along(*right, dilation[head])

    return in_window


def _prepare_flex(problem: Problem, notes: dict[str, Any]) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    shape = problem.shape
    rows, columns = shape.padding(max(shape.dilation))
    torch.compiler.reset()
    build = partial(
        create_block_mask,
        flex_mask(shape, problem.device),
        B=None,
        H=shape.heads,
        Q_LEN=shape.tokens,
        KV_LEN=(shape.height + 2 * rows) * (shape.width + 2 * columns),
        device=problem.device.type,
        _compile=problem.device.type == "cuda",
    )
    build()
    start = time.perf_counter()
    mask = build()
    if problem.device.type == "cuda":
        torch.cuda.synchronize()
    notes["mask_build_ms"] = (time.perf_counter() - start) * 1e3
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (_padded(t, rows, columns) for t in (key, value))
        heads_first = (t.flatten(1, 2).transpose(1, 2) for t in (query, key, value))
        out = compiled(*heads_first, block_mask=mask)
        return out.transpose(1, 2).unflatten(1, query.shape[1:3])

    return attend


# torch-harmonics: a neighborhood on the sphere is all that lies within a distance: it widens
# towards the poles, and columns wrap around. Its kernel takes a list of pixels for each row of
# queries, with columns counted from the query's, and a weight in the softmax for each row of keys.
# With lists of K x K and weights of 1, on maps padded against the wrapping, it computes the
# operator.


@cache
def _import_harmonics() -> tuple[ModuleType | None, Callable[..., Tensor] | None, str]:
    """What makes lists, the kernel, and why they cannot be imported."""
    try:
        import torch_harmonics
        from torch_harmonics.attention import _attention_utils
        from torch_harmonics.attention.optimized import attention_optimized
    except Exception as error:
        return None, None, f"cannot be imported: {_first_line(error)}"
    kernel = getattr(attention_optimized, "_neighborhood_s2_attention_optimized", None)
    if kernel is None or not hasattr(_attention_utils, "_build_psi_segments"):
        version = torch_harmonics.__version__
        return None, None, f"version {version} has other kernels or none; 0.9.3 is supported"
    return _attention_utils, kernel, ""


def _harmonics_refuses(problem: Problem) -> str | None:
    if problem.device.type != "cpu":
        return "only its CPU kernels are timed"
    utilities, _, missing = _import_harmonics()
    if utilities is None:
        return missing
    if problem.dtype == torch.float64:
        return "it computes in float32"
    if problem.shape.padding_mode != "zeros":
        return "its windows wrap around the sides of a map"
    return None


def _prepare_harmonics(problem: Problem, notes: dict[str, Any]) -> Attend:
    utilities, kernel, _ = _import_harmonics()
    assert utilities is not None and kernel is not None
    shape = problem.shape
    neighborhoods = {}
    for dilation in set(shape.dilation):
        rows, columns = shape.padding(dilation)
        height, width = shape.height + 2 * rows, shape.width + 2 * columns
        taps_h, taps_w = (dilation * torch.arange(size) for size in shape.window)
        of_rows = torch.arange(shape.height)[:, None] + taps_h
        of_columns = (taps_w - columns) % width
        pixels = (of_rows[:, :, None] * width + of_columns).flatten()
        starts = torch.arange(shape.height + 1) * len(taps_h) * len(taps_w)
        segments = utilities._build_psi_segments(pixels, starts, width)
        neighborhoods[dilation] = (torch.ones(height), pixels, starts, *segments)

    def attend_at(query: Tensor, key: Tensor, value: Tensor, dilation: int) -> Tensor:
        rows, columns = shape.padding(dilation)
        heads = query.shape[3]
        query = _padded(query * query.shape[4] ** -0.5, 0, columns)
        key, value = (_padded(t, rows, columns) for t in (key, value))
        width = query.shape[2]
        packed = (t.flatten(3) for t in (key, value, query))
        out = kernel(*packed, *neighborhoods[dilation], heads, width, shape.height, width)
        return out.unflatten(3, (heads, -1))[:, :, columns : columns + shape.width]

    return _each_dilation(shape, attend_at)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
