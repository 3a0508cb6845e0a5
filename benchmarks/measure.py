"""How things are measured here: time, peak memory, and the machine's own limits.

A timing is the 20th, 50th and 80th percentile over many runs.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.record import Record, Timing, dtype_name

Call = Callable[[], object]
Sampler = Callable[[Sequence[Call]], float]  # milliseconds per call, of calls one after the other
Key = TypeVar("Key", bound=Hashable)

FEWEST_RUNS = 5  # fewer tell nothing about the 20th and 80th percentile
MOST_RUNS = 300  # enough for steady percentiles

# Time


def sample_in_turns(
    calls: Mapping[Key, Call | Iterator[Call]],
    sampler: Sampler,
    runs: Mapping[Key, int],
    *,
    turns: int | None = None,
    bunch: int = 1,
    rotate: bool = False,
) -> dict[Key, list[float]]:
    """Milliseconds of each run of each call: the loop behind every timing here.

    Args:
        calls: what to call; an endless iterator gives another call each time, such as the same
            operation on other tensors, which are not in a cache.
        sampler: `sampler_for(device)`, or another clock.
        runs: number of samples of each call.
        turns: number of turns that the runs are spread over, so that whatever else the machine
            does falls on all calls alike. With a few, a call mostly follows itself, and tensors
            that fit into the caches are found there. None: as many as the most runs.
        bunch: calls per sample, for those that are too short for the clock.
        rotate: another call is the first in each turn.
    """
    endless = {key: itertools.repeat(c) if callable(c) else c for key, c in calls.items()}
    keys = list(calls)
    samples: dict[Key, list[float]] = {key: [] for key in keys}
    turns = turns or max(runs.values())
    for turn in range(turns):
        first = turn % len(keys) if rotate else 0
        for key in keys[first:] + keys[:first]:
            while len(samples[key]) < runs[key] * (turn + 1) // turns:
                samples[key].append(sampler([next(endless[key]) for _ in range(bunch)]))
    return samples


def time_call(
    calls: Call | Sequence[Call],
    device: torch.device,
    *,
    seconds: float = 1.0,
    fewest_runs: int = FEWEST_RUNS,
    first_ms: float | None = None,
) -> Timing:
    """Times one call after a warm-up.

    Args:
        calls: what to call; a sequence is gone through in turn, such as the same operation on
            different tensors, so that no call finds its inputs in a cache.
        device: where it runs; a GPU is timed by its own events.
        seconds: time to spend, warm-up left out.
        fewest_runs: as of `runs_within`. But where one call takes more than twice `seconds`, it is
            timed once.
        first_ms: what one call took just before, which warmed up; None: one is made.
    """
    calls = [calls] if callable(calls) else list(calls)
    sampler = sampler_for(device)
    cycle = itertools.cycle(calls)
    if first_ms is None:
        first_ms = sampler([next(cycle)])
    if first_ms > 2e3 * seconds:
        return Timing.of([sampler([next(cycle)])])
    for _ in calls:
        next(cycle)()
    # A GPU needs some time to leave its idle clock.
    warm_until = time.perf_counter() + min(0.2, seconds / 4)
    estimate = sampler([next(cycle)])
    while time.perf_counter() < warm_until:
        estimate = min(estimate, sampler([next(cycle)]))
    # A launch takes the host up to 0.2 ms, during which a GPU that is not told more is idle.
    bunch = max(5, int(2 / max(estimate, 1e-2))) if device.type == "cuda" else 1
    runs = runs_within(seconds, estimate * bunch, fewest_runs)
    gc.collect()
    (samples,) = sample_in_turns({None: cycle}, sampler, {None: runs}, bunch=bunch).values()
    return Timing.of(samples)


def runs_within(seconds: float, call_ms: float, fewest: int = FEWEST_RUNS) -> int:
    """Number of samples that fill the time: at least `fewest`, at most `MOST_RUNS`."""
    return min(max(int(seconds * 1e3 / max(call_ms, 1e-6)), fewest), MOST_RUNS)


def time_replay(
    calls: Call | Sequence[Call], device: torch.device, *, copies: int = 20, seconds: float = 1.0
) -> Timing:
    """Times one call inside a CUDA graph, which leaves out what the host takes to launch it.

    Args:
        calls: as of `time_call`; they must be safe to capture.
        device: an NVIDIA GPU.
        copies: calls in the captured graph, at least one of each.
        seconds: time to spend.
    """
    calls = [calls] if callable(calls) else list(calls)
    copies = max(copies, len(calls))
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for call in calls * 2:
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(copies):
            calls[turn % len(calls)]()
    whole = time_call(graph.replay, device, seconds=seconds)
    parts = (whole.p20_ms / copies, whole.p50_ms / copies, whole.p80_ms / copies)
    return Timing(*parts, runs=whole.runs)


def sampler_for(device: torch.device) -> Sampler:
    """What takes one sample on a device: a GPU's events, or the host's clock."""
    return _event_sample if device.type == "cuda" else clock_sample


def clock_sample(calls: Sequence[Call]) -> float:
    """Milliseconds per call, of calls made one after the other, by the host's clock."""
    start = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - start) * 1e3 / len(calls)


