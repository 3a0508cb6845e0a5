"""Image files into pixels: the one reader of training, evaluation, prediction and analysis."""

from __future__ import annotations

import os

from PIL import Image

from cfmrfn.data.samples import Sample

# What Pillow raises on files that are missing, cut off, or no images.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(sample: Sample, at_least: int | None = None) -> Image.Image:
    """Decodes one image to RGB, cropped to its box.

    Args:
        sample: names the file and the box.
        at_least: side in pixels that will be used; a large JPEG is then decoded at a half, a
            quarter or an eighth of its size, which is several times faster. None: at full size.

    Raises:
        UNREADABLE: one of these errors, where the file cannot be decoded.
    """
    with Image.open(sample.path) as image:
        width, height = image.size
        left, top, right, bottom = sample.box or (0, 0, width, height)
        if at_least is not None:
            scale = at_least / min(right - left, bottom - top)
            # draft never goes below the size asked for, and affects JPEG only
            image.draft("RGB", (round(width * scale), round(height * scale)))
        decoded = image.convert("RGB")
    if sample.box is None:
        return decoded
    x, y = decoded.width / width, decoded.height / height
    return decoded.crop((round(left * x), round(top * y), round(right * x), round(bottom * y)))


def why_unreadable(sample: Sample) -> str | None:
    """None if the image can be decoded, else `"path: reason"`."""
    try:
        read_image(sample)
    except UNREADABLE as error:
        return f"{sample.path}: {error if os.path.exists(sample.path) else 'missing'}"
    return None
