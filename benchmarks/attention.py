"""Attention side by side: sdwa's backends, peers, plain windows, global attention.

Whatever computes a wrong result is not timed: outputs and gradients of the first and the last
image are compared with the float64 reference before. A copy of as many bytes as the operator must
move at least is timed in the same run: it is the floor.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import command_line, measure, peers, plots
from benchmarks.command_line import choose
from benchmarks.peers import Attend, Contender, Problem
from benchmarks.record import DTYPES, Measurement, Record, dtype_name, start_record
from benchmarks.report import best_of_ours
from benchmarks.shapes import SHAPE_SETS, Shape
from sdwa import reference
from sdwa.arguments import make_problem

PASSES = ("forward", "backward", "forward+backward")
# Largest difference from float64 over the largest exact value; PyTorch's own steps in that dtype
# lose up to half of this.
LARGEST_ERROR = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.bfloat16: 4e-2,
    torch.float16: 5e-3,
}
COPY = "copy"
MOST_INPUT_SETS = 8  # of small inputs, more would take their time to make


class WrongResult(ValueError):
    """A contender's output or gradient is not what it should be."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How each contender is timed.

    Attributes:
        passes: which of `PASSES`.
        seconds: spent on each timing.
        replay: also time inside a CUDA graph.
        warm: also time with the inputs in the cache.
        repeats: number of runs whose bits are compared; 0: none.
    """

    passes: tuple[str, ...] = ("forward", "forward+backward")
    seconds: float = 1.0
    replay: bool = False
    warm: bool = False
    repeats: int = 0


def run(
    record: Record,
    shapes: Sequence[Shape],
    chosen: Sequence[Contender],
    dtype: torch.dtype,
    device: torch.device,
    options: Options,
    save: Callable[[], None] = lambda: None,
) -> int:
    """Measures every contender on every shape, except what the record already holds.

    Args:
        record: gets the measurements, and a line for each contender that is left out.
        shapes, chosen: what to time, and whom.
        dtype, device: of the tensors.
        options: how.
        save: called after each measurement.

    Returns:
        How many of sdwa's own backends failed or computed a wrong result.
    """
    failures = 0
    for shape in shapes:
        if shape.gpu_only and device.type != "cuda":
            record.skip(f"shape {shape}: only for a GPU")
    shapes = [s.on(device) for s in shapes if device.type == "cuda" or not s.gpu_only]
    for contender in chosen:
        for line in refusals(contender, shapes, dtype, device, options.passes):
            record.skip(line)
    for shape in shapes:
        before = len(record.measurements)
        tensors = draw(shape, dtype, device)
        exact: dict[str, list[Tensor]] = {}
        for contender in chosen:
            try:
                _measure(record, shape, contender, tensors, exact, options, save)
            except Exception as error:
                # A peer may fail in its own ways; the rest runs.
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                kind = "" if isinstance(error, WrongResult) else f"{type(error).__name__}: "
                record.skip(f"{contender.name} on {shape}, {dtype_name(dtype)}: {kind}{reason}")
                # The unfold reference takes many times the memory of the kernels.
                fits = not isinstance(error, torch.OutOfMemoryError)
                failures += contender.is_ours and (fits or contender.name != "reference")
            save()
        del tensors, exact  # their memory is the copy's
        _measure_copy(record, shape, dtype, device, options)
        save()
        if len(record.measurements) > before:
            print(table(record, shape.name), flush=True)
    return failures


def refusals(
    contender: Contender,
    shapes: Sequence[Shape],
    dtype: torch.dtype,
    device: torch.device,
    passes: Sequence[str],
) -> list[str]:
    """A line for each reason why a contender is left out, with the passes and shapes it is for."""
    refused: dict[str, dict[str, list[str]]] = {}
    for shape in shapes:
        for what in passes:
            problem = Problem(shape, dtype, device, training=what != "forward")
            if reason := contender.refuses(problem):
                refused.setdefault(reason, {}).setdefault(what, []).append(shape.name)
    lines = []
    for reason, by_pass in refused.items():
        who = [contender.name, dtype_name(dtype)]
        if len(by_pass) < len(passes):
            who += by_pass
        names = next(iter(by_pass.values()))
        if len(names) < len(shapes):
            who += names
        lines.append(f"{', '.join(who)}: {reason}")
    return lines


def _measure(
    record: Record,
    shape: Shape,
    contender: Contender,
    tensors: Sequence[Tensor],
    exact: dict[str, list[Tensor]],
    options: Options,
    save: Callable[[], None],
) -> None:
    query = tensors[0]
    attend: Attend | None = None
    notes: dict[str, Any] = {}
    for what in options.passes:
        if record.find((shape.name, contender.name, what, dtype_name(query.dtype))):
            continue
        problem = Problem(shape, query.dtype, query.device, training=what != "forward")
        if contender.refuses(problem):
            continue
        if attend is None:
            attend = contender.prepare(problem, notes)
        if contender.computes not in exact:
            exact[contender.computes] = exact_results(shape, contender.computes, tensors)
        error = check(shape, attend, tensors, exact[contender.computes], problem.training)
        if options.repeats:
            notes["identical_repeats"] = check_repeats(attend, tensors, what, options.repeats)
            if contender.is_ours and not notes["identical_repeats"]:
                raise WrongResult(f"{what}: the bits differ from run to run")
        details = {
            "error": error,
            "fewest_bytes": shape.fewest_bytes(what, query.dtype),
            "operations": shape.operations(what),
            "shape": shape.as_json(),
            **notes,
        }
        sets = input_sets(shape, query.dtype, query.device)
        copies = [tensors] + [[t.clone() for t in tensors] for _ in range(sets - 1)]
        calls = [make_call(attend, inputs, what) for inputs in copies]
        peak, first_ms = measure.peak_memory(calls[0], query.device)
        timing = measure.time_call(calls, query.device, seconds=options.seconds, first_ms=first_ms)
        if options.warm:
            warm = measure.time_call(calls[0], query.device, seconds=options.seconds)
            details["warm_p50_ms"] = warm.p50_ms
        if options.replay and query.device.type == "cuda" and what != "backward":
            details |= _replay(calls, query.device, options.seconds)
        record.measurements.append(
            Measurement(
                shape.name, contender.name, what, dtype_name(query.dtype), timing, peak, details
            )
        )
        save()


def _replay(calls: Sequence[Callable], device: torch.device, seconds: float) -> dict[str, Any]:
    """Time in a CUDA graph; a contender that cannot be captured is still timed without."""
    try:
        return {"graph_p50_ms": measure.time_replay(calls, device, seconds=seconds).p50_ms}
    except RuntimeError as error:
        torch.cuda.synchronize()
        return {"no_graph": str(error).splitlines()[0]}


def _measure_copy(
    record: Record, shape: Shape, dtype: torch.dtype, device: torch.device, options: Options
) -> None:
    for what in options.passes:
        if record.find((shape.name, COPY, what, dtype_name(dtype))):
            continue
        size = shape.fewest_bytes(what, dtype) // 2
        calls = _copies(size, input_sets(shape, dtype, device), device)
        timing = measure.time_call(calls, device, seconds=min(0.5, options.seconds))
        details: dict[str, Any] = {"fewest_bytes": 2 * size, "shape": shape.as_json()}
        if options.replay and device.type == "cuda":
            details |= _replay(calls, device, options.seconds)
        record.measurements.append(
            Measurement(shape.name, COPY, what, dtype_name(dtype), timing, None, details)
        )
        del calls  # before the next are made: of the largest shape both would not fit


def _copies(size: int, sets: int, device: torch.device) -> list[Callable[[], Tensor]]:
    """Functions that copy so many bytes each, between memory of their own."""
    sources = [torch.ones(size, dtype=torch.uint8, device=device) for _ in range(sets)]
    return [partial(torch.zeros_like(source).copy_, source) for source in sources]


# Correctness comes first


def draw(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """query, key, value and the gradient of out, (batch, height, width, heads, head_dim) each."""
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.empty(shape.dims, dtype=dtype, device=device).normal_(generator=generator)
        for _ in range(4)
    ]


def exact_results(shape: Shape, computes: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """out and the gradients of query, key, value in float64, of `some` of each tensor.

    Images and heads do not depend on each other, so the first and the last image and one head of
    each dilation tell enough.
    """
    query, key, value, grad_out = (some(t, shape).double() for t in tensors)
    inputs = [t.requires_grad_() for t in (query, key, value)]
    if computes == "global":
        out = peers.global_attention(*inputs)
    else:
        dilation = [shape.dilation[head] for head in checked_heads(shape)]
        problem = make_problem(
            *inputs,
            shape.window,
            1 if computes == "window" else dilation,
            None,
            None,
            shape.padding_mode,
        )
        out, _ = reference.attention(problem, *inputs, None)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad_out)]


def checked_heads(shape: Shape) -> list[int]:
    """The first head of each dilation."""
    return [shape.dilation.index(dilation) for dilation in sorted(set(shape.dilation))]


def some(tensor: Tensor, shape: Shape) -> Tensor:
    """The first and the last image, and one head of each dilation, of a tensor of that shape."""
    images = sorted({0, shape.batch - 1})
    return tensor.detach()[images][..., checked_heads(shape), :]


def check(
    shape: Shape,
    attend: Attend,
    tensors: Sequence[Tensor],
    exact: Sequence[Tensor],
    training: bool,
) -> float:
    """Largest error of the output, and with `training` of the gradients.

    Returns:
        The largest difference from the float64 result over the largest value of that result.

    Raises:
        WrongResult: it is larger than rounding explains.
    """
    what = "forward+backward" if training else "forward"
    results = make_call(attend, tensors, what)()
    limit = LARGEST_ERROR[tensors[0].dtype]
    worst = 0.0
    names = ("out", "grad_query", "grad_key", "grad_value")
    for name, result, expected in zip(names, results, exact, strict=False):
        difference = some(result, shape).double() - expected
        error = (difference.abs().max() / expected.abs().max()).item()
        if not error <= limit:
            raise WrongResult(
                f"{name} is wrong: error {error:.1e}, at most {limit:.0e} is rounding"
            )
        worst = max(worst, error)
    return worst


def check_repeats(attend: Attend, tensors: Sequence[Tensor], what: str, repeats: int) -> bool:
    """Are all bits of the results the same in every run?"""
    call = make_call(attend, tensors, "forward" if what == "forward" else "forward+backward")
    first = call()
    return all(
        all(torch.equal(a, b) for a, b in zip(first, call(), strict=True)) for _ in range(repeats)
    )


def make_call(
    attend: Attend, tensors: Sequence[Tensor], what: str
) -> Callable[[], Sequence[Tensor]]:
    """A function without arguments that computes one pass and returns its results."""
    query, key, value, grad_out = tensors
    if what == "forward":

        def forward() -> Sequence[Tensor]:
            with torch.no_grad():
                return (attend(query, key, value),)

        return forward
    inputs = [t.detach().requires_grad_() for t in (query, key, value)]
    if what == "backward":
        kept = attend(*inputs)
        return lambda: torch.autograd.grad(kept, inputs, grad_out, retain_graph=True)

    def forward_backward() -> Sequence[Tensor]:
        out = attend(*inputs)
        return (out, *torch.autograd.grad(out, inputs, grad_out))

    return forward_backward


def input_sets(shape: Shape, dtype: torch.dtype, device: torch.device) -> int:
    """Different inputs to go through in turn, so that none is found in the last-level cache.

    Up to MOST_INPUT_SETS: a larger cache holds those of a small shape.
    """
    one = shape.fewest_bytes("forward", dtype)
    return min(MOST_INPUT_SETS, 1 + 2 * measure.cache_bytes(device) // one)


# Output


def table(record: Record, case: str) -> str:
    """What was measured on one shape, as text.

    "times" is over the time of sdwa's default backend, "error" the largest difference from float64
    over the largest value.
    """
    rows = [m for m in record.measurements if m.case == case]
    bandwidth = record.setting["copy_bytes_per_second"]
    first = rows[0].details["shape"]
    lines = [
        f"{case}: {first['batch']} x {first['height']} x {first['width']}, {first['heads']} heads "
        f"of {first['head_dim']}, window {first['kernel_size']}, "
        f"dilation {' '.join(map(str, first['dilation']))}, {first['padding_mode']}",
        f"  {'':<12}{'':<18}{'':<9} {'p50 ms':>10} {'p20..p80':>19} {'times':>8} {'of copy':>8} "
        f"{'peak MiB':>9} {'error':>8}",
    ]
    for row in rows:
        fraction = row.per_second("fewest_bytes") / bandwidth
        spread = f"{row.timing.p20_ms:.3f}..{row.timing.p80_ms:.3f}"
        ours = best_of_ours(m for m in rows if (m.what, m.dtype) == (row.what, row.dtype))
        times = "" if ours is None else f"{row.timing.p50_ms / ours.timing.p50_ms:.2f}"
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}"
        error = f"{row.details['error']:.0e}" if "error" in row.details else ""
        lines.append(
            f"  {row.contender:<12}{row.what:<18}{row.dtype:<9} {row.timing.p50_ms:>10.3f} "
            f"{spread:>19} {times:>8} {fraction:>8.3f} {peak:>9} {error:>8}"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    named = "\n".join(f"  {c.name:<12} {c.about}" for c in peers.contenders())
    sets = "\n".join(f"  {name:<14}{', '.join(map(str, s))}" for name, s in SHAPE_SETS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention",
        description=__doc__,
        epilog=f"shape sets:\n{sets}\n\nbackends:\n{named}\n\nA backend that cannot run, or whose "
        "result is wrong, is left out with a line that says why.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default_sets = "paper,dilateformer,maps,kernels"
    parser.add_argument("--shapes", default=default_sets, help=f"sets or shapes ({default_sets})")
    parser.add_argument("--backends", default="all", help="whom to time, with commas between (all)")
    parser.add_argument("--device", help="cpu or cuda (the GPU where there is one)")
    parser.add_argument(
        "--dtype", help="float32, bfloat16, float16, float64 (CPU: float32; GPU: bfloat16)"
    )
    parser.add_argument(
        "--passes", default="forward,forward+backward", help=f"of {', '.join(PASSES)} (%(default)s)"
    )
    parser.add_argument(
        "--graph", action="store_true", help="GPU: also time inside a CUDA graph, without launches"
    )
    parser.add_argument(
        "--warm", action="store_true", help="also time with the inputs in the cache"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=0,
        metavar="N",
        help="also compare the bits of N runs (%(default)s)",
    )
    command_line.add_options(parser, seconds=1.0, resume=True)
    parser.add_argument(
        "--plot",
        type=Path,
        nargs="?",
        const=Path("benchmarks/results"),
        metavar="FOLDER",
        help="draw plots there (benchmarks/results)",
    )
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    device = command_line.choose_device(arguments.device)
    command_line.check_seconds(arguments.seconds)
    record = start_record("attention", device, arguments.json, arguments.resume)
    sets = {
        **SHAPE_SETS,
        **{shape.name: (shape,) for group in SHAPE_SETS.values() for shape in group},
    }
    shapes = [s for name in choose("shape set", arguments.shapes, sets, record) for s in sets[name]]
    everyone = {contender.name: contender for contender in peers.contenders()}
    backends = ",".join(everyone) if arguments.backends == "all" else arguments.backends
    chosen = [everyone[name] for name in choose("backend", backends, everyone, record)]
    default_dtype = "float32" if device.type == "cpu" else "bfloat16"
    dtypes = [DTYPES[d] for d in choose("dtype", arguments.dtype or default_dtype, DTYPES, record)]
    passes = choose("pass", arguments.passes, PASSES, record)
    options = Options(
        tuple(passes), arguments.seconds, arguments.graph, arguments.warm, arguments.repeats
    )
    measure.note_limits(record, device, dtypes)

    def save() -> None:
        if arguments.json is not None:
            record.save(arguments.json)

    failures = sum(run(record, shapes, chosen, d, device, options, save) for d in dtypes)
    if arguments.plot is not None:
        for path in plots.draw(record, arguments.plot):
            print(f"drawn: {path}")
    return 1 if failures else 0


if __name__ == "__main__":
    command_line.run_main(main)
