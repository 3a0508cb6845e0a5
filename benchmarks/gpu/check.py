"""What only a GPU can tell, in runs of a few minutes.

    python -m benchmarks.gpu.check first       are the results right, and how fast are the kernels
    python -m benchmarks.gpu.check second      Triton, peers, the network
    python -m benchmarks.gpu.check more        what takes longest and decides least
    python -m benchmarks.gpu.check large peers some steps, by name

Needs a machine with PyTorch, pytest-xdist, ncu, compute-sanitizer and the compiled libraries; it
builds nothing. Steps that time nothing run side by side. Steps that time run one after the other,
and the next one already imports while the one before measures. What a step measured stands in its
file at once. A step that fails or overruns is reported, and the rest runs; the exit status is
then 1.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import sdwa
from benchmarks.command_line import run_main
from benchmarks.record import ROOT, TURN, Record, UserError
from benchmarks.report import training_table

PYTHON = sys.executable
# Of output that comes back from a machine that is reached by commands alone, the end is kept.
MOST_CHARACTERS = 11_000
# Each takes seconds to compile. They are of every kind: window, bias, mask, border, layout, row.
TRITON_CASES = {
    "bfloat16": "paper strided_map heads_first bias window_1x1 window_5 window_11x9 head_dim_3 "
    "head_dim_100 head_dim_256 scale_zero larger_map key_mask key_mask_masked key_mask_7_masked "
    "nothing_left_5x5 shifted causal",
    "float32": "paper_masked wide_packed expanded_key bias_masked bias_5x5 dilation_beyond_map "
    "window_3x5 window_7_masked window_13_beyond_map head_dim_3 head_dim_256 scale_large "
    "key_mask_5x5 nothing_left shifted_key_mask causal_rows_masked",
}
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
TAIL = 700  # characters of a failed step's output
TURN_FILE = "turn"
LEAST_SECONDS = 5  # nothing starts with less


class Step(NamedTuple):
    """One command.

    Attributes:
        name: of the step, and of its output in FOLDER/logs.
        seconds: after which it is stopped, counted from its turn.
        command: what is run; its first word is looked for before.
        aside: it times nothing, and may run beside others that time nothing.
        environment: more variables.
    """

    name: str
    seconds: int
    command: tuple[str, ...]
    aside: bool = False
    environment: dict[str, str] = {}  # noqa: RUF012  never changed


@dataclass
class Outcome:
    """How a step ended: "passed", or why it did not."""

    step: Step
    status: str
    seconds: float = 0.0
    output: str = ""


@dataclass
class Check:
    """A run of steps.

    Attributes:
        folder: where results and logs go.
        limit: seconds for everything.
        pack: file that all results are packed into whenever a step has ended, or None.
    """

    folder: Path
    limit: float
    pack: Path | None = None
    outcomes: list[Outcome] = field(default_factory=list)

    def run(self, steps: Sequence[Step]) -> None:
        """Runs what times nothing side by side, then the others in turn."""
        self.start = time.monotonic()
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self._run_together([step for step in steps if step.aside])
        self._run_in_turn([step for step in steps if not step.aside])

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self.limit - (time.monotonic() - self.start)

    def _run_together(self, steps: Sequence[Step]) -> None:
        running = [(step, started) for step in steps if (started := self._start(step))]
        while running:
            for step, process in list(running):
                age = time.monotonic() - process.started
                if process.poll() is not None or age > step.seconds or self.left < 0:
                    running.remove((step, process))
                    self._finish(step, process, age)
            time.sleep(0.1)

    def _run_in_turn(self, steps: Sequence[Step]) -> None:
        """One after the other; the next is started ahead when the one before it measures."""
        ahead: list[Process | None] = []
        for number, step in enumerate(steps):
            process = ahead.pop() if ahead else self._start(step)
            if process is None:
                continue
            turn = time.monotonic()
            while process.poll() is None and self.left > 0:
                if time.monotonic() - turn > step.seconds:
                    break
                if not ahead and number + 1 < len(steps) and self._is_measuring():
                    ahead.append(self._start(steps[number + 1]))
                time.sleep(0.05)
            self._finish(step, process, time.monotonic() - turn)

    def _is_measuring(self) -> bool:
        """Whether a process has the lock that `wait_for_turn` waits for."""
        with (self.folder / TURN_FILE).open("ab") as turn:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _start(self, step: Step) -> Process | None:
        if self.left < LEAST_SECONDS:
            self._note(Outcome(step, "no time left"))
            return None
        if shutil.which(step.command[0]) is None:
            self._note(Outcome(step, f"{step.command[0]} is not installed"))
            return None
        return Process(step, self.folder)

    def _finish(self, step: Step, process: Process, seconds: float) -> None:
        status = process.poll()
        if status is None:
            process.stop()
            said = f"stopped after {seconds:.0f} s"
        else:
            said = "passed" if status == 0 else f"status {status}"
        self._note(Outcome(step, said, seconds, process.log.read_text("utf-8", "replace")))

    def _note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        at = time.monotonic() - self.start
        print(f"{at:5.0f} s  {outcome.step.name}: {outcome.status}", flush=True)
        entries = [
            {"step": o.step.name, "status": o.status, "seconds": round(o.seconds, 1),
             "command": " ".join(o.step.command)}
            for o in self.outcomes
        ]  # fmt: skip
        (self.folder / "check.json").write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
        if self.pack is not None:
            partial = self.pack.with_name(self.pack.name + ".partial")
            with tarfile.open(partial, "w:gz") as archive:
                archive.add(self.folder, "results")
            partial.replace(self.pack)


class Process:
    """A step under way, its output in a file."""

    def __init__(self, step: Step, folder: Path) -> None:
        self.log = folder / "logs" / f"{step.name}.txt"
        self.started = time.monotonic()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "4",
            "PYTHONUNBUFFERED": "1",
            **step.environment,
        }
        if not step.aside:
            environment[TURN] = str(folder / TURN_FILE)
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                step.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                cwd=ROOT, env=environment, process_group=0,
            )  # fmt: skip

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        return self.popen.poll()

    def stop(self) -> None:
        """Ends it and all that it started."""
        os.killpg(self.popen.pid, signal.SIGTERM)
        try:
            self.popen.wait(3)
        except subprocess.TimeoutExpired:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()


def tool(name: str, *arguments: str) -> tuple[str, ...]:
    """The command of one of the benchmarks."""
    return (PYTHON, "-m", f"benchmarks.{name}", *arguments)


def tests(files: str, processes: int, chosen: str) -> tuple[str, ...]:
    """The command of tests of the operator, chosen by names and spread over processes."""
    names = [f"tests/sdwa/test_{name}.py" for name in files.split()]
    plugins = ("-p", "xdist.plugin", "-p", "pytest_timeout", "-p", "pytest_benchmark.plugin")
    spread = ("-n", str(processes), "--maxprocesses", str(processes), "--dist", "worksteal")
    # Warnings of the machine's versions are not what is asked.
    options = ("-q", "--tb=short", "--disable-warnings", "-o", "filterwarnings=default")
    limits = ("--maxfail=20", "--timeout=90")
    return (PYTHON, "-m", "pytest", *plugins, *spread, *options, *limits, *names, "-k", chosen)


def runs(folder: Path, device: str, poster: Path | None) -> dict[str, list]:
    """The steps of each run.

    Args:
        folder: where results go.
        device: "cuda", or "cpu" for a rehearsal: the same steps where there is no GPU.
        poster: a checkout of POSTER.
    """
    ours, second = ("cuda", "triton") if device == "cuda" else ("cpu", "reference")

    def attention(name: str, seconds: int, backends: str, shapes: str, *more: str) -> Step:
        command = tool(
            "attention", "--device", device, "--backends", backends, "--shapes", shapes,
            "--seconds", "0.05", "--json", str(folder / f"gpu-{name}.json"), *more,
        )  # fmt: skip
        return Step(name, seconds, command)

    passes = ("--passes", "forward,backward,forward+backward")
    both = ("--dtype", "bfloat16,float32")

    of_ours, but_gradcheck = f"([{ours}] or [{ours}-)", " and not gradcheck"
    of_triton = " or ".join(
        f"[{second}-{case}-torch.{dtype}]"
        for dtype, cases in TRITON_CASES.items()
        for case in cases.split()
    )

    def aside(name: str, command: tuple[str, ...]) -> Step:
        # Plugins that are not named take their time to be imported.
        environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
        return Step(name, 100, command, True, environment)

    def sanitizer(name: str, part: str) -> Step:
        command = (
            "compute-sanitizer", "--tool", name, "--kernel-name", "kns=sdwa",
            "--error-exitcode", "9", PYTHON, "-m", "benchmarks.gpu.small_set",
            "--backend", ours, "--part", part,
        )  # fmt: skip
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"}
        return Step(f"{name}-{part[0]}", 100, command, True, environment)

    profile = [
        Step(
            f"profile-{dtype}",
            60,
            (
                "ncu", "--set", "full", "--clock-control", "none", "--kernel-name", "regex:sdwa",
                "--kernel-name-base", "mangled", "--force-overwrite",
                "--export", str(folder / f"gpu-profile-{dtype}"), "--page", "details",
                *tool("gpu.profiling", "--shape", shapes, "--pass", "forward,backward",
                      "--dtype", dtype, "--runs", "1"),
            ),
        )
        for dtype, shapes in (("bfloat16", "paper,map56,map224"), ("float32", "map56"))
    ]  # fmt: skip
    training = tool(
        "training", "--device", device, "--precision", "bf16", "--measures", "sam step",
        "--seconds", "1", "--json", str(folder / "gpu-training.json"),
        *(("--poster", str(poster)) if poster else ()),
    )  # fmt: skip
    network = tool(
        "training", "--device", device, "--precision", "bf16,float32", "--seconds", "0.3",
        "--measures", "throughput,latency", "--graph",
        "--json", str(folder / "gpu-network.json"),
    )  # fmt: skip
    return {
        "first": [
            aside("tests", tests("operator arguments modules swap", 6, of_ours + but_gradcheck)),
            aside("tests-pytorch", tests("opcheck functorch autocast tracing export", 6, of_ours)),
            aside("tests-triton", tests("operator", 8, of_triton)),
            *(sanitizer(name, f"{number}/2") for name in SANITIZERS for number in (1, 2)),
            attention("bfloat16", 60, ours, "paper,maps,dilateformer", *passes, "--graph",
                      "--dtype", "bfloat16"),
            attention("float32", 60, ours, "paper,maps,dilateformer", *passes, "--graph",
                      "--dtype", "float32"),
            *profile,
        ],
        "second": [
            # Fills the caches of what is compiled at run time, so that no timed step compiles.
            attention("compile-triton", 100, second, "paper,maps,dilateformer", *both)
            ._replace(aside=True),
            attention("compile-flex", 100, "flex", "paper,map28,map56", *both)
            ._replace(aside=True),
            attention("triton", 60, second, "paper,maps,dilateformer", *both, *passes),
            attention("peers", 60, f"{ours},natten,flex,reference,global", "paper,map28,map56",
                      *both),
            attention("choice", 60, f"{ours},{second}", "kernels,head_dims", *both, *passes),
            attention("repeats", 30, ours, "paper,base28,map14", *both, "--repeats", "20",
                      "--passes", "forward+backward"),
            attention("large", 40, ours, "large", *passes, "--dtype", "bfloat16"),
            Step("training", 60, training),
            Step("network", 60, network),
        ],
        "more": [
            aside("tests-compile", tests("compile onnx", 8, of_ours)),
            aside("tests-gradcheck", tests("operator", 1, f"{of_ours} and gradcheck")),
            attention("float16", 40, ours, "paper,maps", *passes, "--dtype", "float16"),
            Step("train", 180, (PYTHON, "-m", "cfmrfn.train", "--device", device, "--precision",
                                "bf16", "--output", str(folder / "run"))),
        ],
    }  # fmt: skip


def summary(check: Check) -> str:
    """What was measured, and the ends of the outputs of steps that failed, in `MOST_CHARACTERS`."""
    lines = []
    for path in sorted(check.folder.glob("gpu-*.json")):
        try:
            record = Record.load(path)
        except UserError as error:
            lines.append(str(error))
            continue
        lines.append(f"-- {path.name}")
        lines += attention_lines(record) if record.benchmark == "attention" else []
        lines += training_table(record).splitlines() if record.benchmark == "training" else []
        lines += [f"left out: {line}"[:200] for line in record.left_out]
    failed = [o for o in check.outcomes if o.status != "passed"]
    for outcome in failed:
        lines += [f"-- {outcome.step.name}: {outcome.status}", outcome.output[-TAIL:].strip()]
    lines.append(f"passed: {len(check.outcomes) - len(failed)} of {len(check.outcomes)}")
    lines += [f"FAILED: {outcome.step.name}: {outcome.status}" for outcome in failed]
    text = "\n".join(lines)
    return text if len(text) <= MOST_CHARACTERS else "...\n" + text[-MOST_CHARACTERS:]


INITIALS = {"forward": "f", "backward": "b", "forward+backward": "fb"}


def attention_lines(record: Record) -> list[str]:
    """A line per shape, dtype and contender: milliseconds and fraction of copy of each pass."""
    bandwidth = record.setting["copy_bytes_per_second"]
    lines: dict[tuple[str, str, str], str] = {}
    for m in record.measurements:
        if m.contender == "copy":
            continue
        key = (m.case, m.dtype, m.contender)
        fraction = m.per_second("fewest_bytes") / bandwidth
        line = lines.get(key, f"{m.case} {m.dtype} {m.contender}:")
        line += f" {INITIALS[m.what]} {m.timing.p50_ms:.4f} {fraction:.2f}"
        if "graph_p50_ms" in m.details:
            line += f" g{m.details['graph_p50_ms']:.4f}"
        lines[key] = line
    return [f"copy {bandwidth / 1e9:.0f} GB/s", *lines.values()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="+", metavar="RUN|STEP", help="first, second, more; or steps"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks/results",
                        help="where results go (benchmarks/results)")  # fmt: skip
    parser.add_argument("--limit", type=float, default=290, help="seconds in all (%(default)s)")
    parser.add_argument("--pack", type=Path, metavar="FILE.tar.gz", help="keep all results there")
    parser.add_argument("--poster", type=Path, metavar="PATH", help="a checkout of POSTER")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"),
                        help="cpu: a rehearsal where there is no GPU")  # fmt: skip
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    if options.device == "cuda":
        # Else tests would be skipped, and pass.
        available = sdwa.available_backends("cuda")
        if missing := [
            f"{name}: {'; '.join(available[name])}"
            for name in ("cuda", "triton")
            if available[name]
        ]:
            raise UserError(f"nothing can be checked here. {'. '.join(missing)}")
    known = runs(folder, options.device, options.poster)
    by_name = {step.name: step for steps in known.values() for step in steps}
    chosen = []
    for name in options.names:
        if name not in known and name not in by_name:
            raise UserError(f"runs are {', '.join(known)}, steps {', '.join(by_name)}; got {name}")
        chosen += known.get(name) or [by_name[name]]
    check = Check(folder, options.limit, options.pack)
    check.run(chosen)
    print(summary(check))
    return 0 if all(o.status == "passed" for o in check.outcomes) else 1


if __name__ == "__main__":
    run_main(main)
