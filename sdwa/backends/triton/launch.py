"""Host side of the Triton operators: outputs, launch parameters, launches.

What does not depend on the data is planned once per kind of call and kept: on a small map an eager
call takes as long as the code here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdwa.backends.triton import interpreted
from sdwa.backends.triton.backward import backward_kernel, delta_kernel
from sdwa.backends.triton.blocks import (
    MAX_STRIP,
    Blocks,
    candidates,
    choose_blocks,
    chunk_width,
    fit_blocks,
    power_of_two,
)
from sdwa.backends.triton.forward import forward_kernel
from sdwa.backends.triton.free import backward_free_kernel, forward_free_kernel
from sdwa.backends.triton.geometry import head_table, head_tiles
from sdwa.problem import WindowAxis

# By pass, for plain windows and for others.
KERNELS: dict[str, tuple[Any, Any]] = {
    "forward": (forward_kernel, forward_free_kernel),
    "backward": (backward_kernel, backward_free_kernel),
}
# Coordinates are 32-bit, beyond the map too: a strip there lies a window beyond the edge, and its
# last tap half a window and a strip further, which is less than two windows and a strip.
MAX_EXTENT = 2**26
MAX_REACH = 2**31 - MAX_EXTENT
# So are the strides of a row and the offsets inside it, where tensors are contiguous.
MAX_ROW = 2**30
# Lines of a map are numbered in 32 bits too, and can be twice as many as its pixels.
MAX_PIXELS = 2**29
MAX_PROGRAMS = 2**31 - 1
DELTA_WARPS = 4
# Said, because its default depends on Triton's version: a product and a sum become one instruction.
OPTIONS = {"enable_fp_fusion": True}

Extents = tuple[int, ...]
Table = tuple[tuple[int, ...], ...]

_TABLES: dict[tuple[Table, torch.device], Tensor] = {}


class Windows(NamedTuple):
    """The windows of a call.

    Attributes:
        height, width: along either axis.
        by_distance: bias is by the distance from query to key, and not by tap.
        masked: taps off the map are left out.
    """

    height: WindowAxis
    width: WindowAxis
    by_distance: bool
    masked: bool

    @staticmethod
    def of(
        kernel_size: Sequence[int], masked: bool, shifted: bool, is_causal: tuple[bool, bool]
    ) -> Windows:
        """As the operators' arguments say."""
        return Windows(
            WindowAxis.of(kernel_size[0], shifted, is_causal[0]),
            WindowAxis.of(kernel_size[1], shifted, is_causal[1]),
            shifted,
            masked,
        )

    @property
    def plain(self) -> bool:
        """Whether the kernels for plain windows take them."""
        return self.height.is_plain and self.width.is_plain and not self.by_distance

    @property
    def bias_extents(self) -> tuple[int, int]:
        """Of a head's bias."""
        sizes = self.height.size, self.width.size
        return (2 * sizes[0] - 1, 2 * sizes[1] - 1) if self.by_distance else sizes

    @property
    def constants(self) -> dict[str, Any]:
        """As the kernels' compile-time arguments."""
        if self.plain:
            return {"MASKED": self.masked}
        return {
            "MASKED": self.masked,
            "BEFORE_H": self.height.before,
            "BEFORE_W": self.width.before,
            "SHIFTED_H": self.height.shifted,
            "SHIFTED_W": self.width.shifted,
            "BY_DISTANCE": self.by_distance,
        }


