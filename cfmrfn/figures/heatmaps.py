"""Faces and maps over them as small pictures that lie in a page as data URIs."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

LEVELS = 32  # of colour in a map: enough for the eye, and small files
MOST_PIXELS = 256  # side of a face


class Scale:
    """Colours of a quantity, over a face: the further from `neutral`, the less it shows through.

    Args:
        colormap: of matplotlib.
        low, high: values at the ends of the scale; values beyond have the colours of the ends.
        neutral: value that leaves the face as it is.
    """

    def __init__(self, colormap: str, low: float, high: float, neutral: float) -> None:
        self.low, self.high = low, max(high, low + 1e-12)
        levels = np.linspace(0, 1, LEVELS)
        inner = 0.12 + 0.76 * levels if neutral > low else 0.2 + 0.8 * levels  # none too dark
        colors = matplotlib.colormaps[colormap](inner)[:, :3]
        self.palette = np.rint(colors * 255).astype(np.uint8)
        values = self.low + levels * (self.high - self.low)
        strength = np.abs(values - neutral) / max(self.high - neutral, neutral - self.low)
        self.alpha = np.rint(255 * np.clip(0.05 + 0.95 * strength, 0, 0.75)).astype(np.uint8)

    def uri(self, values: np.ndarray) -> str:
        """A picture of values (rows, columns), one pixel each, as a data URI."""
        parts = (values - self.low) / (self.high - self.low)
        image = Image.fromarray(np.rint(parts.clip(0, 1) * (LEVELS - 1)).astype(np.uint8))
        image.putpalette(self.palette.tobytes())
        return _uri(image, "png", transparency=self.alpha.tobytes())

    @property
    def legend(self) -> str:
        """The colours from low to high, as a data URI."""
        return self.uri(np.linspace(self.low, self.high, LEVELS)[None])


def tiles(weights: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The map of each query, (tokens, tokens), side by side: those of row r, column c at r, c."""
    rows, columns = grid
    split = weights.reshape(rows, columns, rows, columns).transpose(0, 2, 1, 3)
    return split.reshape(rows * rows, columns * columns)


def face_uri(face: np.ndarray) -> str:
    """A face (height, width, 3), in 0..1, as a data URI."""
    image = Image.fromarray(np.rint(face * 255).astype(np.uint8))
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    return _uri(image, "jpeg", quality=85)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, optimize=True, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
