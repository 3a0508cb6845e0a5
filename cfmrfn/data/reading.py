"""Image files into pixels: the one reader of training, evaluation, prediction and analysis."""

from __future__ import annotations

import importlib
import os
import stat
import struct
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as Tag
from PIL.TiffImagePlugin import TiffImageFile

from cfmrfn.data.samples import Box, Sample
from cfmrfn.errors import printable, printable_name

# What Pillow raises on files that are missing, damaged, or no images: each format has its own ways.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, RuntimeError, EOFError, LookupError, TypeError),
    *(ArithmeticError, MemoryError, struct.error, Image.DecompressionBombError),
)

HEIC_SUFFIXES = (".heic", ".heif", ".hif")
HEIC_NEEDS = "HEIC, which needs the package pillow-heif (pip install pillow-heif)"

# Formats that files without a suffix are tried as. Not those whose first bytes say too little.
PHOTOGRAPHS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

# Pixels of an image from which on one is decoded at a time: threads would multiply the memory that
# the largest of them take, some gigabytes.
_MANY_PIXELS = 1 << 25

# Names of the major brands of HEIC files, after four bytes of length and "ftyp".
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# EXIF orientation -> what turns the stored pixels upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(sample: Sample, at_least: int | None = None) -> Image.Image:
    """Decodes one image to RGB, as a viewer shows it, cropped to its box.

    Turned by its EXIF orientation, unless there is a box: boxes were found in the pixels as they
    are stored, by detectors that find upright faces. Transparent parts are on white, as in a
    browser. Of several frames the first is taken. 16-bit pixels become their high byte, as Pillow
    does it for colour images, so 65535 is white even if a file uses fewer bits. Floats, and
    integers of 32 bits, say nothing of their range: what is at most 1 is read as 0 to 1, other
    floats as 0 to 255, and integers as 8 or 16 bits by the largest.

    Args:
        sample: names the file and the box. The part of the box inside the image is taken.
        at_least: side in pixels that will be used; a large JPEG is then decoded at a half, a
            quarter or an eighth of its size, which is several times faster. None: at full size.

    Raises:
        UNREADABLE: one of these errors, where the file cannot be decoded, or where most of the box
            is outside the image.
    """
    with _quietly, _open(sample.path) as image, _one_of_the_large(image):
        width, height = image.size
        left, top, right, bottom = _inside(sample.box, width, height)
        if at_least is not None:
            scale = at_least / min(right - left, bottom - top)
            # draft never goes below the size asked for, and affects JPEG only; the shorter side
            # decides, so it does not matter that the image may be turned afterwards
            image.draft("RGB", (round(width * scale), round(height * scale)))
        decoded = upright_rgb(image) if sample.box is None else as_rgb(image)
    if sample.box is None:
        return decoded
    x, y = decoded.width / width, decoded.height / height
    return decoded.crop((round(left * x), round(top * y), round(right * x), round(bottom * y)))


def image_size(path: str) -> tuple[int, int]:
    """Width and height of an image as a viewer shows it, from what the file says before its pixels.

    Raises:
        UNREADABLE: one of these errors, where the file is no image.
    """
    with _quietly, _open(path) as image:
        if _orientation(image) < 5:
            return image.size
        if isinstance(image, TiffImageFile):  # Pillow turns it as it loads the pixels
            image.load()
            return image.size
        return image.height, image.width


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image as RGB of 8 bits on white, turned by its EXIF orientation.

    Raises:
        UNREADABLE: one of these errors, where the image cannot be decoded.
    """
    decoded = as_rgb(image)
    # after decoding, as PNG may have its EXIF behind the pixels, and Pillow turns TIFF itself
    turn = _TURNS.get(_orientation(image))
    return decoded if turn is None else decoded.transpose(turn)


def why_unreadable(sample: Sample) -> str | None:
    """None if the image can be decoded at full size, else `"path: reason"`."""
    try:
        read_image(sample)
    except UNREADABLE as error:
        return f"{printable_name(sample.path)}: {reason(sample.path, error)}"
    return None


def reason(path: str, error: BaseException) -> str:
    """Why a file could not be read, from what `read_image` raised; never empty.

    The path is left out: callers say it.
    """
    if not os.path.exists(path):
        return "missing"
    if isinstance(error, MemoryError):
        return "not enough memory for it"
    said = getattr(error, "strerror", None) or str(error).replace(f" {path!r}", "")
    return printable(said) or type(error).__name__


def is_photograph(path: str) -> bool:
    """Whether the first bytes of a file are those of an image.

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        with Image.open(path, formats=PHOTOGRAPHS):
            return True
    except UnidentifiedImageError:
        return _is_heic(path)
    except OSError:
        raise
    except UNREADABLE:
        return True  # it begins as one, and is damaged further on


