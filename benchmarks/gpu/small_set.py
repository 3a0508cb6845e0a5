"""Runs forward and backward of a few small problems on a GPU: what compute-sanitizer watches.

    compute-sanitizer python -m benchmarks.gpu.small_set --part 2/4    a quarter of them

With a filter on kernel names, initcheck knows what kernels of others write as never written. So
inputs are made on the CPU and copied as they lie in memory, which no kernel does, and none of them
is cast on the GPU.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

import torch
from torch import Tensor

import sdwa
from benchmarks.command_line import run_main
from benchmarks.record import UserError
from tests.sdwa.assertions import run
from tests.sdwa.cases import CASES, Case, draw

# Every kind of kernel, border and layout, on few pixels: the tools slow kernels down a hundredfold.
NAMES = (
    "paper",
    "one_pixel",
    "one_column",
    "wide_packed",
    "strided_map",
    "bias_masked",
    "bias_5x5",
    "window_5",
    "nothing_left_5x5",
    "dilation_beyond_map",
    "dilation_by_axis",
    "window_7_masked",
    "window_13_beyond_map",
    "head_dim_3",
    "head_dim_100",
    "head_dim_256",
    "key_mask_masked",
    "key_mask_7_masked",
    "shifted_bias",
    "shifted_7",
    "causal",
    "causal_rows_masked",
)
DTYPES = (torch.float32, torch.bfloat16)
Problem = tuple[Case, torch.dtype]


def cases() -> list[Case]:
    """The problems, from the tests' own."""
    return [case for case in CASES if case.name in NAMES]


def copied(tensor: Tensor, device: str) -> Tensor:
    """The tensor on another device with the strides it has; `.to` makes some contiguous."""
    storage = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)
    return storage.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def inputs(case: Case, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Tensors of a case on a device, the bias in the type that kernels take."""
    tensors = draw(case, dtype)
    if "bias" in tensors:
        tensors["bias"] = tensors["bias"].float()
    return {name: copied(tensor, device) for name, tensor in tensors.items()}


def part_of(problems: Sequence[Problem], part: str) -> list[Problem]:
    """Those of part "2/4": every fourth from the second on.

    Raises:
        UserError: the part is none.
    """
    numbers = re.fullmatch(r"([0-9]+)/([0-9]+)", part)
    first, parts = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= first <= parts:
        raise UserError(f'--part must be one such as "1/4", got {part!r}')
    return list(problems[first - 1 :: parts])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.small_set",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", default="cuda", help="cuda or triton (%(default)s)")
    parser.add_argument(
        "--part",
        default="1/1",
        metavar="N/M",
        help="the Nth of M parts, to run them side by side (%(default)s)",
    )
    options = parser.parse_args(arguments)
    problems = part_of([(case, dtype) for case in cases() for dtype in DTYPES], options.part)
    backend = options.backend
    if missing := sdwa.available_backends("cuda").get(backend, ("there is no such backend",)):
        raise UserError(f"--backend {backend}: {'; '.join(missing)}")
    for case, dtype in problems:
        run(case, inputs(case, dtype, "cuda"), backend=backend)
        torch.cuda.synchronize()
    print(f"{len(problems)} problems ran on {backend}: part {options.part} of {len(cases())} cases")
    return 0


if __name__ == "__main__":
    run_main(main)
