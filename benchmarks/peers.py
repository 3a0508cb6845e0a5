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
            "NATTEN, on zero-padded maps, one call per dilation, cropped",
            _natten_refuses,
            _prepare_natten,
        ),
        Contender(
            "flex",
            "FlexAttention, compiled, on zero-padded keys with a block mask",
            _flex_refuses,
            _prepare_flex,
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
        sdwa.sliding_dilated_window_attention,
        kernel_size=problem.shape.kernel_size,
        dilation=problem.shape.dilation,
        backend=backend.name,
    )


def _prepare_window(problem: Problem, notes: dict[str, Any]) -> Attend:
    return partial(
        sdwa.sliding_dilated_window_attention, kernel_size=problem.shape.kernel_size, dilation=1
    )


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


# NATTEN shifts its windows inwards at a border. On maps padded by the reach of the window, windows
# of the pixels that are kept touch no border, and the padding is what zero padding asks for.


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
        products = problem.shape.elements * problem.shape.kernel_size**2
        if products > MOST_NATTEN_PRODUCTS:
            return f"{products / 1e6:.0f} million products take its CPU kernels minutes"
    elif version > (0, 17) and not natten.HAS_LIBNATTEN:
        return f"version {natten.__version__} is installed without its kernels"
    elif problem.dtype == torch.float64:
        return "no float64 on a GPU"
    if min(problem.shape.height, problem.shape.width) < max(problem.shape.dilation):
        return "the map is smaller than the dilation"
    return None


def _prepare_natten(problem: Problem, notes: dict[str, Any]) -> Attend:
    natten, _, _ = _import_natten()
    assert natten is not None
    shape = problem.shape
    one_dilation = _natten_unfused if problem.device.type == "cpu" else _natten_fused
    groups = {d: [n for n, e in enumerate(shape.dilation) if e == d] for d in set(shape.dilation)}
    order = [head for heads in groups.values() for head in heads]
    back = sorted(range(len(order)), key=order.__getitem__)
    in_order = back == list(range(len(order)))

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outs = []
        for dilation, heads in groups.items():
            chosen = _as_slice(heads)
            maps = [t[..., chosen, :] for t in (query, key, value)]
            outs.append(one_dilation(natten.functional, *maps, shape.kernel_size, dilation))
        out = torch.cat(outs, dim=3)
        return out if in_order else out[..., back, :]

    return attend


def _natten_fused(
    functional: Any, query: Tensor, key: Tensor, value: Tensor, kernel_size: int, dilation: int
) -> Tensor:
    reach = dilation * (kernel_size // 2)
    padded = (pad(t, (0, 0, 0, 0, reach, reach, reach, reach)) for t in (query, key, value))
    out = functional.na2d(*padded, kernel_size=kernel_size, dilation=dilation)
    return out[:, reach:-reach, reach:-reach] if reach else out


def _natten_unfused(
    functional: Any, query: Tensor, key: Tensor, value: Tensor, kernel_size: int, dilation: int
) -> Tensor:
    reach = dilation * (kernel_size // 2)
    scale = query.shape[-1] ** -0.5
    query, key, value = (
        pad(t.permute(0, 3, 1, 2, 4), (0, 0, reach, reach, reach, reach))
        for t in (query * scale, key, value)
    )  # (batch, heads, height, width, head_dim)
    weights = functional.na2d_qk(query, key, kernel_size, dilation).softmax(-1)
    out = functional.na2d_av(weights, value, kernel_size, dilation)
    out = out[:, :, reach:-reach, reach:-reach] if reach else out
    return out.permute(0, 2, 3, 1, 4)


def _as_slice(heads: list[int]) -> slice | list[int]:
    """Consecutive heads as a slice, which copies nothing."""
    whole = list(range(heads[0], heads[-1] + 1))
    return slice(heads[0], heads[-1] + 1) if whole == heads else heads


# FlexAttention: keys and values are padded by the longest reach, so that taps beyond the border are
# keys of their own, and the mask tells which of them belong to a query's window.


def _flex_refuses(problem: Problem) -> str | None:
    if problem.dtype == torch.float64:
        return "no float64"
    if problem.device.type == "cpu":
        if problem.training:
            return "no gradients on the CPU"
        shape = problem.shape
        reach = max(shape.dilation) * (shape.kernel_size // 2)
        keys = (shape.height + 2 * reach) * (shape.width + 2 * reach)
        mask = shape.heads * shape.tokens * keys
        if mask > MOST_MASK_BYTES:
            return f"its mask takes {mask / 2**30:.1f} GiB to build on the CPU"
    elif problem.shape.head_dim < 16:
        return "head dimension below 16"
    return None


def _prepare_flex(problem: Problem, notes: dict[str, Any]) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    shape = problem.shape
    half = shape.kernel_size // 2
    reach = max(shape.dilation) * half
    padded_height, padded_width = shape.height + 2 * reach, shape.width + 2 * reach
    dilation = torch.tensor(shape.dilation, device=problem.device)

    def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        step = dilation[head]
        down = (key // padded_width - reach - query // shape.width).abs()
        right = (key % padded_width - reach - query % shape.width).abs()
        near = (down <= half * step) & (right <= half * step)
        return near & (down % step == 0) & (right % step == 0)

    torch.compiler.reset()
    build = partial(
        create_block_mask,
        in_window,
        B=None,
        H=shape.heads,
        Q_LEN=shape.tokens,
        KV_LEN=padded_height * padded_width,
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
        key, value = (pad(t, (0, 0, 0, 0, reach, reach, reach, reach)) for t in (key, value))
        heads_first = (t.flatten(1, 2).transpose(1, 2) for t in (query, key, value))
        out = compiled(*heads_first, block_mask=mask)
        return out.transpose(1, 2).unflatten(1, query.shape[1:3])

    return attend


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
