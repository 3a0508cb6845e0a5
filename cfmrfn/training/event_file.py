"""Curves of a run for TensorBoard, which never end the run."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

from cfmrfn.errors import printable


class EventFile:
    """Context manager: a new file of events, which TensorBoard reads while it grows.

    PyTorch's `SummaryWriter` writes in a thread, whose errors, as of a full disk, end the run at
    some later step. Here a file that cannot be written is told once, and has no more events.

    Points that former files have stay theirs: they are not added again. A resumed run adds an epoch
    again that was killed before it was saved, and TensorBoard would show it twice.

    Args:
        folder: of the file, made where it is missing.
        first_step: events of former files from this step on are void.
        tell: is called with why there are no more events.
    """

    def __init__(self, folder: Path, first_step: int, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self._file: BinaryIO | None = None
        self._former: dict[str, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            former = _numbered(folder)
            self._former = _last_steps([path for _, path in former], first_step)
            # TensorBoard reads files in the order of their names
            number = max([int(time.time()), *(before + 1 for before, _ in former)])
            name = f"events.out.tfevents.{number:010}.{socket.gethostname()}.{os.getpid()}"
            self._file = open(folder / name, "ab")  # noqa: SIM115, closed at the end of the run
        except OSError as error:
            self._give_up(error)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point of a curve, if former files lack it."""
        if step > self._former.get(name, -1):
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


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """The files of events in a folder, in the order of their names, with the numbers in these."""
    found = ((re.match(r"events\.out\.tfevents\.(\d+)\.", p.name), p) for p in folder.iterdir())
    return sorted(((int(name[1]), path) for name, path in found if name), key=lambda f: f[1].name)


def _last_steps(paths: Sequence[Path], first_step: int) -> dict[str, int]:
    """The step of the last point of each curve before `first_step`."""
    last: dict[str, int] = {}
    for event in (event for path in paths for event in _events(path)):
        if event.session_log.status == SessionLog.START:  # what follows it is void
            last = {name: min(step, event.step - 1) for name, step in last.items()}
        last |= {value.tag: event.step for value in event.summary.value}
    return {name: min(step, first_step - 1) for name, step in last.items()}


def _events(path: Path) -> Iterator[Event]:
    """The whole events of a file, to where a process was killed while it wrote."""
    with open(path, "rb") as file, contextlib.suppress(DecodeError):
        # of a record: length, checksum of it, content, checksum
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            content = file.read(length)
            if len(content + file.read(4)) < length + 4:
                return
            yield Event.FromString(content)
