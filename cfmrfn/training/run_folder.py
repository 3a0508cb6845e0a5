"""The folder of a run: all that is left of it on disk.

::

    config.yaml     the resolved configuration
    log.txt         what was printed
    batch.png       images of the first batch, as the network saw them, with their labels
    metrics.csv     one line per epoch
    curves.png      the same, drawn
    last.pt         the latest checkpoint, from which --resume continues
    best.pt         the weights of the best epoch
    report.json     final results; `duplicates` are evaluation images that are training images too
    confusion.png   confusion matrix of the best epoch on the held-out images
    tensorboard/    events
    .lock           held by the process that trains, as another would write the same files
"""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import json
import os
import re
import shutil
import time
import weakref
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from cfmrfn import checkpoint
from cfmrfn.config import Config, from_yaml
from cfmrfn.errors import CheckpointError, argument, printable
from cfmrfn.training.progress import Row
from cfmrfn.whole_files import beside, named, whole

WRITTEN = (
    *("config.yaml", "batch.png", "metrics.csv", "curves.png", "last.pt", "best.pt"),
    *("report.json", "confusion.png"),
)

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@dataclass
class _Lock:
    """An open lock file of this process, and the number of `RunFolder` that need it.

    Several in a process, as in notebooks, are no harm; and to close one of several descriptors of a
    file would unlock it.
    """

    descriptor: int
    holders: int = 0


_locks: dict[tuple[int, int], _Lock] = {}  # by device and inode of the run folder


def _place_of(path: Path) -> tuple[int, int]:
    """Device and inode."""
    place = os.stat(path)
    return place.st_dev, place.st_ino


def _release(key: tuple[int, int]) -> None:
    _locks[key].holders -= 1
    if not _locks[key].holders:
        os.close(_locks.pop(key).descriptor)


class RunFolder:
    """A run folder that exists; `create` makes one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: tuple[int, int] | None = None  # device and inode, where this process trains

    @property
    def last(self) -> Path:
        """The latest checkpoint."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The weights of the best epoch."""
        return self.path / "best.pt"

    @property
    def report(self) -> Path:
        """The final results."""
        return self.path / "report.json"

    def log(self, text: str) -> None:
        """Prints `text` above the progress bar, and keeps it in `log.txt`."""
        self._check_place()
        # file names in it may be bytes that are no UTF-8
        path = self.path / "log.txt"
        with named(path), open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        tqdm.write(printable(text))  # after the file: the terminal may be gone

    def hold(self) -> None:
        """Keeps other processes from training here, until this object or its process ends.

        Raises:
            CheckpointError: one does.
        """
        if fcntl is None:
            return
        key = _place_of(self.path)
        if key not in _locks:
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                # of this process: workers do not inherit it, and however it ends, the lock is free
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(lock)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise CheckpointError(
                        f"another process trains in {self.path}; wait for its end, or end it"
                    ) from error
                return  # a file system without locks
            _locks[key] = _Lock(lock)
        _locks[key].holders += 1
        weakref.finalize(self, _release, key)
        self._held = key

    def __reduce__(self) -> tuple[type[RunFolder], tuple[Path]]:
        # other processes of a run get it without the lock
        return RunFolder, (self.path,)

    def reopen(self, config: Config, *, is_complete: bool) -> None:
        """Records what a resumed run may have changed for good: its epochs and where its data are.

        A run that `is_complete` keeps its report.
        """
        if not is_complete:
            self.report.unlink(missing_ok=True)
        for name in WRITTEN:  # by a process that was killed; other tools write theirs
            for partial in self.path.glob(f".partial.*.{name}"):
                partial.unlink(missing_ok=True)
        saved = from_yaml(self.path / "config.yaml")
        images = dataclasses.replace(saved.images, data=config.absolute().images.data)
        optim = dataclasses.replace(saved.optim, epochs=config.optim.epochs)
        changed = dataclasses.replace(saved, images=images, optim=optim)
        if changed != saved:
            self.write("config.yaml", changed.to_yaml())

    def write_metrics(self, rows: list[Row]) -> None:
        """Writes `metrics.csv` anew; confusion matrices stay out of it."""
        text = io.StringIO()
        # an epoch may lack a column: that of images that were training images too
        columns = [
            name
            for name in dict.fromkeys(name for row in rows for name in row)
            if not name.endswith("_matrix")
        ]
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("metrics.csv", text.getvalue())

    def write_report(self, report: dict[str, Any]) -> None:
        """Writes `report.json`, whose presence says that the run is complete."""
        self.write(self.report.name, json.dumps(report, indent=1) + "\n")

    def write(self, name: str, text: str) -> None:
        """Writes a text file, whole or not at all."""
        with self.file(name) as target:
            target.write_text(text, "utf-8")

    def file(self, name: str) -> AbstractContextManager[Path]:
        """A path to write a file to, which appears when it is whole."""
        self._check_place()
        return whole(self.path / name)

    def save(self, path: Path, content: dict[str, Any]) -> None:
        """Writes a checkpoint, `last` or `best`."""
        self._check_place()
        try:
            checkpoint.save(path, content)
        except CheckpointError:
            self._check_place()  # moved meanwhile
            raise

    def _check_place(self) -> None:
        """Checks that the folder is still the one that is held: another of its name is not ours.

        Raises:
            CheckpointError: it was moved, removed or replaced.
        """
        if self._held is None:
            return
        try:
            is_here = _place_of(self.path) == self._held
        except OSError:
            is_here = False
        if not is_here:
            raise CheckpointError(
                f"run folder {self.path} was moved, removed or replaced during the run; what was "
                "saved before is where it is now: go on there with --resume"
            )


def create(config: Config) -> RunFolder:
    """Makes the folder and writes the configuration.

    Without `output` it is `runs/DATA-DATE-TIME`: DATA is the name of the data set's own folder, or
    `drawn` where faces are drawn.

    Raises:
        CheckpointError: the folder exists, or cannot be made.
    """
    data = config.images.data
    # absolute, so that `--data .` has a name too; stray bytes in it are not TensorBoard's to write
    name = "drawn" if data is None else Path(os.path.abspath(data)).name
    name = re.sub(r"[\ud800-\udfff]", "_", name)
    path = config.run.output or _unused(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    exists = CheckpointError(
        f"run folder {path} exists; continue it with --resume {argument(path)}, or choose another "
        "--output"
    )
    if path.exists():
        raise exists
    # The folder appears with its configuration in it: a run killed at this moment can be repeated.
    # Of two processes that make it at once, the second finds it in its way.
    partial = beside(path)
    try:
        partial.mkdir(parents=True)
        folder = RunFolder(partial)
        folder.write("config.yaml", config.absolute().to_yaml())
        folder.hold()
        partial.rename(path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        if path.exists():  # by now
            if config.run.output is None:  # of a run that began in the same second
                return create(config)
            raise exists from error
        raise CheckpointError(
            f"cannot make run folder {path}: {error}; choose another --output"
        ) from error
    folder.path = path
    return folder


def _unused(path: Path) -> Path:
    """`path`, with a number where there is one: of the same second, or before a clock was set."""
    number, unused = 1, path
    while unused.exists():
        number += 1
        unused = path.with_name(f"{path.name}-{number}")
    return unused
