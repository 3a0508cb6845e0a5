"""Microseconds of Python and dispatcher per eager call, beside scaled_dot_product_attention.

    python -m benchmarks.overhead [--output FILE]

Both get the same 7 x 7 map. With one head of 8 channels and one thread the arithmetic takes next to
nothing, and what is left is the way to the kernel and back; 8 heads of 64 are the paper's map.
Nothing is subtracted. Calls of the two alternate in short bunches, and the fastest bunch counts:
other work on the machine only ever adds time.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

import sdwa
from benchmarks.command_line import choose_device, run_main
from benchmarks.measure import Call, clock_sample, sample_in_turns
from benchmarks.record import ROOT, Measurement, Timing, start_record

SIDE = 7
CASES = {"1 x 8": (1, 8, 1), "8 x 64": (8, 64, (1, 1, 2, 2, 2, 3, 3, 3))}
TINY = "1 x 8"
BUNCH = 100  # calls: about a millisecond, far above what the clock resolves
BUNCHES = 200  # a few tenths of a second: some of them find the machine idle
ALLOWED = 2.0  # times the overhead of scaled_dot_product_attention


def sample(calls: Mapping[str, Call], device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each call, per bunch."""

    def host_sample(bunch: Sequence[Call]) -> float:  # the host's time, also where a GPU computes
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock_sample(bunch)

    for call in calls.values():
        for _ in range(BUNCH):
            call()
    gc.collect()
    gc.disable()
    try:
        return sample_in_turns(calls, host_sample, dict.fromkeys(calls, BUNCHES), bunch=BUNCH)
    finally:
        gc.enable()


def contenders(case: str, gradients: bool, device: torch.device) -> dict[str, Call]:
    """Both calls on the same numbers: (1, 7, 7, heads, head_dim) and (1, heads, 49, head_dim)."""
    heads, head_dim, dilation = CASES[case]
    maps = torch.randn(3, 1, SIDE, SIDE, heads, head_dim, device=device)
    query, key, value = (t.clone().requires_grad_(gradients) for t in maps)
    rows = [t.flatten(1, 2).transpose(1, 2).clone().requires_grad_(gradients) for t in maps]
    return {
        "sdwa": lambda: sdwa.sliding_dilated_window_attention(query, key, value, 3, dilation),
        "sdpa": lambda: F.scaled_dot_product_attention(*rows),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--device", help="cpu or cuda; the GPU where there is one")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/overhead.json")
    options = parser.parse_args()
    device = choose_device(options.device)
    torch.set_num_threads(1)
    record = start_record("overhead", device)
    print("case      gradients   sdwa us   sdpa us   ratio   (medians)")
    worst = 0.0
    for case in CASES:
        for gradients in (False, True):
            samples = sample(contenders(case, gradients, device), device)
            timings = {name: Timing.of(values) for name, values in samples.items()}
            fastest_us = {name: min(values) * 1e3 for name, values in samples.items()}
            what = "forward, with gradients" if gradients else "forward"
            record.measurements += [
                Measurement(
                    case, name, what, "float32", timing, None, {"fastest_us": fastest_us[name]}
                )
                for name, timing in timings.items()
            ]
            ratio = fastest_us["sdwa"] / fastest_us["sdpa"]
            if case == TINY:
                worst = max(worst, ratio)
            print(
                f"{case:9} {'yes' if gradients else 'no':9} {fastest_us['sdwa']:9.1f} "
                f"{fastest_us['sdpa']:9.1f} {ratio:7.2f}   "
                f"({timings['sdwa'].p50_ms * 1e3:.1f} and {timings['sdpa'].p50_ms * 1e3:.1f})"
            )
    record.save(options.output)
    print(f"written: {options.output}")
    return 0 if worst <= ALLOWED else 1


if __name__ == "__main__":
    run_main(main)
