"""The record of what was measured: a JSON file with all that one must know to measure it again.

Every file of results carries the machine, the versions, the commit, the date and the command that
made it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import sdwa
from sdwa import problem

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("triton", "natten", "torch-harmonics", "timm", "torchvision")
# Names a file: processes that are given it measure one after the other, see `wait_for_turn`.
TURN = "SDWA_BENCHMARK_TURN"
# What a measured figure depends on; other changes in a checkout do not make a commit "changed".
MEASURED_PATHS = ("sdwa", "csrc", "cfmrfn", "setup.py")


def dtype_name(dtype: torch.dtype) -> str:
    """Its name in files and options, such as "float32"."""
    return str(dtype).removeprefix("torch.")


# By their names in files and options.
DTYPES = {dtype_name(dtype): dtype for dtype in problem.DTYPES}


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
        return cls(*points.tolist(), len(samples))

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

    def per_second(self, detail: str) -> float:
        """One of its details per second, such as "fewest_bytes" or "operations"."""
        return self.details[detail] / (self.timing.p50_ms / 1e3)

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
        UserError: the file to be resumed was made by another tool or commit, on another machine,
            or with other versions of packages.
    """
    wait_for_turn()
    record = Record(benchmark, setting(device))
    if not resume or path is None or not path.exists():
        return record
    old = Record.load(path)
    for name in ("commit", "machine", "versions"):
        if old.setting[name] != record.setting[name]:
            raise UserError(
                f"{path} cannot be resumed: its {name} {'are' if name == 'versions' else 'is'} "
                f"{old.setting[name]}, now {record.setting[name]}"
            )
    if old.benchmark != benchmark:
        raise UserError(f"{path} cannot be resumed: benchmarks.{old.benchmark} made it")
    return old


def wait_for_turn() -> None:
    """Waits until no other process measures that shares the file of `TURN`; kept until the exit.

    What a process does before, such as importing, so falls into the time in which others measure.
    """
    if path := os.environ.get(TURN):
        import fcntl  # not on every system

        turn = os.open(path, os.O_CREAT | os.O_RDWR)
        fcntl.flock(turn, fcntl.LOCK_EX)


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
    """The commit checked out, with "+changes" where the measured code is not what it holds.

    The variable SDWA_COMMIT says it for a copy whose history is another one or none.
    """
    if given := os.environ.get("SDWA_COMMIT"):
        return given

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
