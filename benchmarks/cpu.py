"""The CPU kernels against the memory's floor: goals, maps of every size, and a table of shapes.

    python -m benchmarks.cpu --json benchmarks/results/cpu-floor.json

What is compared is timed in turns, so that whatever else the machine does at the time falls on all
alike. Whatever computes a wrong result is not timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import sdwa
from benchmarks import measure
from benchmarks.attention import check, draw, exact_results, make_call
from benchmarks.measure import Measurement, Record, Timing, UserError
from benchmarks.peers import global_attention
from benchmarks.shapes import PAPER, Shape

CPU = torch.device("cpu")
LARGE = Shape("8x56x56", 8, 56, 56, 8, 64, PAPER)
NETWORK = Shape("50x7x7", 50, 7, 7, 8, 64, PAPER)
SIDES = (7, 14, 28, 56, 112, 224)
MAPS = tuple(Shape(f"side{s}", SIDES[-1] ** 2 // s**2, s, s, 8, 64, PAPER) for s in SIDES)
TABLE = tuple(
    Shape(f"k{kernel}d{head_dim}", 4, 56, 56, 8, head_dim, PAPER, kernel_size=kernel)
    for kernel in (3, 5, 7)
    for head_dim in (16, 24, 32, 60, 64, 128)
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PARTS = ("large", "network", "maps", "table")
FEWEST_ROUNDS = 5
NETWORK_TURNS = 3

Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Goal:
    """A figure that a run should reach: `value` at most, or at least, `limit`."""

    what: str
    value: float
    limit: float
    at_most: bool

    def __str__(self) -> str:
        reached = self.value <= self.limit if self.at_most else self.value >= self.limit
        word = "at most" if self.at_most else "at least"
        return (
            f"{'reached' if reached else 'MISSED'}: {self.what}: {self.value:.2f}, "
            f"{word} {self.limit:g} wanted"
        )


def in_turns(calls: Calls, seconds: float, turns: int | None = None) -> dict[str, Timing]:
    """Times calls in turns, each for about `seconds`.

    Args:
        turns: Number of turns that each call's rounds are spread over. With a few, a call mostly
            follows itself, and tensors that fit into the caches are found there. None: as many as
            the quickest call has rounds.
    """
    estimates = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        estimates[name] = time.perf_counter() - start
    rounds = {
        name: min(300, max(FEWEST_ROUNDS, round(seconds / estimate)))
        for name, estimate in estimates.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    turns = turns or max(rounds.values())
    for turn in range(1, turns + 1):
        for name, call in calls.items():
            while len(samples[name]) < rounds[name] * turn // turns:
                start = time.perf_counter()
                result = call()
                samples[name].append((time.perf_counter() - start) * 1e3)
                del result
    timings = {}
    for name, values in samples.items():
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        timings[name] = Timing(fifths[0], statistics.median(values), fifths[3], runs=len(values))
    return timings


def attend(shape: Shape, backend: str) -> Callable[..., Tensor]:
    """The operator on a shape."""
    return partial(
        sdwa.sliding_dilated_window_attention,
        kernel_size=shape.kernel_size,
        dilation=shape.dilation,
        backend=backend,
    )


def passes(shape: Shape, backend: str, tensors: Sequence[Tensor], label: str) -> Calls:
    """Forward, and forward with backward, of one backend."""
    function = attend(shape, backend)
    return {
        f"{label}, {what}": make_call(function, tensors, what)
        for what in ("forward", "forward+backward")
    }


def checked(shape: Shape, tensors: Sequence[Tensor]) -> float:
    """Largest error of the CPU kernels on these tensors; raises WrongResult."""
    exact = exact_results(shape, "dilated", tensors)
    return check(shape, attend(shape, "cpu"), tensors, exact, training=True)


def note(record: Record, shape: Shape, timings: Mapping[str, Timing], **details: object) -> None:
    """Adds timings, named "contender, what[, dtype]", to the record."""
    for name, timing in timings.items():
        contender, what, *dtype = name.split(", ")
        record.measurements.append(
            Measurement(
                shape.name, contender, what, dtype[0] if dtype else "float32", timing, None,
                {"shape": shape.as_json(), **details},
            )
        )  # fmt: skip
        print(f"  {shape.name:<10}{name:<40}{timing}", flush=True)


def run_large(record: Record, seconds: float) -> list[Goal]:
    """8 x 56 x 56 against a copy of two tensors and the unfold reference; peak memory."""
    tensors = draw(LARGE, torch.float32, CPU)
    halves = [t.bfloat16() for t in tensors]
    targets = [torch.empty_like(t) for t in tensors[:2]]
    error = max(checked(LARGE, tensors), 0.0)
    checked(LARGE, halves)
    calls: dict[str, Callable[[], object]] = {
        "torch, clone of two": lambda: [t.clone() for t in tensors[:2]],
        "torch, copy of two": lambda: [a.copy_(b) for a, b in zip(targets, tensors, strict=False)],
        "torch, clone of two, bfloat16": lambda: [t.clone() for t in halves[:2]],
        **passes(LARGE, "cpu", tensors, "cpu"),
        **{f"{k}, bfloat16": v for k, v in passes(LARGE, "cpu", halves, "cpu").items()},
        **passes(LARGE, "reference", tensors, "unfold"),
    }
    times = in_turns(calls, seconds)
    note(record, LARGE, times, error=error)
    peak, _ = measure.peak_memory(calls["cpu, forward"], CPU)
    needed = tensors[0].nbytes + tensors[0].nbytes // LARGE.head_dim
    record.measurements[-1].details["forward_peak_bytes"] = peak
    record.measurements[-1].details["out_and_lse_bytes"] = needed
    ms = {name: timing.p50_ms for name, timing in times.items()}
    return [
        Goal("forward / clone of two tensors", ms["cpu, forward"] / ms["torch, clone of two"],
             1.5, True),
        Goal("unfold / forward", ms["unfold, forward"] / ms["cpu, forward"], 50, False),
        Goal("unfold / forward+backward",
             ms["unfold, forward+backward"] / ms["cpu, forward+backward"], 30, False),
        Goal("bfloat16 / float32, forward", ms["cpu, forward, bfloat16"] / ms["cpu, forward"],
             1, True),
        Goal("bfloat16 / float32, forward+backward",
             ms["cpu, forward+backward, bfloat16"] / ms["cpu, forward+backward"], 1, True),
        Goal("forward's peak memory / (outputs + lse)", peak / needed, 1.001, True),
    ]  # fmt: skip


def run_network(record: Record, seconds: float) -> list[Goal]:
    """50 x 7 x 7, which the caches hold, against the unfold reference and global attention."""
    tensors = draw(NETWORK, torch.float32, CPU)
    heads_first = [t.flatten(1, 2).transpose(1, 2).contiguous() for t in tensors[:3]]
    error = checked(NETWORK, tensors)
    calls: dict[str, Callable[[], object]] = {
        **passes(NETWORK, "cpu", tensors, "cpu"),
        **passes(NETWORK, "reference", tensors, "unfold"),
        "global, forward": make_call(global_attention, tensors, "forward"),
        "global heads-first, forward": lambda: torch.nn.functional.scaled_dot_product_attention(
            *heads_first
        ),
    }
    times = in_turns(calls, seconds, turns=NETWORK_TURNS)
    note(record, NETWORK, times, error=error)
    ms = {name: timing.p50_ms for name, timing in times.items()}
    best_global = min(ms["global, forward"], ms["global heads-first, forward"])
    return [
        Goal("unfold / forward, 7 x 7", ms["unfold, forward"] / ms["cpu, forward"], 100, False),
        Goal("global attention / forward, 7 x 7", best_global / ms["cpu, forward"], 5, False),
    ]


def run_maps(record: Record, seconds: float) -> list[Goal]:
    """Cost per token over the side of the map, with equally many tokens."""
    calls: dict[str, Callable[[], object]] = {}
    for shape in MAPS:
        tensors = draw(shape, torch.float32, CPU)
        checked(shape, tensors)
        for name, call in passes(shape, "cpu", tensors, shape.name).items():
            calls[name] = call
    times = in_turns(calls, seconds)
    goals = []
    for what in ("forward", "forward+backward"):
        costs = []
        for shape in MAPS:
            timing = times[f"{shape.name}, {what}"]
            tokens = shape.batch * shape.tokens
            costs.append(timing.p50_ms * 1e6 / tokens)
            note(record, shape, {f"cpu, {what}": timing}, ns_per_token=costs[-1])
        goals.append(Goal(f"{what}, dearest / cheapest token", max(costs) / min(costs), 1.5, True))
    return goals


def run_table(record: Record, seconds: float, dtypes: Sequence[torch.dtype]) -> list[Goal]:
    """Windows, head dimensions and dtypes, as fractions of the copy bandwidth."""
    bandwidth = record.setting["copy_bytes_per_second"]
    lines = []
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        for shape in TABLE:
            tensors = draw(shape, dtype, CPU)
            error = checked(shape, tensors)
            calls = {
                f"cpu, {what}, {name}": make_call(attend(shape, "cpu"), tensors, what)
                for what in ("forward", "backward")
            }
            times = in_turns(calls, seconds)
            fractions = []
            for key, timing in times.items():
                needed = shape.fewest_bytes(key.split(", ")[1], dtype)
                fractions.append(needed / (timing.p50_ms / 1e3) / bandwidth)
                note(record, shape, {key: timing}, error=error, fraction=fractions[-1])
            lines.append((name, shape, fractions))
    print(f"\nbytes / time / copy bandwidth ({bandwidth / 1e9:.1f} GB/s), forward and backward")
    for name, shape, (forward, backward) in lines:
        print(f"  {name:<10}{shape.name:<8}{forward:8.2f}{backward:8.2f}")
    return []


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s")
    parser.add_argument("--dtypes", default="float32,bfloat16,float16,float64", help="of the table")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="spent on each timing (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"--parts must be of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    known = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    dtypes = arguments.dtypes.split(",")
    if unknown := set(dtypes) - set(known):
        raise UserError(f"--dtypes must be of {', '.join(known)}; got {', '.join(sorted(unknown))}")
    if not 0 < arguments.seconds < 60:
        raise UserError(f"--seconds must be above 0 and below 60, got {arguments.seconds:g}")
    record = measure.start_record("cpu", CPU)
    record.setting["copy_bytes_per_second"] = measure.copy_bandwidth(CPU)
    record.setting["cpu_capability"] = capability()
    goals: list[Goal] = []
    for part in parts:
        print(part, flush=True)
        if part == "table":
            goals += run_table(record, arguments.seconds / 4, [known[name] for name in dtypes])
        else:
            run = {"large": run_large, "network": run_network, "maps": run_maps}[part]
            goals += run(record, arguments.seconds)
        if arguments.json is not None:
            record.setting["goals"] = [str(goal) for goal in goals]
            record.save(arguments.json)
    print()
    for goal in goals:
        print(goal)
    return 0


def capability() -> str:
    """The instruction set of the CPU kernels."""
    attend(NETWORK, "cpu")(*draw(Shape("one", 1, 1, 1, 8, 8, PAPER), torch.float32, CPU)[:3])
    return str(torch.ops.sdwa.cpu_capability())


if __name__ == "__main__":
    measure.run_main(main)
