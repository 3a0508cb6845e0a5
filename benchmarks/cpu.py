"""The CPU kernels against what the machine takes at least: goals, maps of every size, and a table.

    python -m benchmarks.cpu --json benchmarks/results/cpu-floor.json
    SDWA_CPU_CAPABILITY=avx2 python -m benchmarks.cpu --table --kernels 3,7 --head-dims 64

What is compared is timed in turns, so that whatever else the machine does at the time falls on all
alike. Whatever computes a wrong result is not timed.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import sdwa
from benchmarks import command_line, measure
from benchmarks.attention import check, draw, exact_results, make_call
from benchmarks.command_line import choose
from benchmarks.floor import Floor
from benchmarks.measure import Call
from benchmarks.peers import global_attention
from benchmarks.record import DTYPES, Measurement, Record, Timing, dtype_name, start_record
from benchmarks.shapes import PAPER, Shape
from cfmrfn.process.heap import keep_pages

CPU = torch.device("cpu")
LARGE = Shape("8x56x56", 8, 56, 56, 8, 64, PAPER)
NETWORK = Shape("50x7x7", 50, 7, 7, 8, 64, PAPER)
SIDES = (7, 14, 28, 56, 112, 224)
# With zero padding; windows of both are timed shifted as well.
BORDERS = (LARGE, Shape("56x56k7", 1, 56, 56, 4, 32, (1,) * 4, kernel_size=7))
MAPS = tuple(Shape(f"side{s}", SIDES[-1] ** 2 // s**2, s, s, 8, 64, PAPER) for s in SIDES)
KERNELS = (3, 5, 7, 9, 13)
HEAD_DIMS = (16, 24, 32, 48, 60, 64, 96, 128, 256)
PASSES = ("forward", "backward")
BOTH = ("forward", "forward+backward")
NETWORK_TURNS = 3  # few, so that the tensors of one call stay in the caches


class Timed(NamedTuple):
    """What is timed: a pass of one contender on a shape."""

    shape: Shape
    contender: str
    what: str
    dtype: str = "float32"


Calls = Mapping[Timed, Call]


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


def in_turns(calls: Calls, seconds: float, turns: int | None = None) -> dict[Timed, Timing]:
    """Times calls in turns (`measure.sample_in_turns`), each for about `seconds`."""
    runs = {}
    for key, call in calls.items():
        call()
        runs[key] = measure.runs_within(seconds, measure.clock_sample([call]))
    samples = measure.sample_in_turns(calls, measure.clock_sample, runs, turns=turns)
    return {key: Timing.of(values) for key, values in samples.items()}


def attend(shape: Shape, backend: str) -> Callable[..., Tensor]:
    """The operator on a shape."""
    return partial(sdwa.sliding_dilated_window_attention, **shape.arguments, backend=backend)


def passes(shape: Shape, backend: str, tensors: Sequence[Tensor]) -> Calls:
    """Forward, and forward with backward, of one backend."""
    function = attend(shape, backend)
    contender = "unfold" if backend == "reference" else backend
    return {
        Timed(shape, contender, what, dtype_name(tensors[0].dtype)): make_call(
            function, tensors, what
        )
        for what in BOTH
    }


def checked(shape: Shape, tensors: Sequence[Tensor]) -> float:
    """Largest error of the CPU kernels on these tensors; raises WrongResult."""
    exact = exact_results(shape, "dilated", tensors)
    return check(shape, attend(shape, "cpu"), tensors, exact, training=True)


def note(record: Record, timings: Mapping[Timed, Timing], **details: object) -> None:
    """Adds timings to the record."""
    for (shape, contender, what, dtype), timing in timings.items():
        facts = {"shape": shape.as_json(), **details}
        record.measurements.append(
            Measurement(shape.name, contender, what, dtype, timing, None, facts)
        )
        print(f"  {shape.name:<17}{contender:<20}{what:<18}{dtype:<10}{timing}", flush=True)


def run_large(record: Record, seconds: float) -> list[Goal]:
    """8 x 56 x 56 against a copy of two tensors and the unfold reference; peak memory."""
    tensors = draw(LARGE, torch.float32, CPU)
    halves = [t.bfloat16() for t in tensors]
    two, targets = tensors[:2], [torch.empty_like(t) for t in tensors[:2]]
    error = checked(LARGE, tensors)
    checked(LARGE, halves)
    clone = Timed(LARGE, "torch", "clone of two")
    calls: Calls = {
        clone: lambda: [t.clone() for t in two],
        Timed(LARGE, "torch", "copy of two"): lambda: [
            a.copy_(b) for a, b in zip(targets, two, strict=True)
        ],
        clone._replace(dtype="bfloat16"): lambda: [t.clone() for t in halves[:2]],
        **passes(LARGE, "cpu", tensors),
        **passes(LARGE, "cpu", halves),
        **passes(LARGE, "reference", tensors),
    }
    times = in_turns(calls, seconds)
    note(record, times, error=error)
    forward, both = (Timed(LARGE, "cpu", what) for what in BOTH)
    peak, _ = measure.peak_memory(calls[forward], CPU)
    needed = tensors[0].nbytes + tensors[0].nbytes // LARGE.head_dim
    measured = record.find((LARGE.name, forward.contender, forward.what, forward.dtype))
    assert measured is not None
    measured.details.update(forward_peak_bytes=peak, out_and_lse_bytes=needed)

    def ratio(above: Timed, below: Timed) -> float:
        return times[above].p50_ms / times[below].p50_ms

    goals = [
        Goal("forward / clone of two tensors", ratio(forward, clone), 1.5, at_most=True),
        Goal("forward's peak memory / (outputs + lse)", peak / needed, 1.001, at_most=True),
    ]
    for ours, least in ((forward, 50), (both, 30)):
        unfold, half = ours._replace(contender="unfold"), ours._replace(dtype="bfloat16")
        goals += [
            Goal(f"unfold / {ours.what}", ratio(unfold, ours), least, at_most=False),
            Goal(f"bfloat16 / float32, {ours.what}", ratio(half, ours), 1, at_most=True),
        ]
    return goals


def run_network(record: Record, seconds: float) -> list[Goal]:
    """50 x 7 x 7, which the caches hold, against the unfold reference and global attention."""
    tensors = draw(NETWORK, torch.float32, CPU)
    heads_first = [t.flatten(1, 2).transpose(1, 2).contiguous() for t in tensors[:3]]
    error = checked(NETWORK, tensors)
    ours = Timed(NETWORK, "cpu", "forward")
    everywhere = ours._replace(contender="global")
    everywhere_heads_first = ours._replace(contender="global heads-first")
    calls: Calls = {
        **passes(NETWORK, "cpu", tensors),
        **passes(NETWORK, "reference", tensors),
        everywhere: make_call(global_attention, tensors, "forward"),
        everywhere_heads_first: lambda: scaled_dot_product_attention(*heads_first),
    }
    times = in_turns(calls, seconds, turns=NETWORK_TURNS)
    note(record, times, error=error)
    ms = {key: timing.p50_ms for key, timing in times.items()}
    best_global = min(ms[everywhere], ms[everywhere_heads_first])
    unfold = ms[ours._replace(contender="unfold")]
    return [
        Goal("unfold / forward, 7 x 7", unfold / ms[ours], 100, at_most=False),
        Goal("global attention / forward, 7 x 7", best_global / ms[ours], 5, at_most=False),
    ]


def run_maps(record: Record, seconds: float) -> list[Goal]:
    """Cost per token over the side of the map, with equally many tokens."""
    calls: dict[Timed, Call] = {}
    for shape in MAPS:
        tensors = draw(shape, torch.float32, CPU)
        checked(shape, tensors)
        calls |= passes(shape, "cpu", tensors)
    times = in_turns(calls, seconds)
    goals = []
    for what in BOTH:
        costs = []
        for key, timing in times.items():
            if key.what == what:
                costs.append(timing.p50_ms * 1e6 / (key.shape.batch * key.shape.tokens))
                note(record, {key: timing}, ns_per_token=costs[-1])
        name = f"{what}, dearest / cheapest token"
        goals.append(Goal(name, max(costs) / min(costs), 1.5, at_most=True))
    return goals


def run_shifted(record: Record, seconds: float) -> list[Goal]:
    """Windows that move inwards at the border, against zero padding."""
    goals = []
    for zeros in BORDERS:
        shifted = dataclasses.replace(zeros, name=f"{zeros.name} shifted", padding_mode="shifted")
        calls: dict[Timed, Call] = {}
        for shape in (zeros, shifted):
            tensors = draw(shape, torch.float32, CPU)
            checked(shape, tensors)
            calls |= passes(shape, "cpu", tensors)
        times = in_turns(calls, seconds)
        note(record, times)
        for what in BOTH:
            inwards, centred = (times[Timed(s, "cpu", what)].p50_ms for s in (shifted, zeros))
            ratio = inwards / centred
            goals.append(Goal(f"shifted / zeros, {zeros.name}, {what}", ratio, 1.1, at_most=True))
    return goals


def table_shape(kernel: int, head_dim: int) -> Shape:
    """A row of the table."""
    return Shape(f"k{kernel}d{head_dim}", 4, 56, 56, 8, head_dim, PAPER, kernel_size=kernel)


def run_table(
    record: Record, seconds: float, dtypes: Sequence[str], shapes: Sequence[Shape]
) -> None:
    """Windows, head dimensions and dtypes, as fractions of the floor's time."""
    floor = Floor(record.setting["cpu_capability"], record.setting["copy_bytes_per_second"])
    lines = []
    for dtype in dtypes:
        for shape in shapes:
            # The reference of a large window takes too much memory on the whole map.
            small = dataclasses.replace(shape, batch=1, height=30, width=30)
            error = checked(small, draw(small, DTYPES[dtype], CPU))
            tensors = draw(shape, DTYPES[dtype], CPU)
            calls = {
                Timed(shape, "cpu", what, dtype): make_call(attend(shape, "cpu"), tensors, what)
                for what in PASSES
            }
            cells = []
            for key, timing in in_turns(calls, seconds).items():
                least = floor.milliseconds(shape, key.what, DTYPES[dtype])
                bound = max(least, key=least.__getitem__)
                fraction = least[bound] / timing.p50_ms
                note(record, {key: timing}, error=error, fraction=fraction, bound=bound)
                cells.append(f"{fraction:8.2f} {bound:<10}")
            lines.append(f"  {dtype:<10}{shape.name:<8}" + "".join(cells))
    record.setting["multiply_adds_per_second"] = floor.multiply_adds_per_second
    print(f"\nfloor / time, forward and backward, and what the floor is ({floor})")
    print("\n".join(lines))


