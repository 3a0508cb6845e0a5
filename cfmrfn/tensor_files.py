"""Files of tensors, read without running code in them; any other file is called what it is."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from cfmrfn.errors import CheckpointError

# First bytes of what is found in the place of weights, and what it is. PyTorch's own files, which
# are zip archives or pickles, are told apart below.
_SIGNATURES = (
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes, and not PyTorch's"),
    (b"\x93NUMPY", "a NumPy array, and not a file of PyTorch's"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
)
_PICKLE = b"\x80"
# torch.save's format before it wrote zip archives: a pickle that begins with this number
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_WEIGHTS_OF_OURS = "the run, or what was exported as safetensors"
_MAKE_WEIGHTS = (
    "such a file can run code when it is read, so it is not read here. The project that wrote it "
    'can save its weights alone: torch.save(model.state_dict(), "weights.pt")'
)


def read(path: Path, allowed: Sequence[Any] = ()) -> Any:
    """The content of a file that `torch.save` or safetensors wrote, on the CPU.

    Args:
        path: of the file; its suffix does not matter.
        allowed: harmless functions and classes that a pickle in it may name, as
            `torch.serialization.safe_globals` takes them.

    Raises:
        CheckpointError: it cannot be read, is damaged, is something else, or holds objects other
            than tensors and plain values. PyTorch's own errors, which advise to let the file run
            its code, are left out of its causes.
    """
    try:
        if is_safetensors(path):
            if has_utf8_name(path):
                return safetensors.torch.load_file(path)
            return safetensors.torch.load(path.read_bytes())
        if _is_onnx(path):
            raise CheckpointError(
                f"{path} is an ONNX file, not weights; predict runs it if its name ends in .onnx. "
                f"To other tools give {_WEIGHTS_OF_OURS}"
            )
        if what := what_else(path):
            raise CheckpointError(f"{path} is {what}")
        if damage := _damage(path):
            raise CheckpointError(f"{path} is {damage}")
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            # foreign files warn about their pickle protocol; an error below is enough
            warnings.simplefilter("ignore")
            with open(path, "rb") as file:  # given a name, torch.load goes by its suffix
                content = torch.load(file, map_location="cpu", weights_only=True)
        if not _is_finite(content):
            raise CheckpointError(f"{path} holds containers that hold one another without end")
        return content
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # neither library has an error type of its own
        raise CheckpointError(f"{path} {_why_not(error)}") from None


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: the size of the header, and the header, in JSON.

    Raises:
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < os.path.getsize(path)


def _is_onnx(path: Path) -> bool:
    """Whether the file begins as ONNX does: its version, and the name of what wrote it."""
    with open(path, "rb") as file:
        return re.match(rb"(?s)\x08.\x12.[\w.]+\x1a", file.read(64)) is not None


def has_utf8_name(path: Path) -> bool:
    """Whether libraries that take names as UTF-8 alone can open a file."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def what_else(path: Path) -> str | None:
    """What a file is that was taken for weights, and what to do.

    None: it may have been written by `torch.save`. Raises OSError where it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(1024)
    if not start:
        return "empty; download or copy it again"
    if start.startswith(b"version https://git-lfs"):
        size = re.search(rb"\nsize (\d+)", start)
        amount = f" ({int(size[1]):,} bytes)" if size else ""
        return (
            f"a Git LFS pointer, which stands in place of the file itself{amount}; run `git lfs "
            "pull` in the repository, or download the file from its page"
        )
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)", start, re.IGNORECASE):
        return (
            "a web page (HTML), and not the file that it offers; download that with a browser, or "
            "from the direct link"
        )
    for signature, what in _SIGNATURES:
        if start.startswith(signature):
            return what
    if start.startswith(b"PK"):
        return _what_zip(path)
    if start.startswith(_PICKLE):
        return None if start.startswith(_LEGACY) else f"a Python pickle; {_MAKE_WEIGHTS}"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    text = start.decode("utf-8", "replace")
    if "\0" not in text and text.count("\N{REPLACEMENT CHARACTER}") < 3:
        return f"text, which begins with {' '.join(text.split())[:40]!r}"
    return "damaged, or no file of weights"


def _what_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return (
            f"cut off or damaged: it has {os.path.getsize(path):,} bytes and no end; download or "
            "copy it again"
        )
    inside = {name.rpartition("/")[2] for name in names}
    if "archive_format" in inside:
        return (
            "a program that torch.export wrote, not weights; it is for torch.export.load, which "
            f"can run code in it, so no tool reads it. Give {_WEIGHTS_OF_OURS}"
        )
    if "constants.pkl" in inside:
        return f"a TorchScript program, not weights; {_MAKE_WEIGHTS}"
    if "data.pkl" in inside:
        return None
    more = f", and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"a zip archive of other files ({', '.join(map(ascii, names[:3]))}{more}), not one that "
        "torch.save wrote; unpack it if what you look for is inside"
    )


def _damage(path: Path) -> str | None:
    """What is wrong with an archive in the form of `torch.save`, which does not look itself.

    It never compresses, so what claims to hold more bytes than the file has would fill the memory.
    Bytes that changed would be wrong weights.
    """
    if not zipfile.is_zipfile(path):
        return None  # of the legacy format
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            return "compressed, which torch.save does not do; download it from its source again"
        if sum(entry.file_size for entry in entries) > os.path.getsize(path):
            return "damaged: its parts claim more bytes than it has; download or copy it again"
        for entry in entries:
            if not entry.CRC:
                continue  # PyTorch may be told to leave checksums out
            try:
                with archive.open(entry) as content:
                    while content.read(2**20):
                        pass
            except (zipfile.BadZipFile, EOFError):
                return f"damaged: {entry.filename!a} in it has changed; download or copy it again"
    return None


def _is_finite(content: Any) -> bool:
    """Whether one can walk through all values of a pickle.

    In some kilobytes it can hold a list twice in a list, that twice in another, and so on, or a
    list in itself: to copy or print it would never end.
    """
    steps: dict[int, int] = {}  # by container, to walk through it; 0 while they are counted
    entries = 0

    def count(value: Any) -> int:
        nonlocal entries
        if not isinstance(value, dict | list | tuple | set):
            return 1
        if id(value) in steps:
            return steps[id(value)] or 1 << 62  # a container that is in itself
        steps[id(value)] = 0
        inside = value.values() if isinstance(value, dict) else value
        entries += len(value)
        steps[id(value)] = min(1 + sum(map(count, inside)), 1 << 62)
        return steps[id(value)]

    try:
        return count(content) <= 1_000_000 + 10 * entries
    except RecursionError:
        return False


def _why_not(error: Exception) -> str:
    """Why `torch.load` did not take a file that has the form of its own."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"holds an object of the class or function {found[1]!a}; {_MAKE_WEIGHTS}"
    return "is damaged: what it holds is not as it was written; download or copy it again"
