"""How things are measured here: time, peak memory, the machine's own limits, and the record of it.

A timing is the 20th, 50th and 80th percentile over many runs. Every file of results carries the
machine, the versions, the commit, the date and the command that made it.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import torch

import sdwa

Call = Callable[[], object]
Sampler = Callable[[Sequence[Call]], float]  # milliseconds per call, of calls one after the other
Key = TypeVar("Key", bound=Hashable)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
FEWEST_RUNS = 5  # a 20th percentile of fewer is the minimum
MOST_RUNS = 300  # more would not make percentiles steadier than the machine is
ROOT = Path(__file__).resolve().parent.parent
PEERS = ("triton", "natten", "timm", "torchvision")
# What a measured figure depends on; other changes in a checkout do not make a commit "changed".
MEASURED_PATHS = ("sdwa", "csrc", "cfmrfn", "setup.py")


class UserError(ValueError):
    """A wrong option or file: one line on stderr and exit status 2."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call at the 20th, 50th and 80th percentile, over `runs` samples."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    runs: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Percentiles of samples in milliseconds, interpolated linearly."""
        values = torch.tensor(samples, dtype=torch.float64)
        points = torch.quantile(values, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
        return cls(*points.tolist(), runs=len(samples))

    def __str__(self) -> str:
        return f"{self.p50_ms:.3f} ms ({self.p20_ms:.3f}..{self.p80_ms:.3f}, {self.runs} runs)"


@dataclass(frozen=True)
class Measurement:
    """What was measured of one contender on one case.

    Attributes:
        case: what was computed, such as the name of a shape.
        contender: who computed it.
        what: the part that was timed: "forward", "forward+backward", "sam step" ...
        dtype: "float32", "bfloat16" ...
        timing: of one call.
        peak_bytes: most memory held at once beyond what was held before the call.
        details: further figures, such as "error" or "fewest_bytes".
    """

    case: str
    contender: str
    what: str
    dtype: str
    timing: Timing
    peak_bytes: int | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Identifies a measurement in its file, and across files."""
        return (self.case, self.contender, self.what, self.dtype)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Measurement:
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**entry, "timing": Timing(**entry["timing"])})


