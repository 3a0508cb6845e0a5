"""Times every candidate block shape of the Triton kernels on this GPU and writes the table.

    python -m benchmarks.triton_tune
    python -m benchmarks.triton_tune --head-dim 64 --window 3 --output /tmp/block_table.py

Each entry is the shape with the smallest sum of logarithms of time over the maps of its class, so
that no map size is favoured. Entries that were not asked for are kept. Needs a GPU.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from triton.testing import do_bench

from sdwa.backends.triton import block_table, launch
from sdwa.backends.triton.blocks import (
    HEAD_DIM_CLASSES,
    PASSES,
    WINDOW_CLASSES,
    Shape,
    candidates,
    fit_blocks,
)

# (batch, height, width): the network's own map, and two that exceed a cache.
MAPS = ((64, 7, 7), (16, 28, 28), (16, 56, 56))
HEADS = 8
DILATION = (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3)  # the paper's: 2, 3 and 3 heads
DTYPES = {2: torch.bfloat16, 4: torch.float32}


def milliseconds(
    which: str, size: tuple[int, int, int], head_dim: int, window: int, dtype: torch.dtype,
    entry: Shape,
) -> float:  # fmt: skip
    """Median time of a pass with a block shape; infinite where the GPU refuses it.

    size: (batch, height, width). Backward includes the kernel for delta, the same for all shapes.
    """
    shape = (*size, HEADS, head_dim)
    query, key, value, grad_out = torch.randn(4, *shape, device="cuda", dtype=dtype).unbind()
    blocks = fit_blocks(entry, query.element_size(), head_dim, size[1], size[2])
    arguments = ([window, window], DILATION, head_dim**-0.5, False)
    chosen = launch.choose_blocks
    launch.choose_blocks = lambda *_: blocks
    launch.attention_plan.cache_clear()
    try:
        out, lse = launch.attention_forward(query, key, value, None, *arguments)

        def run() -> None:
            if which == "forward":
                launch.attention_forward(query, key, value, None, *arguments)
            else:
                launch.attention_backward(
                    grad_out, None, query, key, value, None, out, lse, *arguments
                )

        return float(do_bench(run, warmup=10, rep=50, return_mode="median"))
    except RuntimeError as error:  # more registers or threads than this GPU has
        print(f"  {entry}: {str(error).splitlines()[0]}", file=sys.stderr)
        return math.inf
    finally:
        launch.choose_blocks = chosen
        launch.attention_plan.cache_clear()


def best_shape(which: str, element_size: int, head_dim: int, window: int) -> Shape:
    """The candidate that is fastest over all maps."""
    scores = {}
    for entry in candidates(which, element_size, head_dim, (window, window)):
        times = [
            milliseconds(which, size, head_dim, window, DTYPES[element_size], entry)
            for size in MAPS
        ]
        scores[entry] = sum(math.log(time) for time in times)
    return min(scores, key=lambda entry: scores[entry])


def table_source(table: dict[tuple[str, int, int, int], tuple[int, ...]], machine: str) -> str:
    """The text of `block_table.py`."""
    rows = "\n".join(f"    {key!r}: {tuple(table[key])}," for key in sorted(table, reverse=True))
    return (
        '"""Block shapes by problem: (pass, bytes, head_dim class, window class) -> '
        "`blocks.Shape`.\n\n"
        f"Written by `python -m benchmarks.triton_tune` on {machine}.\n"
        '"""\n\n'
        "BLOCK_TABLE: dict[tuple[str, int, int, int], tuple[int, int, int, int, int]] = {\n"
        f"{rows}\n}}\n"
    ).replace("'", '"')


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.triton_tune", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--pass", nargs="+", default=PASSES, choices=PASSES, dest="which")
    parser.add_argument(
        "--bytes", type=int, nargs="+", default=(2, 4), choices=(2, 4), help="of an element"
    )
    parser.add_argument(
        "--head-dim", type=int, nargs="+", default=HEAD_DIM_CLASSES, choices=HEAD_DIM_CLASSES
    )
    parser.add_argument(
        "--window", type=int, nargs="+", default=WINDOW_CLASSES, choices=WINDOW_CLASSES
    )
    parser.add_argument("--output", type=Path, default=Path(block_table.__file__))
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_arguments()
    if not torch.cuda.is_available():
        print("error: tuning times kernels and needs a GPU, PyTorch sees none", file=sys.stderr)
        return 2
    table: dict[tuple[str, int, int, int], tuple[int, ...]] = dict(block_table.BLOCK_TABLE)
    for which in options.which:
        for element_size in options.bytes:
            for head_dim in options.head_dim:
                for window in options.window:
                    shape = best_shape(which, element_size, head_dim, window)
                    table[which, element_size, head_dim, window] = tuple(shape)
                    print(f"{which} {element_size} bytes {head_dim} {window}x{window}: {shape}")
    machine = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
    options.output.write_text(table_source(table, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
