"""Runs single passes of some shapes, for a profiler to watch; or the slowest of a file of results.

    ncu --kernel-name regex:sdwa --kernel-name-base mangled \
        python -m benchmarks.gpu.profiling --shape map56,map224 --pass forward,backward
    ncu ... python -m benchmarks.gpu.profiling --slowest 2 benchmarks/results/gpu-bfloat16.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import command_line
from benchmarks.attention import PASSES, draw, make_call
from benchmarks.peers import Problem, contenders
from benchmarks.record import DTYPES, Record, UserError, wait_for_turn
from benchmarks.shapes import SHAPE_SETS

OURS = [contender.name for contender in contenders() if contender.is_ours]


class Pass(NamedTuple):
    """What is run: names of a shape, a pass and a dtype."""

    shape: str
    what: str
    dtype: str


def slowest(record: Record, count: int, backend: str) -> list[Pass]:
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
    rows.sort(key=lambda m: m.per_second("fewest_bytes"))
    return [Pass(m.case, m.what, m.dtype) for m in rows[:count]]


def run(which: Pass, backend: str, device: torch.device, times: int) -> None:
    """Runs one pass.

    Raises:
        UserError: the backend does not take it.
    """
    shapes = {shape.name: shape for group in SHAPE_SETS.values() for shape in group}
    shape, dtype = shapes[which.shape].on(device), DTYPES[which.dtype]
    contender = next(c for c in contenders() if c.name == backend)
    problem = Problem(shape, dtype, device, training=which.what != "forward")
    if reason := contender.refuses(problem):
        raise UserError(f"--backend {contender.name}: {reason}")
    attend = contender.prepare(problem, {})
    call = make_call(attend, draw(shape, dtype, device), which.what)
    for _ in range(times):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.profiling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = {shape.name for group in SHAPE_SETS.values() for shape in group}
    parser.add_argument("--shape", default="map56", help="with commas between (%(default)s)")
    parser.add_argument(
        "--pass", dest="what", default="forward", help=f"of {', '.join(PASSES)} (%(default)s)"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument(
        "--slowest",
        type=int,
        metavar="N",
        help="instead of those, the N single passes of FILE furthest from the copy bandwidth",
    )
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="attention results")
    parser.add_argument("--backend", default="cuda", choices=OURS)
    parser.add_argument("--device", help="cpu or cuda (the GPU where there is one)")
    parser.add_argument("--runs", type=int, default=3, help="of each (%(default)s)")
    arguments = parser.parse_args()
    wait_for_turn()
    device = command_line.choose_device(arguments.device)
    if arguments.slowest is None:
        shapes, passes = arguments.shape.split(","), arguments.what.split(",")
        for known, given in ((names, shapes), (PASSES, passes)):
            if wrong := [name for name in given if name not in known]:
                raise UserError(f"known are {', '.join(sorted(known))}; got {', '.join(wrong)}")
        chosen = [Pass(shape, what, arguments.dtype) for shape in shapes for what in passes]
    elif arguments.file is None:
        raise UserError("--slowest needs a FILE of results")
    else:
        chosen = slowest(Record.load(arguments.file), arguments.slowest, arguments.backend)
    for which in chosen:
        run(which, arguments.backend, device, arguments.runs)


if __name__ == "__main__":
    command_line.run_main(main)