class Plan(NamedTuple):
    """A launch of an attention kernel without its tensors.

    units: tiles of all images; each of the heads runs one program on it (two going backward).
    arguments: by name, strides and compile-time constants among them. options: of the compiler.
    """

    grid: tuple[int]
    units: int
    table: Table
    arguments: dict[str, Any]
    options: dict[str, Any]


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    key_mask: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    scale: float,
    masked: bool,
    shifted: bool = False,
    causal_h: bool = False,
    causal_w: bool = False,
) -> tuple[Tensor, Tensor]:
    """(out, lse), contiguous, as `sdwa::attention_forward`.

    query, key, value: (batch, height, width, heads, head_dim), last stride 1; bias: (heads,
    kernel_h, kernel_w) float32 contiguous, or None; key_mask: (batch, height, width) bool
    contiguous, or None; dilation: flattened (dilation_h, dilation_w) of each head. lse: (batch,
    height, width, heads) float32. A window with nothing left has out 0 and lse -inf.

    Raises:
        ValueError: as `check_call` and `attention_plan`.
    """
    windows = Windows.of(kernel_size, masked, shifted, (causal_h, causal_w))
    check_call({"query": query, "key": key, "value": value}, bias, key_mask, windows, dilation, {})
    out = query.new_empty(query.shape)
    lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
    if query.shape[0]:
        tensors = {
            "q_ptr": query,
            "k_ptr": key,
            "v_ptr": value,
            "bias_ptr": bias,
            "key_mask_ptr": _bytes(key_mask),
            "out_ptr": out,
            "lse_ptr": lse,
        }
        strided = (query, key, value)
        _launch("forward", tensors, strided, windows, dilation, scale)
    return out, lse


def attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    key_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    scale: float,
    masked: bool,
    shifted: bool = False,
    causal_h: bool = False,
    causal_w: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(grad_query, grad_key, grad_value, grad_bias), contiguous, as `sdwa::attention_backward`.

    grad_out: like query, last stride 1; grad_lse: like lse, contiguous, or None; out, lse: what
    `attention_forward` returned; the others as there. grad_bias: (heads, kernel_h, kernel_w)
    float32, of shape (0,) where bias is None. Nothing goes back through a window whose lse is -inf,
    whatever its grad_lse is.

    Raises:
        ValueError: as `check_call`, `attention_plan` and `delta_plan`.
    """
    windows = Windows.of(kernel_size, masked, shifted, (causal_h, causal_w))
    alike = {"query": query, "key": key, "value": value, "grad_out": grad_out, "out": out}
    check_call(alike, bias, key_mask, windows, dilation, {"lse": lse, "grad_lse": grad_lse})
    if not out.is_contiguous():
        raise ValueError("sdwa: out must be contiguous")
    grad_query, grad_key, grad_value = (query.new_empty(query.shape) for _ in range(3))
    if not query.shape[0]:
        return grad_query, grad_key, grad_value, lse.new_zeros((0,) if bias is None else bias.shape)
    delta = torch.empty_like(lse)
    arguments, programs = delta_plan(tuple(query.shape), _strides(grad_out), query.element_size())
    with _on_device(query):
        delta_kernel[programs](
            *(grad_out, out, None if bias is None and key_mask is None else lse, grad_lse, delta),
            **arguments,
            num_warps=DELTA_WARPS,
            **OPTIONS,
        )
    tensors = {
        "q_ptr": query,
        "k_ptr": key,
        "v_ptr": value,
        "bias_ptr": bias,
        "key_mask_ptr": _bytes(key_mask),
        "grad_out_ptr": grad_out,
        "lse_ptr": lse,
        "delta_ptr": delta,
        "grad_query_ptr": grad_query,
        "grad_key_ptr": grad_key,
        "grad_value_ptr": grad_value,
    }
    strided = (query, key, value, grad_out)
    bias_parts = _launch("backward", tensors, strided, windows, dilation, scale)
    # One order of summation, whatever the device does: no atomics here either.
    grad_bias = lse.new_empty(0) if bias_parts is None else bias_parts.sum(0)
    return grad_query, grad_key, grad_value, grad_bias


def check_call(
    alike: dict[str, Tensor],
    bias: Tensor | None,
    key_mask: Tensor | None,
    windows: Windows,
    dilation: Sequence[int],
    of_queries: dict[str, Tensor | None],
) -> None:
    """Keeps a direct call of an operator from reading outside its tensors, as csrc/checks.h does.

    alike: query, and what has its shape. of_queries: what has a number per query.

    Raises:
        ValueError: a tensor or a number is not legal; the message names it.
    """
    query = alike["query"]
    if query.dim() != 5 or min(query.shape[1:]) < 1:
        raise ValueError(
            "sdwa: query must be (batch, height, width, heads, head_dim), all but batch at least "
            f"1, got {tuple(query.shape)}"
        )
    for name, tensor in alike.items():
        if not _is_like(tensor, query.shape, query.dtype, query.device):
            raise ValueError(f"sdwa: {name} must have the shape, dtype and device of query")
        if tensor.stride(4) != 1 and tensor.shape[4] > 1 and tensor.numel() > 0:
            raise ValueError(f"sdwa: {name} must have stride 1 in head_dim, got {tensor.stride(4)}")
    heads = query.shape[3]
    if len(dilation) != 2 * heads or min(dilation) < 1:
        raise ValueError("sdwa: dilation must hold two numbers per head, all at least 1")
    contiguous = {
        "bias": (bias, (heads, *windows.bias_extents), torch.float32),
        "key_mask": (key_mask, query.shape[:3], torch.bool),
        **{name: (t, query.shape[:4], torch.float32) for name, t in of_queries.items()},
    }
    for name, (given, shape, dtype) in contiguous.items():
        if given is not None and not (
            given.is_contiguous() and _is_like(given, shape, dtype, query.device)
        ):
            raise ValueError(
                f"sdwa: {name} must be contiguous, of its type and shape, and on the device of "
                "query"
            )


def _is_like(
    tensor: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> bool:
    return tensor.shape == shape and tensor.dtype == dtype and tensor.device == device


def _launch(
    which: str,
    tensors: dict[str, Tensor | None],
    strided: tuple[Tensor, ...],
    windows: Windows,
    dilation: Sequence[int],
    scale: float,
) -> Tensor | None:
    """Runs a pass; `strided` are the tensors whose strides the kernel takes.

    Returns:
        What each tile adds to grad_bias, (units, *bias.shape) float32, or None.
    """
    query = strided[0]
    problem = (
        tuple(query.shape),
        tuple(_strides(tensor) for tensor in strided),
        query.element_size(),
        windows,
        tuple(dilation),
    )

    def run(plan: Plan) -> Tensor | None:
        bias_parts = None
        extra: dict[str, Any] = {}
        if which == "backward":
            bias = tensors["bias_ptr"]
            if bias is not None:
                bias_parts = bias.new_zeros((plan.units, *bias.shape))
            extra["bias_parts_ptr"] = bias_parts
        table = _table_on(plan.table, query.device)
        KERNELS[which][not windows.plain][plan.grid](
            **tensors,
            **extra,
            table_ptr=table,
            scale=scale,
            **plan.arguments,
            **plan.options,
        )
        return bias_parts

    with _on_device(query):
        if (
            os.environ.get("SDWA_TRITON_AUTOTUNE") == "1"
            and windows.plain
            and query.is_cuda
            and not torch.cuda.is_current_stream_capturing()
        ):
            present = tuple(tensor is not None for tensor in tensors.values())
            return run(_fastest_plan(which, problem, query.dtype, present, run))
        return run(attention_plan(which, *problem))


@lru_cache(maxsize=4096)
def attention_plan(
    which: str,
    shape: Extents,
    strides: tuple[Extents, ...],
    element_size: int,
    windows: Windows,
    dilation: Extents,
    blocks: Blocks | None = None,
) -> Plan:
    """The launch of the "forward" or "backward" kernel for a problem with at least one image.

    strides: of (batch, height, width, heads), for query, key, value and, backward, grad_out.
    element_size: bytes. blocks: None for those of `choose_blocks`.

    Raises:
        ValueError: as `check_shape`, `check_window` and `grid`.
    """
    check_shape(shape)
    check_window(shape, windows, dilation)
    kernel_size = windows.height.size, windows.width.size
    batch, height, width, heads, head_dim = shape
    if blocks is None:
        blocks = choose_blocks(which, element_size, head_dim, kernel_size, height, width)
        if not windows.plain:
            blocks = blocks._replace(strip=1)
    table = head_table(dilation, height, width, blocks.strip)
    tiles = max(head_tiles(table, height, blocks.block_h, blocks.block_w))
    units = batch * tiles
    programs = units * heads * (2 if which == "backward" else 1)
    contiguous = (height * width * heads * head_dim, width * heads * head_dim, heads * head_dim)
    names = ("q_strides", "k_strides", "v_strides", "grad_out_strides")
    arguments = {
        **dict(zip(names, strides, strict=False)),
        "height": height,
        "width": width,
        "heads": heads,
        "tiles": tiles,
        "HEAD_DIM": head_dim,
        "KERNEL_H": kernel_size[0],
        "KERNEL_W": kernel_size[1],
        **windows.constants,
        "ALIGN": alignment(strides),
        "INDEX_64": needs_index_64(shape, (*strides, contiguous)),
        **blocks.constants,
    }
    options = {**OPTIONS, "num_warps": blocks.warps}
    if blocks.registers is not None and torch.version.hip is None:
        options["maxnreg"] = blocks.registers
    return Plan(grid(programs, shape), units, table, arguments, options)


@lru_cache(maxsize=4096)
def delta_plan(
    shape: Extents, strides: Extents, element_size: int
) -> tuple[dict[str, Any], tuple[int]]:
    """Arguments by name and grid of the delta kernel; strides: of grad_out, as above.

    Raises:
        ValueError: as `check_shape` and `grid`.
    """
    check_shape(shape)
    batch, height, width, heads, head_dim = shape
    block_d = chunk_width(head_dim, 3)
    block = 32 * DELTA_WARPS // max(1, block_d * element_size // 16)
    block = max(1, min(block, power_of_two(width * heads)))
    if interpreted():
        block = power_of_two(width * heads)
    blocks = -(-width * heads // block)
    arguments = {
        "grad_out_strides": strides,
        "height": height,
        "width": width,
        "heads": heads,
        "blocks": blocks,
        "HEAD_DIM": head_dim,
        "ALIGN": alignment((strides,)),
        # A row of the map, pixels by heads, is what this kernel takes for a map.
        "INDEX_64": needs_index_64(
            (batch, width, heads, height, head_dim),
            ((strides[0], strides[2], strides[3], strides[1]),),
        ),
        "BLOCK": block,
        "BLOCK_D": block_d,
    }
    return arguments, grid(batch * height * blocks, shape)


@lru_cache(maxsize=4096)
def reasons(
    shape: Extents, element_size: int, windows: Windows, dilation: Extents
) -> tuple[str, ...]:
    """Why a problem of these sizes cannot be launched, forward or backward; empty: it can."""
    strides = (0, 0, 0, 0)  # No stride is too large: see `needs_index_64`.
    try:
        for which in KERNELS:
            attention_plan(which, shape, (strides,), element_size, windows, dilation)
        delta_plan(shape, strides, element_size)
    except ValueError as error:
        return (str(error),)
    return ()


def check_shape(shape: Extents) -> None:
    """Raises ValueError where an extent or an offset in a row of the map could exceed 32 bits.

    shape: (batch, height, width, heads, head_dim).
    """
    _, height, width, heads, head_dim = shape
    if max(height, width, heads) > MAX_EXTENT:
        raise ValueError(
            f"query must have height, width and heads up to {MAX_EXTENT} on the Triton backend, "
            f"got shape {shape}"
        )
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"query must have maps of up to {MAX_PIXELS} pixels on the Triton backend, "
            f"got shape {shape}"
        )
    if width * heads * head_dim > MAX_ROW:
        raise ValueError(
            f"query must have up to {MAX_ROW} elements in a row (width * heads * head_dim) on the "
            f"Triton backend, got shape {shape}"
        )


def check_window(shape: Extents, windows: Windows, dilation: Extents) -> None:
    """Raises ValueError where the coordinate of a tap could exceed 32 bits."""
    sizes = windows.height.size, windows.width.size
    for axis, (extent, size) in enumerate(zip(shape[1:3], sizes, strict=True)):
        step = min(max(dilation[axis::2]), extent)
        if (2 * size + MAX_STRIP) * step > MAX_REACH:
            raise ValueError(
                f"kernel_size and dilation must have (2 * kernel_size + {MAX_STRIP}) * dilation up "
                f"to {MAX_REACH} on the Triton backend, a dilation beyond the map counting as the "
                f"map's extent, got kernel_size {size} and dilation {step} for shape {shape}"
            )


def grid(programs: int, shape: Extents) -> tuple[int]:
    """The grid of so many programs for a query of that shape.

    Raises:
        ValueError: more than a grid holds.
    """
    if programs > MAX_PROGRAMS:
        raise ValueError(
            f"query must need at most {MAX_PROGRAMS} programs on the Triton backend, "
            f"got shape {shape}, which needs {programs}"
        )
    return (programs,)


def alignment(strides: Sequence[Extents]) -> int:
    """The largest power of two up to 16 that divides all strides."""
    return math.gcd(16, *(stride for extents in strides for stride in extents))


def needs_index_64(shape: Extents, strides: Sequence[Extents]) -> bool:
    """Whether an offset inside the map of one image and head can exceed 32 bits.

    Those of taps off the map may wrap, for nothing is read there.
    """
    _, height, width, _, head_dim = shape
    reach = (height * extents[1] + width * extents[2] + head_dim for extents in strides)
    return max(reach) >= 2**31


def _strides(tensor: Tensor) -> Extents:
    """Strides of (batch, height, width, heads); 0 where there is one entry, for it says nothing."""
    extents, strides = tensor.shape, tensor.stride()
    return tuple(0 if extents[i] == 1 else strides[i] for i in range(4))


def _bytes(key_mask: Tensor | None) -> Tensor | None:
    return None if key_mask is None else key_mask.view(torch.uint8)


def _table_on(table: Table, device: torch.device) -> Tensor:
    """The head table on the device, int32 (heads, columns)."""
    kept = _TABLES.get((table, device))
    if kept is not None:
        return kept
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # A copy from the host cannot be captured and fills can: a table that was not needed before
        # the capture becomes part of the graph.
        entries = [
            torch.full((1,), entry, dtype=torch.int32, device=device)
            for row in table
            for entry in row
        ]
        return torch.cat(entries).view(len(table), -1)
    # Kept for good, for a captured graph may hold its address. Made in a thread of its own: while
    # torch.compile warms up its CUDA graphs, what this thread allocates is theirs to reuse.
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(torch.tensor, table, dtype=torch.int32, device=device).result()
    return _TABLES.setdefault((table, device), made)


def _on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return nullcontext()


_FASTEST: dict[Any, Plan] = {}


def _fastest_plan(
    which: str,
    problem: tuple[Any, ...],
    dtype: torch.dtype,
    present: tuple[bool, ...],
    run: Callable[[Plan], Any],
) -> Plan:
    """The fastest of all candidates on this GPU, timed at the first call of each kind.

    present: whether each tensor that may be None is there.
    """
    from triton.errors import TritonError
    from triton.testing import do_bench

    def milliseconds(plan: Plan) -> float:
        try:
            return float(do_bench(lambda: run(plan), warmup=5, rep=20))
        except (TritonError, RuntimeError):  # by Triton or the driver: too little of something
            return math.inf

    key = (which, problem, dtype, present, torch.cuda.current_device())
    if key not in _FASTEST:
        shape, _, element_size, windows, _ = problem
        kernel_size = windows.height.size, windows.width.size
        plans = [
            attention_plan(
                which, *problem, fit_blocks(candidate, element_size, shape[4], *shape[1:3])
            )
            for candidate in candidates(which, element_size, kernel_size)
        ]
        times = [milliseconds(plan) for plan in plans]
        if min(times) == math.inf:  # the reason comes with the launch
            return attention_plan(which, *problem)
        _FASTEST[key] = plans[times.index(min(times))]
    return _FASTEST[key]
