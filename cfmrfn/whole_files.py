"""Files and folders that are written whole or not at all; rows of CSV that can be read back."""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from PIL import Image

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends without an error.

    Its name ends as that of `path` does, for writers that go by it. A pipe, a terminal or /dev/null
    is written as it is; to /dev/stdout, or to the file that it is redirected to, is written what
    the block has made, behind what is there.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        with named(path):
            yield Path(path)
        return
    if (descriptor := _descriptor(path)) is not None:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / Path(path).name
            with named(path):
                yield made
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            with (
                named(path),
                made.open("rb") as source,
                os.fdopen(os.dup(descriptor), "wb") as output,
            ):
                shutil.copyfileobj(source, output)
        return
    target = Path(os.path.realpath(path))
    # others may write the same file at the same time
    partial = target.with_name(f".partial.{secrets.token_hex(4)}.{target.name}")
    try:
        with named(path):
            yield partial
        os.replace(partial, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and str(error.filename) == str(partial):
            error.filename = os.fspath(path)  # the name that the user knows
        raise


def is_stream(path: str | Path) -> bool:
    """Whether what is written there goes behind what was: to a pipe, or an output of the tool."""
    return (os.path.exists(path) and not os.path.isfile(path)) or _descriptor(path) is not None


def _descriptor(path: str | Path) -> int | None:
    """The output that `path` stands for, as /dev/stdout and /dev/fd/3 do, or whose file it is.

    Where an output is redirected to a file these lead to that file, and must not replace it.
    """
    number = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d{1,9})", os.fspath(path))
    for descriptor in (1, 2, *(map(int, number.groups()) if number else ())):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
    return None


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Within it, errors of the file system that name no file, as of a full disk, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def save_image(image: Image.Image, path: Path, kind: str | None = None, **options: Any) -> None:
    """Writes a picture, in the format `kind`, or that of its name; `options` are Pillow's.

    Where a disk is nearly full it may take a part of what is written. Pillow's own way to a file
    does not look, so that half a JPEG would pass for a whole one.
    """
    content = io.BytesIO()
    image.save(content, kind or Image.registered_extensions()[path.suffix.lower()], **options)
    path.write_bytes(content.getvalue())


def is_picture_name(path: Path) -> bool:
    """Whether `save_image` can write a picture in colour under this name.

    Pillow registers suffixes of formats, too, that it only reads, or writes in black and white.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), kind)
    except (KeyError, ValueError, OSError):
        return False
    return True


@contextmanager
def whole_folder(path: str | Path, last: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write to, which becomes `path` when the block ends without an error.

    After an error nothing is left of it; what a killed process left is removed by the next one. If
    there is a folder `path`, the files get their places in it, those of the names in `last` after
    the others and in this order. What they replace is taken out before, in the reverse order, so
    that a kill leaves no new file beside an old one; after an error it is back.
    """
    folder = Path(os.path.abspath(path))
    partial = beside(folder)
    missing = [parent for parent in folder.parents if not parent.exists()]
    _remove_killed(folder)
    lock = None
    try:
        partial.mkdir(parents=True)
        lock = _locked(partial)
        with named(folder):
            yield partial
        if folder.exists():
            _replace(folder, partial, last)
        else:
            partial.rename(folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            for parent in missing:
                parent.rmdir()
        if isinstance(error, OSError) and isinstance(error.filename, str):
            # the name that the user knows
            error.filename = error.filename.replace(str(partial), str(folder), 1)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    shutil.rmtree(partial, ignore_errors=True)


def _replace(folder: Path, partial: Path, last: Sequence[str]) -> None:
    """Moves what is in `partial` into `folder`, see `whole_folder`."""
    names = sorted(
        (file.name for file in partial.iterdir()),
        key=lambda name: last.index(name) if name in last else -1,
    )
    there = [name for name in reversed(names) if os.path.lexists(folder / name)]
    for name in there:
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))
    replaced = partial / ".replaced"
    replaced.mkdir()
    moves = [(folder / name, replaced / name) for name in there]
    moves += [(partial / name, folder / name) for name in names]
    begun: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            begun.append((source, target))
            os.replace(source, target)
    except BaseException:
        for source, target in reversed(begun):
            with contextlib.suppress(FileNotFoundError):  # the last one may not have been moved
                os.replace(target, source)
        raise


def _remove_killed(folder: Path) -> None:
    """Removes what killed processes left beside a folder, where the system has locks."""
    for partial in folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 8}.partial"):
        if (lock := _locked(partial)) is not None:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that locks a folder until it is closed, or its process ends.

    None: another one does, or there are no locks.
    """
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def beside(folder: Path) -> Path:
    """A name beside that of a folder which no other process has, nor one that was killed."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")


class CsvFile:
    """The file of a `csv.writer` that ends its rows as RFC 4180 has it: here they end with \\n.

    Told of \\n alone, a writer leaves \\r in a name without quotes, where readers begin a new row.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, row: str) -> None:
        """Adds a row that ends with \\r\\n."""
        self.file.write(row.removesuffix("\r\n") + "\n")
