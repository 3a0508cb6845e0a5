"""Runs one pass of one shape a few times, for a profiler to watch; or names the slowest.

python -m benchmarks.gpu.profiling --slowest 2 benchmarks/results/gpu-attention.json
ncu --kernel-name regex:attention python -m benchmarks.gpu.profiling --shape map56 --pass forward
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks import command_line
from benchmarks.attention import PASSES, draw, make_call
from benchmarks.peers import Problem, contenders
from benchmarks.record import DTYPES, Measurement, Record, UserError
from benchmarks.shapes import SHAPE_SETS

OURS = [contender.name for contender in contenders() if contender.is_ours]


def slowest(record: Record, count: int, backend: str) -> list[Measurement]:
    """The single passes of a backend with the lowest fraction of the copy bandwidth.

    Only of shapes that are to reach it: 3 x 3 windows, and more than one image to read.
    """
    rows = [
        m
        for m in record.measurements
        if m.contender == backend
        and m.what in ("forward", "backward")
        and m.case != "large"
        and m.details["shape"]["kernel_size"] == 3
        and m.details["shape"]["batch"] > 1
    ]
    return sorted(rows, key=lambda m: m.per_second("fewest_bytes"))[:count]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.profiling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shapes = {shape.name: shape for group in SHAPE_SETS.values() for shape in group}
    parser.add_argument(
        "--shape", default="map56", choices=shapes, metavar="SHAPE", help=", ".join(shapes)
    )
    parser.add_argument("--pass", dest="what", default="forward", choices=PASSES)
    parser.add_argument("--backend", default="cuda", choices=OURS)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--device", help="cpu or cuda (the GPU where there is one)")
    parser.add_argument("--runs", type=int, default=3, help="(%(default)s)")
    parser.add_argument(
        "--slowest",
        type=int,
        metavar="N",
        help="print the options for the N slowest in FILE, a line each, and run nothing",
    )
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="attention results")
    arguments = parser.parse_args()
    if arguments.slowest is not None:
        if arguments.file is None:
            raise UserError("--slowest needs a FILE of results")
        record = Record.load(arguments.file)
        for m in slowest(record, arguments.slowest, arguments.backend):
            print(
                f"--shape {m.case} --pass {m.what} --dtype {m.dtype} --backend {arguments.backend}"
            )
        return
    device = command_line.choose_device(arguments.device)
    shape, dtype = shapes[arguments.shape].on(device), DTYPES[arguments.dtype]
    contender = next(c for c in contenders() if c.name == arguments.backend)
    problem = Problem(shape, dtype, device, training=arguments.what != "forward")
    if reason := contender.refuses(problem):
        raise UserError(f"--backend {contender.name}: {reason}")
    attend = contender.prepare(problem, {})
    call = make_call(attend, draw(shape, dtype, device), arguments.what)
    for _ in range(arguments.runs):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    command_line.run_main(main)