PARTS_WITH_GOALS = {
    "large": run_large,
    "network": run_network,
    "maps": run_maps,
    "shifted": run_shifted,
}
PARTS = (*PARTS_WITH_GOALS, "table")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s")
    parser.add_argument("--table", action="store_true", help="the same as --parts table")
    for option, values in (
        ("--dtypes", DTYPES),
        ("--kernels", KERNELS),
        ("--head-dims", HEAD_DIMS),
    ):
        given = ",".join(map(str, values))
        parser.add_argument(option, default=given, help="of the table (%(default)s)")
    command_line.add_options(parser, seconds=1.0)
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    command_line.check_seconds(arguments.seconds)
    record = start_record("cpu", CPU)
    parts = choose("part", "table" if arguments.table else arguments.parts, PARTS, record)
    dtypes = choose("dtype", arguments.dtypes, DTYPES, record)
    kernels = choose("kernel", arguments.kernels, map(str, KERNELS), record)
    head_dims = choose("head dim", arguments.head_dims, map(str, HEAD_DIMS), record)
    shapes = [table_shape(int(kernel), int(dim)) for kernel in kernels for dim in head_dims]
    # Else what is timed is in large part the system's clearing of pages for results.
    record.setting["freed_memory_is_kept"] = keep_pages()
    record.setting["copy_bytes_per_second"] = measure.copy_bandwidth(CPU)
    record.setting["cpu_capability"] = capability()
    goals: list[Goal] = []
    for part in parts:
        print(part, flush=True)
        if part == "table":  # a quarter of the time each: there are hundreds of them
            run_table(record, arguments.seconds / 4, dtypes, shapes)
        else:
            goals += PARTS_WITH_GOALS[part](record, arguments.seconds)
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
    command_line.run_main(main)
