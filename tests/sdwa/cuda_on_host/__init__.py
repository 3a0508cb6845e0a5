"""Builds the CUDA kernels for the host, under sanitizers, and runs problems on them.

The sources of csrc/cuda are compiled unchanged; `cuda_on_host.h` stands in for CUDA.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sdwa.arguments import as_causal, as_dilation, as_kernel_size
from tests.sdwa.cases import Case

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
FLAGS = (
    "-O1 -g1 -std=c++20 -fsanitize=address,undefined -fno-sanitize-recover=all "
    "-Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-clobbered -DSDWA_CUDA_ON_HOST"
)
# Sums of products are contracted, as nvcc does, where this processor can.
CONTRACTED = "-ffp-contract=fast -fexpensive-optimizations"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # as csrc/dtypes.h counts


class SharedMemory(NamedTuple):
    """KiB: that a block may have, that a multiprocessor has, and that each block takes of it."""

    block: int
    multiprocessor: int
    reserved: int


RTX_3090, H100 = SharedMemory(99, 100, 1), SharedMemory(227, 228, 1)


class BuildError(RuntimeError):
    """The kernels do not compile for the host."""


def missing_tools() -> str | None:
    """Why the emulation cannot be built here, or None."""
    if sys.platform != "linux":
        return "the emulation needs Linux"
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "no C++ compiler"
    if not (CSRC / "cuda").is_dir():
        return "no kernel sources beside the tests"
    return None


def build(folder: Path) -> Path:
    """Compiles what has changed; returns the folder of `emulate`, `races` and `tiles`."""
    import ninja
    from ninja.ninja_syntax import Writer

    folder.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX", "c++")
    include = " ".join(f"-I{shlex.quote(str(path))}".replace("$", "$$") for path in (CSRC, HERE))
    flags = f"{FLAGS} {_contraction()} {include}"
    kernels = sorted((CSRC / "cuda").glob("*.cu"))
    programs = {
        "emulate": [*kernels, HERE / "fibers.cpp", HERE / "main.cpp"],
        "races": [HERE / "fibers.cpp", HERE / "races.cpp"],
        "tiles": [HERE / "fibers.cpp", HERE / "tiles.cpp"],
    }
    sources = sorted({source for needed in programs.values() for source in needed})
    with (folder / "build.ninja").open("w") as file:
        n = Writer(file)
        command = f"{compiler} {flags} -MMD -MF $out.d -x c++ -c $in -o $out"
        n.rule("compile", command, depfile="$out.d", deps="gcc")
        n.rule("link", f"{compiler} -fsanitize=address,undefined $in -o $out")
        for source in sources:
            n.build(f"{source.stem}.o", "compile", str(source))
        for program, needed in programs.items():
            n.build(program, "link", [f"{source.stem}.o" for source in needed])
    done = subprocess.run(
        [Path(ninja.BIN_DIR) / "ninja"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise BuildError(done.stdout + done.stderr)
    return folder


def _contraction() -> str:
    if platform.machine() != "x86_64":
        return CONTRACTED
    return "" if torch.backends.cpu.get_cpu_capability() == "DEFAULT" else f"-mfma {CONTRACTED}"


def run(
    programs: Path,
    folder: Path,
    problems: Iterable[tuple[Case, dict[str, Tensor]]],
    schedule: int,
    out_shift: int = 0,
    shared: SharedMemory = RTX_3090,
) -> list[dict[str, Tensor]]:
    """Forward and backward of each problem: out, lse, grad_query, grad_key, grad_value, grad_bias.

    `schedule` is the order in which threads run between two barriers: 0 ascending, 1 descending.
    `out_shift` is how many elements the `out` given to the backward pass lies behind the start of
    its storage, which is aligned. Kernels choose their stages by `shared`, that of the GPU.
    """
    problems = list(problems)
    cases, results = folder / f"cases{schedule}", folder / f"results{schedule}"
    with cases.open("wb") as file:
        for case, tensors in problems:
            file.writelines(_encode(case, tensors, out_shift))
    limits = (str(1024 * size) for size in shared)
    command = [programs / "emulate", cases, results, str(schedule), *limits]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"the emulated kernels failed:\n{done.stderr[-6000:]}")
    data, at, decoded = results.read_bytes(), 0, []
    for case, tensors in problems:
        outputs: dict[str, Tensor] = {}
        for name, shape, dtype in _outputs(case, tensors):
            size = shape.numel() * dtype.itemsize
            flat = torch.frombuffer(bytearray(data[at : at + size]), dtype=dtype) if size else None
            outputs[name] = torch.empty(shape, dtype=dtype) if flat is None else flat.view(shape)
            at += size
        if "bias" in tensors:  # what the kernels do not know of has no gradient
            whole = torch.zeros(tensors["bias"].shape, dtype=outputs["grad_bias"].dtype)
            of_taps(case, whole).copy_(outputs["grad_bias"])
            outputs["grad_bias"] = whole
        decoded.append(outputs)
    assert at == len(data), "the emulation wrote more or less than its outputs"
    return decoded


def of_taps(case: Case, bias: Tensor) -> Tensor:
    """The part of a bias that the kernels take: that of the taps that a causal window has."""
    if case.padding_mode == "shifted":
        return bias
    for dim, is_causal in enumerate(as_causal(case.is_causal), start=1):
        if is_causal:
            bias = bias.narrow(dim, 0, bias.shape[dim] // 2 + 1)
    return bias


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _outputs(case: Case, tensors: dict[str, Tensor]) -> list[tuple[str, torch.Size, torch.dtype]]:
    dtype = tensors["query"].dtype
    shape = torch.Size(case.shape)
    outputs = [("out", shape, dtype), ("lse", shape[:4], _sum_dtype(dtype))]
    outputs += [(f"grad_{name}", shape, dtype) for name in ("query", "key", "value")]
    if "bias" in tensors:
        outputs.append(("grad_bias", of_taps(case, tensors["bias"]).shape, _sum_dtype(dtype)))
    return outputs


def _encode(case: Case, tensors: dict[str, Tensor], out_shift: int) -> Iterable[bytes]:
    *_, heads, head_dim = case.shape
    kernel = as_kernel_size(case.kernel_size, case.padding_mode == "shifted")
    dtype = tensors["query"].dtype
    yield struct.pack(
        "=16qd",
        DTYPES.index(dtype),
        *case.shape,
        *kernel,
        case.padding_mode != "zeros",
        case.padding_mode == "shifted",
        *as_causal(case.is_causal),
        "bias" in tensors,
        "grad_lse" in tensors,
        "key_mask" in tensors,
        out_shift,
        head_dim**-0.5 if case.scale is None else case.scale,
    )
    steps = [step for pair in as_dilation(case.dilation, heads) for step in pair]
    yield struct.pack(f"={len(steps)}q", *steps)
    for name in ("query", "key", "value", "grad_out"):
        yield from _encode_strided(tensors[name])
    if "bias" in tensors:
        yield _bytes(of_taps(case, tensors["bias"]).to(_sum_dtype(dtype)).contiguous())
    if "grad_lse" in tensors:
        yield _bytes(tensors["grad_lse"].to(_sum_dtype(dtype)).contiguous())
    if "key_mask" in tensors:
        yield _bytes(tensors["key_mask"])


def _encode_strided(tensor: Tensor) -> Iterable[bytes]:
    """The tensor in its own layout, NaN between its elements, and nothing before or behind them."""
    spans = [
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    elements = 1 + sum(spans) if tensor.numel() else 0
    storage = torch.full((elements,), float("nan"), dtype=tensor.dtype)
    distinct = tensor  # one copy of what expand() repeats
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0:
            distinct = distinct.narrow(dim, 0, min(1, distinct.shape[dim]))
    if elements:
        storage.as_strided(distinct.shape, distinct.stride()).copy_(distinct)
    yield struct.pack("=6q", elements, 0, *tensor.stride()[:4])
    yield _bytes(storage)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
