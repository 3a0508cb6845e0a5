"""Curves of a run for TensorBoard, which never end the run."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

from cfmrfn.errors import printable


class EventFile:
    """Context manager: a new file of events, which TensorBoard reads while it grows.

    PyTorch's `SummaryWriter` writes in a thread, whose errors, as of a full disk, end the run at
    some later step. Here a file that cannot be written is told once, and has no more events.

    Args:
        folder: of the file, made where it is missing.
        first_step: events of former files from this step on are void.
        tell: is called with why there are no more events.
    """

    def __init__(self, folder: Path, first_step: int, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self._file: BinaryIO | None = None
        # TensorBoard reads files in the order of their names
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / name, "ab")  # noqa: SIM115, closed at the end of the run
        except OSError as error:
            self._give_up(error)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point of a curve."""
        self._write(Event(step=step, summary=scalar(name, value)))

    def __enter__(self) -> EventFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, event: Event) -> None:
        if self._file is None:
            return
        event.wall_time = time.time()
        try:
            RecordWriter(self._file).write(event.SerializeToString())
            self._file.flush()  # so there is nothing left to write when it is closed
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # it tries again to write what is left
                self._file.close()
            self._file = None
        self._tell(f"no more TensorBoard events: {printable(str(error))}")
