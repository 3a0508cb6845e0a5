"""What a file says of itself: whether it is a video, and whether all of it is there."""

from __future__ import annotations

import os
from typing import BinaryIO

from cfmrfn.data.files import IMAGE_SUFFIXES
from cfmrfn.data.reading import HEIC_SUFFIXES

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts",
    ".wmv", ".flv", ".3gp", ".ogv",
)  # fmt: skip


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video by its name, or, where that says neither video nor picture, by its
    first bytes. An animated picture is a picture."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    if suffix in (*IMAGE_SUFFIXES, *HEIC_SUFFIXES):
        return False
    if not os.path.isfile(path):  # a pipe would lose what is read of it
        return False
    try:
        with open(path, "rb") as file:
            return begins_video(file.read(512))
    except OSError:
        return False


def camera(name: str) -> int | None:
    """The index that a name on the command line has as a camera, where no file has that name."""
    return int(name) if name.isascii() and name.isdecimal() and not os.path.exists(name) else None


def begins_video(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a container of videos."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in _PICTURE_BRANDS
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    is_transport_stream = any(
        len(head) > start + 188 and head[start] == head[start + size] == 0x47
        for start, size in ((0, 188), (4, 192))
    )
    return is_transport_stream or head[4:8] in _BOXES or head.startswith(_STARTS)


# Of MP4 and QuickTime: the first box of files from before `ftyp`; pictures in files of their kind.
_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip")
_PICTURE_BRANDS = (
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis"),
)
_EBML = b"\x1aE\xdf\xa3"
_STARTS = (
    _EBML,  # Matroska, WebM
    b"FLV",
    b"OggS",
    b"0&\xb2u\x8ef\xcf\x11",  # ASF, WMV
    b"\x00\x00\x01\xba",  # MPEG
    b"\x00\x00\x01\xb3",
)


def cut_off(path: str) -> str | None:
    """What is missing from the end of a file by the lengths in it; None: nothing that is known."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[:4] == _EBML:
            end, has_index = _end_of_matroska(file), True
        elif head[:4] == b"RIFF":
            end, has_index = _end_of_riff(file), True
        elif head[4:8] in (b"ftyp", *_BOXES):
            end, has_index = _end_of_boxes(file)
        else:
            return None
    if end > size:
        return f"it is cut off, {size} of {end} bytes are there"
    if not has_index:
        return "its index is missing, as where a recording was not ended"
    return None


def _end_of_boxes(file: BinaryIO) -> tuple[int, bool]:
    """Where the last box of an MP4 or QuickTime file ends, and whether there is an index."""
    place, has_index = 0, False
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        has_index |= kind == b"moov"
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8 or not kind.isalnum():  # 0: up to the end of the file
            break
        place += length
        file.seek(place)
    return place, has_index


def _end_of_riff(file: BinaryIO) -> int:
    """Where the last part of an AVI file ends."""
    place = 0
    while (head := file.read(8))[:4] == b"RIFF" and len(head) == 8:
        place += 8 + int.from_bytes(head[4:], "little")
        file.seek(place)
    return place


def _end_of_matroska(file: BinaryIO) -> int:
    """Where the segment of a Matroska or WebM file ends; 0: it does not say."""
    place = 0
    for identifier in (_EBML, b"\x18S\x80g"):
        if file.read(4) != identifier:
            return 0
        first = file.read(1)
        if not first or not first[0]:
            return 0
        extra = 8 - first[0].bit_length()  # bytes that follow
        length = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + file.read(extra), "big")
        if length == (1 << 7 * (extra + 1)) - 1:
            return 0
        place = file.tell() + length
        file.seek(place)
    return place
