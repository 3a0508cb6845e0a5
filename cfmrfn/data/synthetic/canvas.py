"""Painting with soft edges: shapes are masks drawn supersampled by Pillow, colours are numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[Any]

# One polygon (n, 2), or several that are painted as one shape; (x, y) in pixels, centres at halves.
Shape = Array | Sequence[Array]
# One RGB triple, a (size, size, 3) picture that shows through, or a function of what lies beneath.
Paint = ArrayLike | Callable[[Array], Array]

_SUPERSAMPLE = 4


class Mask(NamedTuple):
    """Coverage 0..1 of a rectangle of the canvas; it is 0 outside of the rectangle."""

    alpha: Array  # (bottom - top, right - left)
    left: int
    top: int


class Canvas:
    """An RGB image (size, size, 3), float32 in 0..1, that shapes are painted onto."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pixels: Array = np.zeros((size, size, 3), np.float32)

    def fill(
        self,
        shape: Shape,
        paint: Paint,
        opacity: float = 1.0,
        *,
        blur: float = 0.0,
        within: Mask | None = None,
    ) -> Mask:
        """Paints a shape.

        Args:
            shape: one polygon, or several.
            paint: a colour, a picture, or a function of the pixels beneath.
            opacity: 0 to 1.
            blur: width of the soft edge, in pixels.
            within: mask that the paint stays inside, as an iris stays inside an eye.

        Returns:
            The mask of the shape, not cut by `within`.
        """
        mask = self._mask(shape, blur)
        height, width = mask.alpha.shape
        left, top, right, bottom = mask.left, mask.top, mask.left + width, mask.top + height
        alpha = mask.alpha
        if within is not None:
            height, width = within.alpha.shape
            left, right = max(left, within.left), min(right, within.left + width)
            top, bottom = max(top, within.top), min(bottom, within.top + height)
            alpha = _part(mask, left, top, right, bottom)
            alpha = alpha * _part(within, left, top, right, bottom)
        if alpha.size:
            region = self.pixels[top:bottom, left:right]
            if callable(paint):
                source = paint(region)
            else:
                source = np.asarray(paint, np.float32)
                if source.ndim == 3:
                    source = source[top:bottom, left:right]
            region += (alpha * np.float32(opacity))[..., None] * (source - region)
        return mask

    def _mask(self, shape: Shape, blur: float) -> Mask:
        polygons = [shape] if isinstance(shape, np.ndarray) else shape
        points = np.concatenate(polygons)
        margin = 3 * blur + 1
        left, top = np.maximum(points.min(axis=0) - margin, 0).astype(int).tolist()
        right, bottom = np.minimum(points.max(axis=0) + margin + 1, self.size).astype(int).tolist()
        width, height = right - left, bottom - top
        if width <= 0 or height <= 0:
            return Mask(np.zeros((0, 0), np.float32), 0, 0)
        fine = Image.new("L", (width * _SUPERSAMPLE, height * _SUPERSAMPLE))
        pen = ImageDraw.Draw(fine)
        # Pillow addresses pixel centres by whole numbers
        corner = np.array((left, top), np.float32) + 0.5 / _SUPERSAMPLE
        for polygon in polygons:
            pen.polygon(((polygon - corner) * _SUPERSAMPLE).ravel().tolist(), fill=255)
        coarse = fine.reduce(_SUPERSAMPLE)
        if blur > 0:
            coarse = coarse.filter(ImageFilter.GaussianBlur(blur))
        return Mask(np.asarray(coarse, np.float32) * np.float32(1 / 255), left, top)


def shadow(amount: float) -> Callable[[Array], Array]:
    """Paint that darkens what lies beneath, and warms it as skin in the shade is."""
    kept = 1 - amount * np.array((0.8, 1.0, 1.05), np.float32)
    return lambda beneath: beneath * kept


def ribbon(line: Array, width: ArrayLike) -> Array:
    """Outline (2n, 2) of a line (n, 2), with one width for all points, or one per point."""
    along = np.empty_like(line)
    along[1:-1] = line[2:] - line[:-2]
    along[0], along[-1] = line[1] - line[0], line[-1] - line[-2]
    half = np.asarray(width, np.float32) / 2 / (np.hypot(along[:, 0], along[:, 1]) + 1e-6)
    side = np.empty_like(line)
    side[:, 0], side[:, 1] = -half * along[:, 1], half * along[:, 0]
    return np.concatenate([line + side, (line - side)[::-1]])


def taper(count: int, thick: float, thin: float = 0.15) -> Array:
    """Widths of a brush stroke of `count` points: `thick`, at the ends `thin` of that."""
    swell = np.sqrt(np.maximum(np.sin(np.linspace(0, np.pi, count, dtype=np.float32)), 0))
    return thick * (thin + (1 - thin) * swell)


def _part(mask: Mask, left: int, top: int, right: int, bottom: int) -> Array:
    rows = slice(top - mask.top, max(bottom, top) - mask.top)
    columns = slice(left - mask.left, max(right, left) - mask.left)
    return mask.alpha[rows, columns]
