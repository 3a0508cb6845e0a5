"""Text files of labels: UTF-8, and file names in whatever bytes the file system has."""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Iterator

from cfmrfn.errors import DataError, printable, utf8_needed


def lines_of(path: str) -> Iterator[str]:
    """The lines of a label file, a byte order mark removed.

    Bytes that are no UTF-8 are kept as Python keeps them in file names, so that a name still finds
    its file.

    Raises:
        DataError: the file is missing, or UTF-16.
    """
    if not os.path.isfile(path):
        raise DataError(f"{path} is missing")
    with open(path, "rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError(f"{path}, line 1: the file is UTF-16; save it as UTF-8")
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        yield from lines


def rows_of(path: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each row of a CSV file; empty lines are left out.

    Raises:
        DataError: the file is missing, or is not CSV.
    """
    rows = csv.reader(lines_of(path))
    try:
        for row in rows:
            if row:
                yield rows.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from error


def number(text: str) -> int | None:
    """A whole number from 0 to 999,999,999 in decimal digits, or None: it is none.

    Python refuses thousands of digits by an error of its own.
    """
    return int(text) if text.isdecimal() and len(text) < 10 else None


def place(path: str, number: int, line: str) -> str:
    """How errors name a line of a label file."""
    return f"{path}, line {number}: {printable(line)[:120]!r}"


def check_name(image: str, where: str) -> None:
    """Checks that an image exists if the bytes of its name are no UTF-8.

    Raises:
        DataError: it does not, so that the label file is in another encoding than the names; or the
            locale has no such names.
    """
    try:
        os.fsencode(image)
    except UnicodeEncodeError:
        raise DataError(f"{where}: the name {utf8_needed()}") from None
    if not image.isascii() and printable(image) != image and not os.path.exists(image):
        raise DataError(f"{where}: the name is not UTF-8, and there is no file of that name")
