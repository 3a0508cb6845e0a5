"""What a second thread gains, and what a process beside does to calls, by how threads wait.

    python -m benchmarks.threads --json benchmarks/results/cpu-threads.json

Two processes make the same calls, alone by turns with one thread and with two, and both at once
with two threads each. Beside the operator stands `scaled_dot_product_attention` on as many numbers,
on maps of 7 x 7. PyTorch's threads wait for each other at the end of every parallel loop; the
environment says whether they spin there or sleep, so each way has processes of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks import command_line
from benchmarks.attention import draw, make_call
from benchmarks.cpu import BOTH, CPU, LARGE, NETWORK, Goal, attend, checked
from benchmarks.peers import global_attention
from benchmarks.record import ROOT, Measurement, Record, Timing, UserError, start_record
from benchmarks.shapes import Shape

WAITING = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
}
SHAPES = {shape.name: shape for shape in (LARGE, NETWORK)}
CONTENDERS = ("cpu", "sdpa 7x7")
CASES = tuple(itertools.product(SHAPES, CONTENDERS, BOTH))
ONE, TWO, BESIDE = "1 thread", "2 threads", "2 threads, two processes"
TURNS = 4
SCALING, SLOWDOWN = 1.8, 2.3  # at least, on maps of 56 x 56; at most


def make(shape: Shape, contender: str, what: str) -> Callable[[], object]:
    """One pass of a contender; raises WrongResult."""
    if contender == "cpu":
        tensors = draw(shape, torch.float32, CPU)
        checked(shape, tensors)
        return make_call(attend(shape, "cpu"), tensors, what)
    maps = shape.batch * shape.height * shape.width // 49
    small = dataclasses.replace(shape, batch=maps, height=7, width=7)
    return make_call(global_attention, draw(small, torch.float32, CPU), what)


def serve() -> None:
    """A worker: for each line "case threads seconds" of stdin a list of milliseconds."""
    calls = {}
    for line in sys.stdin:
        case, threads, seconds = json.loads(line)
        torch.set_num_threads(threads)
        if case not in calls:
            calls[case] = make(SHAPES[CASES[case][0]], *CASES[case][1:])
            calls[case]()
        samples = []
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            calls[case]()
            samples.append((time.perf_counter() - start) * 1e3)
        print(json.dumps(samples), flush=True)


class Worker:
    """A process that makes calls when it is asked to."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        own = {name: value for name, value in os.environ.items() if "OMP_" not in name}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.threads", "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**own, **variables},
        )

    def ask(self, case: int, threads: int, seconds: float) -> None:
        assert self.process.stdin is not None
        print(json.dumps([case, threads, seconds]), file=self.process.stdin, flush=True)

    def answer(self) -> list[float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a worker ended, see its error above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def sample(workers: Sequence[Worker], case: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each call of a case, in turns, by what was beside it."""
    samples: dict[str, list[float]] = {ONE: [], TWO: [], BESIDE: []}
    for worker in workers:  # makes its tensors, and warms up
        worker.ask(case, 2, 0)
        worker.answer()
    for _ in range(TURNS):
        for situation, threads, asked in (
            (ONE, 1, workers[:1]),
            (TWO, 2, workers[:1]),
            (BESIDE, 2, workers),
        ):
            for worker in asked:
                worker.ask(case, threads, seconds / TURNS)
            for worker in asked:
                samples[situation] += worker.answer()
    return samples


def run(record: Record, waiting: str, seconds: float) -> list[Goal]:
    """All cases under one way of waiting."""
    workers = [Worker(WAITING[waiting]) for _ in range(2)]
    goals = []
    try:
        for case, (shape, contender, what) in enumerate(CASES):
            samples = sample(workers, case, seconds)
            # of all calls, as the slowest ones are what a process beside changes
            mean = {situation: statistics.fmean(values) for situation, values in samples.items()}
            for situation, values in samples.items():
                details = {
                    "shape": SHAPES[shape].as_json(),
                    "environment": WAITING[waiting],
                    "mean_ms": mean[situation],
                    "slowest_ms": max(values),
                }
                timing = Timing.of(values)
                name = f"{shape}, {waiting}, {situation}"
                record.measurements.append(
                    Measurement(name, contender, what, "float32", timing, None, details)
                )
            gain = statistics.median(samples[ONE]) / statistics.median(samples[TWO])
            slowdown = mean[BESIDE] / mean[TWO]
            print(
                f"  {shape:<8}{contender:<10}{what:<17}"
                + "".join(f"{statistics.median(samples[s]):9.3f}" for s in samples)
                + f"{gain:7.2f}{slowdown:10.2f}{max(samples[BESIDE]):10.1f}",
                flush=True,
            )
            if contender == "cpu":
                which = f"{shape}, {what}, {waiting}"
                if SHAPES[shape] == LARGE:
                    goals.append(Goal(f"2 threads' speed, {which}", gain, SCALING, at_most=False))
                goals.append(
                    Goal(f"beside another process, {which}", slowdown, SLOWDOWN, at_most=True)
                )
    finally:
        for worker in workers:
            worker.close()
    return goals


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.threads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--waiting", default=",".join(WAITING), help="of %(default)s")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    command_line.add_options(parser, seconds=1.0)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return 0
    command_line.check_seconds(arguments.seconds)
    if torch.get_num_threads() < 2:
        raise UserError("this needs two cores")
    record = start_record("threads", CPU)
    goals: list[Goal] = []
    chosen = command_line.choose("waiting", arguments.waiting, WAITING, record)
    columns = "1 thread", "2", "two proc.", "gain", "slowdown", "slowest"
    print(f"{'medians, ms':<37}{columns[0]:>9}{columns[1]:>9}{columns[2]:>10}", *columns[3:])
    for waiting in chosen:
        print(waiting, WAITING[waiting] or "")
        goals += run(record, waiting, arguments.seconds)
        record.setting["goals"] = [str(goal) for goal in goals]
        if arguments.json is not None:
            record.save(arguments.json)
    print()
    for goal in goals:
        print(goal)
    return 0


if __name__ == "__main__":
    command_line.run_main(main)
