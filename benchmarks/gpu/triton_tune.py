"""Times every candidate block shape of the Triton kernels on this GPU, and prints the fastest.

    python -m benchmarks.gpu.triton_tune
    python -m benchmarks.gpu.triton_tune --head-dim 64 --window 3

The fastest has the smallest sum of logarithms of time over the maps, so that no map size is
favoured. Where it is not what `sdwa.backends.triton.blocks.choose_shape` says, both are printed.
Needs a GPU.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch
from triton.errors import TritonError
from triton.testing import do_bench

from sdwa.backends.triton import launch
from sdwa.backends.triton.blocks import (
    PASSES,
    WINDOW_CLASSES,
    Shape,
    candidates,
    choose_shape,
    fit_blocks,
)

# (batch, height, width): the network's own map, and two that exceed a cache.
MAPS = ((64, 7, 7), (16, 28, 28), (16, 56, 56))
HEADS = 8
HEAD_DIMS = (16, 32, 64, 128, 256)
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
    out, lse = launch.attention_forward(query, key, value, None, None, *arguments)

    def run() -> None:
        if which == "forward":
            launch.attention_forward(query, key, value, None, None, *arguments)
        else:
            launch.attention_backward(
                grad_out, None, query, key, value, None, None, out, lse, *arguments
            )

    chosen = launch.choose_blocks
    launch.choose_blocks = lambda *_: blocks
    launch.attention_plan.cache_clear()
    try:
        return float(do_bench(run, warmup=10, rep=50, return_mode="median"))
    except (TritonError, RuntimeError) as error:  # more of something than this GPU has
        print(f"  {entry}: {str(error).splitlines()[0]}", file=sys.stderr)
        return math.inf
    finally:
        launch.choose_blocks = chosen
        launch.attention_plan.cache_clear()


def best_shape(which: str, element_size: int, head_dim: int, window: int) -> Shape:
    """The candidate that is fastest over all maps."""
    scores = {}
    for entry in candidates(which, element_size, (window, window)):
        times = [
            milliseconds(which, size, head_dim, window, DTYPES[element_size], entry)
            for size in MAPS
        ]
        scores[entry] = sum(math.log(time) for time in times)
    return min(scores, key=lambda entry: scores[entry])


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.triton_tune", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--pass", nargs="+", default=PASSES, choices=PASSES, dest="which")
    parser.add_argument(
        "--bytes", type=int, nargs="+", default=(2, 4), choices=(2, 4), help="of an element"
    )
    parser.add_argument("--head-dim", type=int, nargs="+", default=HEAD_DIMS, choices=HEAD_DIMS)
    parser.add_argument(
        "--window", type=int, nargs="+", default=WINDOW_CLASSES, choices=WINDOW_CLASSES
    )
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_arguments()
    if not torch.cuda.is_available():
        print("error: tuning times kernels and needs a GPU, PyTorch sees none", file=sys.stderr)
        return 2
    machine = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
    print(f"fastest block shapes on {machine}")
    for which in options.which:
        for element_size in options.bytes:
            for head_dim in options.head_dim:
                for window in options.window:
                    shape = best_shape(which, element_size, head_dim, window)
                    chosen = choose_shape(which, element_size, (window, window))
                    note = "as chosen" if shape == chosen else f"chosen: {chosen}"
                    print(f"{which} {element_size} bytes {head_dim} {window}x{window}: {shape}")
                    print(f"  {note}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