def _event_sample(calls: Sequence[Call]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for call in calls:
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / len(calls)


# Memory


def peak_memory(call: Call, device: torch.device) -> tuple[int, float]:
    """Most bytes held at once by tensors that `call` makes, results included, inputs not.

    Returns:
        The bytes, and about how many milliseconds the call took.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated(device) - before
        return peak, (time.perf_counter() - start) * 1e3
    activities = [torch.profiler.ProfilerActivity.CPU]
    # Else it complains where there is no GPU, and newer ones tell when they start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with torch.profiler.profile(
        activities=activities, profile_memory=True, acc_events=True
    ) as profile:
        start = time.perf_counter()  # the profiler takes its time to start
        call()
        taken = (time.perf_counter() - start) * 1e3
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text("utf-8"))["traceEvents"]
    changes = [e["args"] for e in events if e.get("name") == "[memory]"]
    totals = [change["Total Allocated"] for change in changes]
    before = totals[0] - changes[0]["Bytes"] if totals else 0
    return max([before, *totals]) - before, taken


# The machine's own limits


def copy_bandwidth(device: torch.device, seconds: float = 1.0) -> float:
    """Bytes per second, read plus written, of a copy far larger than the caches."""
    # Many times the last-level cache, which is at most 128 MiB on a GPU and mostly less on a CPU.
    size = 2**28 if device.type == "cpu" else 2**30
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    timing = time_call(lambda: target.copy_(source), device, seconds=seconds)
    return 2 * size / timing.p50_ms * 1e3


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations per second of a large matrix product, a multiply-add counted as two."""
    # Large enough for the full rate, and milliseconds long on either.
    size = 1024 if device.type == "cpu" else 8192
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    timing = time_call(lambda: left @ right, device, seconds=seconds)
    return 2 * size**3 / timing.p50_ms * 1e3


def cache_bytes(device: torch.device) -> int:
    """Size of the last-level cache; 32 MiB where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text("utf-8").strip()
        return int(size.removesuffix("K")) * 2**10
    except (OSError, ValueError):
        return 2**25


def note_limits(record: Record, device: torch.device, dtypes: Sequence[torch.dtype]) -> None:
    """Measures the machine's copy bandwidth and matrix rate, where the record lacks them."""
    seconds = 1.0 if device.type == "cpu" else 0.2  # a copy takes a GPU less than a millisecond
    if "copy_bytes_per_second" not in record.setting:
        record.setting["copy_bytes_per_second"] = copy_bandwidth(device, seconds)
    rates = record.setting.setdefault("matrix_operations_per_second", {})
    for dtype in dtypes:
        name = dtype_name(dtype)
        if name not in rates:
            rates[name] = matrix_rate(device, dtype, seconds)