@dataclass
class Record:
    """A file of measurements with all that one must know to repeat them.

    Attributes:
        benchmark: which tool made it: "attention", "training" ...
        setting: command, date, commit, machine, and limits such as the copy bandwidth.
        measurements: what was measured.
        left_out: one line for each contender or case that was not measured, with the reason.
    """

    benchmark: str
    setting: dict[str, Any]
    measurements: list[Measurement] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def skip(self, line: str) -> None:
        """Notes, once, what is not measured and why."""
        if line not in self.left_out:
            self.left_out.append(line)
            print(f"left out: {line}", file=sys.stderr, flush=True)

    def find(self, key: tuple[str, str, str, str]) -> Measurement | None:
        """The measurement of that key, or None."""
        return next((m for m in self.measurements if m.key == key), None)

    @property
    def on_gpu(self) -> bool:
        """Was a GPU the device? Its machine then names the architecture, such as sm_90."""
        return "(sm_" in self.setting["machine"]

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        text = json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)
        partial.write_text(text + "\n", "utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Record:
        """Reads a file that `save` wrote.

        Raises:
            UserError: it cannot be read, or is something else.
        """
        try:
            entries = json.loads(path.read_text("utf-8"))
            entries["measurements"] = [Measurement.from_json(m) for m in entries["measurements"]]
            return cls(**entries)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a file of results: {error}") from error


def start_record(
    benchmark: str, device: torch.device, path: Path | None = None, resume: bool = False
) -> Record:
    """A new record of this machine; with `resume`, the one at `path`, to be completed.

    Raises:
        UserError: the file to be resumed was made by another tool, machine or commit.
    """
    record = Record(benchmark, setting(device))
    if not resume or path is None or not path.exists():
        return record
    old = Record.load(path)
    for name in ("commit", "machine"):
        if old.setting[name] != record.setting[name]:
            raise UserError(
                f"{path} cannot be resumed: its {name} is {old.setting[name]}, "
                f"now it is {record.setting[name]}"
            )
    if old.benchmark != benchmark:
        raise UserError(f"{path} cannot be resumed: benchmarks.{old.benchmark} made it")
    return old


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
    # An event costs microseconds: very short calls are timed in bunches of 0.1 ms.
    bunch = max(1, int(0.1 / max(estimate, 1e-3))) if device.type == "cuda" else 1
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


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read plus written, of a copy far larger than the caches."""
    size = 2**28 if device.type == "cpu" else 2**30
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    timing = time_call(lambda: target.copy_(source), device)
    return 2 * size / timing.p50_ms * 1e3


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, a multiply-add counted as two."""
    size = 1024 if device.type == "cpu" else 8192
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    timing = time_call(lambda: left @ right, device)
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
    if "copy_bytes_per_second" not in record.setting:
        record.setting["copy_bytes_per_second"] = copy_bandwidth(device)
    rates = record.setting.setdefault("matrix_operations_per_second", {})
    for dtype in dtypes:
        name = dtype_name(dtype)
        if name not in rates:
            rates[name] = matrix_rate(device, dtype)


# The record


def setting(device: torch.device) -> dict[str, Any]:
    """Command, date, commit, machine, its load from others, and versions of this run."""
    return {
        "command": command(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": machine(device),
        "load": round(os.getloadavg()[0], 2),
        "versions": versions(),
    }


def command() -> str:
    """The command line of this run, as one would type it at the repository's root."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    program = f"-m {spec.name}" if spec is not None else Path(sys.argv[0]).name
    return " ".join(["python", program, *sys.argv[1:]])


def commit() -> str:
    """The commit checked out, with "+changes" where the measured code is not what it holds."""

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *MEASURED_PATHS)
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(device: torch.device) -> str:
    """The processor, cores and threads; and the GPU where it is the device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    host = f"{_processor()}, cores: {cores}, threads: {torch.get_num_threads()}"
    if device.type != "cuda":
        return host
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor}); {host}"


def versions() -> dict[str, str]:
    """Of Python, PyTorch, CUDA, this package and the peers that are installed."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sdwa": sdwa.__version__,
    }
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
    for name in PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The processor's name, with its widest vector instructions."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


# Command lines


def dtype_name(dtype: torch.dtype) -> str:
    """As in files and options, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def choose(option: str, names: str, known: Iterable[str], record: Record) -> list[str]:
    """The known ones of a list of names with commas between; the record notes the others.

    Raises:
        UserError: none is known.
    """
    known = tuple(known)
    asked = tuple(dict.fromkeys(names.split(",")))
    chosen = [name for name in asked if name in known]
    for name in asked:
        if name not in known:
            record.skip(f"unknown {option} {name!r}: known are {', '.join(known)}")
    if not chosen:
        raise UserError(f"{option} must be one of {', '.join(known)}; got {names!r}")
    return chosen


def add_options(
    parser: argparse.ArgumentParser, *, seconds: float | None = None, resume: bool = False
) -> None:
    """Adds the options that several tools share: --json, and where asked --seconds, --resume."""
    if seconds is not None:
        parser.add_argument(
            "--seconds", type=float, default=seconds, help="spent on each timing (%(default)s)"
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    if resume:
        parser.add_argument(
            "--resume",
            action="store_true",
            help="keep what FILE holds of this machine and commit, time the rest",
        )


def check_seconds(seconds: float) -> None:
    """Checks the option --seconds.

    Raises:
        UserError: it is not above 0 and below 60.
    """
    if not 0 < seconds < 60:
        raise UserError(f"--seconds must be above 0 and below 60, got {seconds:g}")


def choose_device(name: str | None) -> torch.device:
    """The device of that name; None: the GPU where PyTorch sees one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device must be cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu or cuda, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device")
    return device


def run_main(main: Callable[[], int | None]) -> None:
    """Runs a tool: a user's error becomes one line on stderr and exit status 2."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
