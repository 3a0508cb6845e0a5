"""Latency of the whole network for one image, by kind of attention, call by call in turns.

    python -m benchmarks.latency --json benchmarks/results/cpu-latency.json

Nearly all of the time goes into convolutions, the same for all, so the kinds lie a few percent
apart, which is less than a machine wavers from minute to minute. So all contenders hold the same
weights, every round calls each of them once, one after the other in changing order, and what
counts is the difference within a round: its median, with an interval that holds the true median
with 95 % confidence. "unfold" is the dilated network on the reference backend.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from functools import partial

import timm
import torch
from torch import Tensor, nn

import cfmrfn  # noqa: F401  registers the networks
from benchmarks import command_line, measure
from benchmarks.record import Measurement, Timing, UserError, start_record
from benchmarks.training import NUM_CLASSES

CONTENDERS = {
    "dilated": {"attention": "dilated"},
    "unfold": {"attention": "dilated", "backend": "reference"},
    "window": {"attention": "window"},
    "global": {"attention": "global"},
}
CPU = torch.device("cpu")


def networks(model: str) -> dict[str, nn.Module]:
    """The contenders, in eval mode, with one set of weights."""
    first, *_ = found = {
        name: timm.create_model(model, num_classes=NUM_CLASSES, **options).eval()
        for name, options in CONTENDERS.items()
    }
    weights = found[first].to(memory_format=torch.channels_last).state_dict()
    for network in found.values():
        network.load_state_dict(weights, assign=True)
    return found


@torch.no_grad()
def infer(network: nn.Module, image: Tensor) -> Tensor:
    """Its logits."""
    return network(image)


def median_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high): order statistics between which the true median is, 95 times of 100."""
    ordered = sorted(values)
    half = 0.98 * math.sqrt(len(ordered))  # 1.96 deviations of a binomial's number at 1/2
    low = max(0, math.floor(len(ordered) / 2 - half))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + half))
    return statistics.median(ordered), ordered[low], ordered[high]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="cfmrfn_base", help="preset (%(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="side (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile the networks")
    parser.add_argument("--rounds", type=int, default=200, help="(%(default)s)")
    command_line.add_options(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 10:
        raise UserError(f"--rounds must be at least 10, got {arguments.rounds}")
    if not timm.is_model(arguments.model):
        raise UserError(
            f"--model must be one of {', '.join(timm.list_models('cfmrfn*'))}; "
            f"got {arguments.model}"
        )
    torch.manual_seed(0)
    record = start_record("latency", CPU)
    size = arguments.image_size
    image = torch.randn(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    calls = {
        name: partial(infer, torch.compile(network) if arguments.compile else network, image)
        for name, network in networks(arguments.model).items()
    }
    torch.testing.assert_close(calls["dilated"](), calls["unfold"](), rtol=1e-3, atol=1e-4)
    for call in calls.values():  # the first round is not counted
        call()
    rounds = dict.fromkeys(calls, arguments.rounds)
    samples = measure.sample_in_turns(calls, measure.clock_sample, rounds, rotate=True)
    how = "compiled" if arguments.compile else "eager"
    case = f"{arguments.model}, batch 1, {size} px, {how}"
    print(f"{case}, {arguments.rounds} rounds")
    print(f"{'':10}{'p50 ms':>9}   {'more than dilated, ms (95 %)':>34}")
    for name, values in samples.items():
        timing = Timing.of(values)
        more = [a - b for a, b in zip(values, samples["dilated"], strict=True)]
        median, low, high = median_with_interval(more)
        details = {"more_than_dilated_ms": {"median": median, "low": low, "high": high}}
        record.measurements.append(
            Measurement(case, name, "latency", "float32", timing, None, details)
        )
        print(f"{name:10}{timing.p50_ms:>9.2f}   {f'{median:.2f} ({low:.2f}..{high:.2f})':>34}")
    if arguments.json is not None:
        record.save(arguments.json)
        print(f"written: {arguments.json}")
    return 0


if __name__ == "__main__":
    command_line.run_main(main)