def begins_as_heic(data: bytes) -> bool:
    """Whether the first 12 bytes are those of a HEIC file."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS


@cache
def heic_is_readable() -> bool:
    """Whether pillow-heif is installed; Pillow reads HEIC from then on."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


class _Quietly:
    """Without Pillow's warnings about damaged EXIF, large images and the like, which name no file.

    `warnings.catch_warnings` alone leaves other filters behind where threads leave it in another
    order than they entered: here the first thread enters it, and the last one leaves.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore", UserWarning)
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.caught.__exit__(None, None, None)


_quietly = _Quietly()


def _open(path: str) -> Image.Image:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):  # a pipe that nobody writes to would be waited for
        raise ValueError("a folder" if stat.S_ISDIR(mode) else "no file but a pipe or a device")
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        if not os.path.getsize(path):
            raise ValueError("empty file") from None
        if not _is_heic(path):
            raise
        if not heic_is_readable():
            raise ValueError(HEIC_NEEDS) from None
        image = Image.open(path)
    if image.format == "EPS":
        image.close()
        raise ValueError("EPS, which is not read: Pillow would run Ghostscript on it")
    return image


_large = threading.RLock()


def _one_of_the_large(image: Image.Image) -> AbstractContextManager[object]:
    """Within it no other thread decodes a large image, if this one is large."""
    width, height = image.size
    return _large if width * height >= _MANY_PIXELS else nullcontext()


def _is_heic(path: str) -> bool:
    with open(path, "rb") as file:
        return begins_as_heic(file.read(12))


def _inside(box: Box | None, width: int, height: int) -> Box:
    """The part of the box that is inside the image; the whole image where there is no box."""
    if box is None:
        return 0, 0, width, height
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[2], width), min(box[3], height)
    box_width, box_height = box[2] - box[0], box[3] - box[1]
    if 2 * max(right - left, 0) * max(bottom - top, 0) < box_width * box_height:
        raise ValueError(
            f"the face box of {box_width} x {box_height} pixels at {box[0]}, {box[1]} is mostly "
            f"outside the image of {width} x {height} pixels; if the images are cropped already, "
            f"use --no-boxes"
        )
    return left, top, right, bottom


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(Tag.Orientation, 1)
    except UNREADABLE:
        return 1  # damaged EXIF does not make the pixels worse


def as_rgb(image: Image.Image) -> Image.Image:
    """Loads the pixels, and makes them RGB of 8 bits on white; they are not turned.

    Raises:
        UNREADABLE: one of these errors, where the image cannot be decoded.
    """
    image.load()
    key = image.info.get("transparency")
    if image.mode[0] in "IF":  # I, F, and I;16 in either byte order
        pixels = np.asarray(image)
        grey = Image.fromarray(_to_8_bit(pixels, image))
        if key is None:
            return grey.convert("RGB")
        alpha = Image.fromarray(np.where(pixels == key, 0, 255).astype(np.uint8))
        image = Image.merge("LA", (grey, alpha))
    if key is None and image.mode in ("RGB", "L", "1", "CMYK", "YCbCr"):
        return image.convert("RGB")
    on_white = Image.new("RGB", image.size)
    rows = max(1, _MANY_PIXELS // image.width)  # at a time: it takes many bytes for each pixel
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        ground = Image.new("RGBA", strip.size, "white")
        on_white.paste(Image.alpha_composite(ground, strip), (0, top))
    return on_white


def _to_8_bit(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits as uint8; raises where the range of the values cannot be told."""
    low, high = pixels.min(), pixels.max()
    if image.mode == "F":
        # up to 16 of 255 would be a black picture: rather 0 to 1 with values beyond
        if not (low >= 0 and (high <= 1 or 16 <= high <= 255)):
            raise ValueError(f"floats from {low:g} to {high:g}; legal are 0 to 1, or 0 to 255")
        return np.rint(pixels * (255 if high <= 1 else 1)).astype(np.uint8)
    bits = 16
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2[Tag.BitsPerSample][0]
    elif image.format is None and image.mode == "I":
        bits = 32  # of an array
    if bits > 16:
        bits = 8 if high <= 255 else 16
    if not 0 <= low <= high < 1 << bits:
        raise ValueError(f"integers from {low} to {high}; legal are {bits} bits without a sign")
    return (pixels >> (bits - 8)).astype(np.uint8)
