"""Runs forward and backward of a few small problems on a GPU: what compute-sanitizer watches.

Inputs are made on the CPU and copied, so that with a filter on kernel names initcheck still knows
them as written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

import sdwa
from benchmarks.command_line import run_main
from tests.sdwa.cases import CASES, Case, draw

# Every kind of kernel, border and layout, on few pixels: the tools slow kernels down a hundredfold.
NAMES = (
    "paper",
    "one_pixel",
    "one_column",
    "wide_packed",
    "bias_masked",
    "bias_5x5",
    "dilation_beyond_map",
    "dilation_by_axis",
    "window_7_masked",
    "window_13_beyond_map",
    "head_dim_3",
    "head_dim_100",
    "head_dim_256",
)
DTYPES = (torch.float32, torch.bfloat16)


def cases() -> list[Case]:
    """The problems, from the tests' own."""
    return [case for case in CASES if case.name in NAMES]


def run(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Forward and backward, with a gradient of lse, and waits for it."""
    tensors = {name: t.to("cuda") for name, t in draw(case, dtype).items()}
    names = [name for name in ("query", "key", "value", "bias") if name in tensors]
    inputs = {name: tensors[name].requires_grad_() for name in names}
    out, lse = sdwa.sliding_dilated_window_attention(
        inputs["query"],
        inputs["key"],
        inputs["value"],
        case.kernel_size,
        case.dilation,
        bias=inputs.get("bias"),
        scale=case.scale,
        padding_mode=case.padding_mode,
        return_lse=True,
        backend=backend,
    )
    torch.autograd.grad(
        (out, lse), list(inputs.values()), (tensors["grad_out"], tensors["grad_lse"])
    )
    torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.small_set", description=__doc__)
    parser.add_argument("--backend", default="cuda", help="cuda or triton (%(default)s)")
    backend = parser.parse_args(arguments).backend
    if missing := sdwa.available_backends("cuda").get(backend, ("there is no such backend",)):
        print(f"error: --backend {backend}: {'; '.join(missing)}", file=sys.stderr)
        return 2
    for case in cases():
        for dtype in DTYPES:
            run(case, dtype, backend)
    print(f"{len(cases())} problems in {len(DTYPES)} dtypes ran on {backend}")
    return 0


if __name__ == "__main__":
    run_main(main)
