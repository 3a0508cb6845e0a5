"""Errors that a user can mend: each message names what came and what is legal."""

from __future__ import annotations

import codecs
import re
import reprlib
import shlex
import sys
from collections.abc import Sequence


class ConfigError(ValueError):
    """A configuration value, or a command-line option, is not legal."""


class CheckpointError(ValueError):
    """A checkpoint or run folder cannot be written, read, or continued as asked."""


class DataError(ValueError):
    """A data set, or what is asked of it, is not legal."""


class TrainingError(RuntimeError):
    """Training cannot go on: the loss or its gradient is not finite."""


class OutOfMemory(RuntimeError):
    """The device, or the machine, has not the memory for what was asked."""


USER_ERRORS = (ConfigError, CheckpointError, DataError, TrainingError, OutOfMemory)


def text_of(error: Exception) -> str:
    """The message of `error`; one of a loader's worker comes with its traceback in front of it."""
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()


def first_of(texts: Sequence[str], most: int = 20, rest: str = "") -> list[str]:
    """The first `most` of `texts`, and how many more there are, with `rest` after that."""
    more = [f"and {len(texts) - most} more{rest}"] if len(texts) > most else []
    return [*texts[:most], *more]


def counted(number: int, noun: str) -> str:
    """`"1 epoch"`, `"2 epochs"`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def brief(value: object) -> str:
    """`repr(value)` in ASCII, shortened: a damaged or hostile file may hold values of any size."""
    return _BRIEF.repr(value).encode("ascii", "backslashreplace").decode()


def printable(text: str) -> str:
    """`text` as a terminal and a picture can show it: without control codes, and as UTF-8.

    Bytes of a file name that are no UTF-8 become `\\xe9`.
    """
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    plain = plain.encode("utf-8", ANY_NAME).decode("utf-8", "backslashreplace")
    odd = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
    return re.sub(odd, lambda found: found[0].encode("unicode_escape").decode(), plain)


def on_one_line(name: str) -> str:
    """A file name with its control characters as escapes, so that it cannot look like two lines."""
    control = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
    return re.sub(control, lambda found: found[0].encode("unicode_escape").decode(), name)


def printable_name(name: str) -> str:
    """A file name within a line that is printed: `printable`, and `on_one_line`."""
    return printable(on_one_line(name))


def argument(path: object) -> str:
    """A path as it is typed behind an option."""
    return printable(shlex.quote(str(path)))


def utf8_needed() -> str:
    """What to do about a name of a file that could not be read as UTF-8, after "the name"."""
    if sys.getfilesystemencoding() == "utf-8":
        return "is not UTF-8; rename it"
    return "cannot be read, as the locale is not one of UTF-8; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80


def _encode_any_name(error: UnicodeError) -> tuple[str | bytes, int]:
    """File names come out as the bytes they are; what else has no code, as an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


ANY_NAME = "cfmrfn.any_name"
codecs.register_error(ANY_NAME, _encode_any_name)
