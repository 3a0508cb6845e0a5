"""Tools in processes of their own, forked from one that has imported everything."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cfmrfn.__main__ import main as tools
from cfmrfn.process import command

FORK = multiprocessing.get_context("fork")


class Ended(NamedTuple):
    """How a tool ended: `status` is negative for a signal, None if it had to be killed."""

    status: int | None
    out: str
    err: str
    operations: int  # that wrote, see full_disk.c

    @property
    def told(self) -> list[str]:
        """Lines on stderr, bars of progress aside."""
        lines = self.err.replace("\r", "\n").splitlines()
        return [line for line in lines if line.strip() and "it/s]" not in line and "%|" not in line]


class Child:
    """A tool that runs: `cfmrfn TOOL ...`, or any function.

    Args:
        args: of `cfmrfn`.
        folder: for what it prints.
        environment: variables to set.
        fail_from: the number of the first operation in `full` that fails; 0: none.
        full: the folder on a full disk.
        code: of the failures.
    """

    def __init__(
        self,
        args: Sequence[str] | Callable[[], object],
        folder: Path,
        *,
        environment: dict[str, str] | None = None,
        fail_from: int = 0,
        full: Path | None = None,
        code: int = 0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / f"{time.monotonic_ns()}"
        disk = (fail_from, full, code)
        self.process = FORK.Process(
            target=_execute, args=(args, self.output, environment or {}, disk)
        )
        self.process.start()

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        """Sends a signal, if it runs."""
        if self.runs:
            os.kill(self.process.pid, number)

    def end(self, seconds: float = 120) -> Ended:
        """Waits for its end; kills it, with status None, where that takes longer."""
        self.process.join(seconds)
        status = self.process.exitcode
        if status is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join()
        self.process.close()
        out, err, count = (
            Path(f"{self.output}.{end}").read_text("utf-8", "replace")
            if os.path.exists(f"{self.output}.{end}")
            else ""
            for end in ("out", "err", "count")
        )
        return Ended(status, out, err, int(count or 0))


def run(args: Sequence[str] | Callable[[], object], folder: Path, **options) -> Ended:
    """A tool to its end; `options` of `Child`."""
    return Child(args, folder, **options).end()


def disk() -> ctypes.CDLL | None:
    """The functions of full_disk.c, where it is preloaded."""
    return ctypes.CDLL(None) if "full_disk" in os.environ.get("LD_PRELOAD", "") else None


def _execute(args, output, environment, full_disk):
    os.setsid()
    for stream, end in ((sys.stdout, "out"), (sys.stderr, "err")):
        stream.flush()
        os.dup2(os.open(f"{output}.{end}", os.O_WRONLY | os.O_CREAT, 0o644), stream.fileno())
    os.environ.update(environment)
    fail_from, full, code = full_disk
    library = disk() if full is not None else None
    if library is not None:
        library.fault_arm(os.fsencode(full), ctypes.c_long(fail_from), code)
    try:
        command.run(args if callable(args) else lambda: tools([str(arg) for arg in args]))
    finally:
        if library is not None:
            count = library.fault_count()
            library.fault_arm(b"", ctypes.c_long(0), 0)
            Path(f"{output}.count").write_text(str(count))
