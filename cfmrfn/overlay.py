"""Faces and their expressions drawn on pictures and on frames of videos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from cfmrfn.errors import printable
from cfmrfn.figures.fonts import Letters, legible
from cfmrfn.figures.pictures import CLASS_COLORS
from cfmrfn.predictor import Face

LEAST_SIDE = 400  # pixels of the longer side of a result: fewer have no room for letters
_COLORS = [ImageColor.getrgb(color)[:3] for color in CLASS_COLORS if color != "#000000"]
_COLORS.append((255, 255, 255))  # black lines would be lost in a photograph's shadows
_SEAM, _PANEL, _TRACK, _GROUND = (0, 0, 0), (24, 24, 24, 205), (92, 92, 92, 205), (24, 24, 24)
_POINTS = (0, 224, 255)


def draw(
    picture: Image.Image | np.ndarray,
    faces: Sequence[Face],
    *,
    bars: bool = False,
    landmarks: bool = True,
    names: Sequence[str] | None = None,
    grow: bool = True,
) -> Image.Image:
    """A copy of a picture with a box around each face, its expression and the probability of it.

    Words are beside the faces, not on them, and never run off the picture. A picture whose
    longer side is less than 400 pixels is enlarged by the least whole number that makes it 400 or
    more.

    Args:
        picture: PIL image of any mode, or array (height, width, 3), RGB, uint8; upright, as the
            faces' boxes are.
        faces: what a `cfmrfn.Predictor` found in it.
        bars: also the probabilities of all classes, as bars, where there is room beside the faces.
        landmarks: where the faces have any.
        names: of the faces, to be written before the expressions.
        grow: the picture may be extended, to have room for words beside a face that fills it.
            Else pictures of one size give results of one size, as a video needs, and the words of
            such a face are on its edge.
    """
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    scale = math.ceil(LEAST_SIDE / max(image.size))
    size = image.width * scale, image.height * scale
    if image.mode != "RGB":
        image = image.convert("RGB")
    image = image.resize(size, Image.Resampling.BICUBIC) if scale > 1 else image.copy()
    boxes = np.array([face.box for face in faces], float).reshape(-1, 4) * scale
    boxes = np.clip(boxes, 0, [*size, *size]).round()
    colors = [_color_of(face) for face in faces]
    pen = ImageDraw.Draw(image)
    for box, color in zip(boxes, colors, strict=True):
        _draw_box(pen, box, color, max(size))
    if landmarks:
        for face in faces:
            if face.landmarks is not None:
                _draw_points(pen, face.landmarks * scale)

    # faces of most pixels first: they need most room
    placed: dict[int, tuple[_Block, _Place]] = {}
    taken = np.empty((0, 4))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for index in np.argsort(-areas, kind="stable").tolist():
        label = _label(faces[index], names[index] if names else "")
        rows = _rows(faces[index]) if bars else ()
        block, place = _block_and_place(label, rows, boxes, index, taken, size, grow)
        placed[index] = block, place
        taken = np.concatenate([taken, [block.at(place)]])

    if not len(taken):
        return image
    low = np.minimum(taken[:, :2].min(0), 0).astype(int)
    high = np.maximum(taken[:, 2:].max(0), size).astype(int)
    if (low < 0).any() or (high > size).any():
        canvas = Image.new("RGB", tuple((high - low).tolist()), _GROUND)
        canvas.paste(image, tuple((-low).tolist()))
        image = canvas
    for index, (block, (x, y)) in placed.items():
        drawn = block.image(colors[index])
        image.paste(drawn, (x - int(low[0]), y - int(low[1])), drawn)
    return image


class _Place(NamedTuple):
    """Of a block's top left corner, in pixels of the picture; negative ones are beyond it."""

    x: int
    y: int


class _Row(NamedTuple):
    """A class of the bars."""

    name: str
    probability: float
    color: tuple[int, ...]
    is_best: bool


@dataclass(frozen=True)
class _Block:
    """A face's words: its label, and under it the bars.

    Attributes:
        name: of the label, with its number.
        value: of the label: the probability.
        rows: of the bars; empty without them.
        letter: size of the label's letters in pixels.
        most: pixels that the label may be wide.
    """

    name: str
    value: str
    rows: tuple[_Row, ...]
    letter: int
    most: int

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        width = self._label_width
        if self.rows:
            width = max(width, sum(self._columns) + 4 * self._gap)
        return min(width, self.most), self._label_height + self._row_height * len(self.rows)

    def at(self, place: _Place) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        width, height = self.size
        return place.x, place.y, place.x + width, place.y + height

    def image(self, color: tuple[int, ...]) -> Image.Image:
        """RGBA."""
        width, height = self.size
        tile = Image.new("RGBA", (width, height), _PANEL)
        pen = ImageDraw.Draw(tile)
        letters = Letters(self.letter, bold=True)
        pen.rectangle((0, 0, width, self._label_height - 1), fill=(*color, 235))
        is_light = np.dot(color, (0.299, 0.587, 0.114)) > 110
        ink = (0, 0, 0) if is_light else (255, 255, 255)
        middle = self._label_height / 2
        room = width - 2 * self._gap - _length(" " + self.value, self.letter)
        text = f"{letters.elided(self.name, room)} {self.value}"
        letters.write(pen, (self._gap, middle), text, ink)
        if not self.rows:
            return tile
        names, _, values = self._columns
        left, right = self._gap * 2 + names, width - self._gap * 2 - values
        thick = max(2, round(self._row_height * 0.5))
        for place, row in enumerate(self.rows):
            letters = Letters(self._small, bold=row.is_best)
            middle = self._label_height + (place + 0.5) * self._row_height
            letters.write(pen, (self._gap, middle), letters.elided(row.name, names), "white")
            top = round(middle - thick / 2)
            pen.rectangle((left, top, right, top + thick - 1), fill=_TRACK)
            end = left + round((right - left) * row.probability)
            if end > left:
                pen.rectangle((left, top, end, top + thick - 1), fill=row.color)
            value = _percent(row.probability)
            end = width - self._gap
            letters.write(pen, (end - letters.length(value), middle), value, "white")
        return tile

    @property
    def _gap(self) -> int:
        return max(2, round(self.letter * 0.35))

    @property
    def _label_height(self) -> int:
        return round(self.letter * 1.45)

    @property
    def _label_width(self) -> int:
        text = f"{self.name} {self.value}"
        return math.ceil(_length(text, self.letter)) + 2 * self._gap

    @property
    def _small(self) -> int:
        return max(9, round(self.letter * 0.8))

    @property
    def _row_height(self) -> int:
        return round(self._small * 1.3)

    @cached_property
    def _columns(self) -> tuple[int, int, int]:
        """Widths of names, bars and values."""
        names = math.ceil(max(_length(row.name, self._small) for row in self.rows))
        bar, values = 4 * self._small, math.ceil(_length("100%", self._small))
        return max(1, min(names, self.most - bar - values - 4 * self._gap)), bar, values


def _block_and_place(
    label: tuple[str, str],
    rows: tuple[_Row, ...],
    boxes: np.ndarray,
    index: int,
    taken: np.ndarray,
    size: tuple[int, int],
    grow: bool,
) -> tuple[_Block, _Place]:
    """The words of face `index`, and where they go.

    The largest words that fit into the picture beside all faces and the words that are `taken`;
    else beyond the picture, where it may grow; else those that hide least of the faces.
    """
    box = boxes[index]
    side, height = max(size), box[3] - box[1]
    letter = float(np.clip(height * 0.13, max(13, side * 0.016), max(15, side * 0.035)))
    least = max(10, 0.012 * side)
    letters = [round(letter * shrink) for shrink in (1, 0.85, 0.7) if letter * shrink >= least]
    widest = side if grow else size[0]
    gap = max(2, round(side / 200))
    corners = box[:2].astype(int), box[2:].astype(int)

    def best(blocks: Sequence[_Block], *, inside: bool) -> tuple[float, _Block, _Place]:
        """The block and place that hide least, and how many pixels; else grow the picture least."""
        options = []
        for order, block in enumerate(blocks):
            for number, place in enumerate(_around(*corners, block, gap, size)):
                place = _moved_inside(place, block, size) if inside else place
                hidden = _overlap(block.at(place), boxes) + _overlap(block.at(place), taken)
                grown = _beyond(block.at(place), size)
                if not hidden and not grown:
                    return hidden, block, place
                options.append(((hidden, grown, order, number), block, place))
        (hidden, *_), block, place = min(options, key=lambda option: option[0])
        return hidden, block, place

    is_large = height > 0.25 * size[1]  # bars of small faces at the border are not worth growing
    for content in (rows, ()) if rows else ((),):
        blocks = [_Block(*label, content, each, widest) for each in letters or [round(letter)]]
        hidden, block, place = best(blocks, inside=True)
        if hidden and grow and (is_large or not content):
            hidden, block, place = best(blocks[:1], inside=False)
        if not hidden:
            break
    return block, place


def _around(
    low: np.ndarray, high: np.ndarray, block: _Block, gap: int, size: tuple[int, int]
) -> list[_Place]:
    """Places beside a box from `low` to `high`, the best ones first."""
    width, height = block.size
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    # a block that is as wide as its side of the picture stays within it, where it can
    along_x = [_clip(x, size[0] - width) for x in (left, right - width)]
    along_y = [_clip(y, size[1] - height) for y in (top, bottom - height)]
    across_y = [top - gap - height, bottom + gap]
    across_x = [right + gap, left - gap - width]
    rows = [_Place(x, y) for y in across_y for x in along_x]
    columns = [_Place(x, y) for x in across_x for y in along_y]
    return [*columns, *rows] if block.rows else [*rows, *columns]


def _clip(value: int, most: int) -> int:
    return max(0, min(value, most))


def _moved_inside(place: _Place, block: _Block, size: tuple[int, int]) -> _Place:
    width, height = block.size
    return _Place(_clip(place.x, size[0] - width), _clip(place.y, size[1] - height))


def _overlap(rectangle: tuple[int, ...], others: np.ndarray) -> float:
    """Pixels that a rectangle has in common with others (n, 4)."""
    low = np.maximum(rectangle[:2], others[:, :2])
    high = np.minimum(rectangle[2:], others[:, 2:])
    return float(np.maximum(high - low, 0).prod(1).sum())


def _beyond(rectangle: tuple[int, ...], size: tuple[int, int]) -> float:
    """Pixels by which a picture grows that is to hold a rectangle."""
    width = max(rectangle[2], size[0]) - min(rectangle[0], 0)
    height = max(rectangle[3], size[1]) - min(rectangle[1], 0)
    return width * height - size[0] * size[1]


def _draw_box(pen: ImageDraw.ImageDraw, box: np.ndarray, color: tuple[int, ...], side: int) -> None:
    """With dark seams, so that it is seen on any ground."""
    width = max(3, round(side / 250))
    seam = max(1, width // 3)
    left, top, right, bottom = box.astype(int).tolist()
    outer = (left, top, max(left, right - 1), max(top, bottom - 1))
    pen.rectangle(outer, outline=_SEAM, width=width + 2 * seam)
    inner = (left + seam, top + seam, outer[2] - seam, outer[3] - seam)
    if inner[0] < inner[2] and inner[1] < inner[3]:
        pen.rectangle(inner, outline=color, width=width)


def _draw_points(pen: ImageDraw.ImageDraw, points: np.ndarray) -> None:
    """Dots as large as the face has room for."""
    extent = float(np.ptp(points, axis=0).max())
    radius = max(0.5, extent / 110)
    for x, y in points.tolist():
        if radius < 1.5:
            pen.rectangle((round(x), round(y), round(x) + 1, round(y) + 1), fill=_POINTS)
        else:
            dot = (x - radius, y - radius, x + radius, y + radius)
            pen.ellipse(dot, fill=_POINTS, outline=_SEAM)


def _color_of(face: Face) -> tuple[int, ...]:
    return _COLORS[list(face.probabilities).index(face.expression) % len(_COLORS)]


def _label(face: Face, name: str) -> tuple[str, str]:
    """What is written on a face's label: its name and expression, and the probability."""
    words = _one_line(f"{name} {face.expression}")
    return words, _percent(face.probabilities[face.expression])


def _rows(face: Face) -> tuple[_Row, ...]:
    return tuple(
        _Row(_one_line(name), value, _COLORS[place % len(_COLORS)], name == face.expression)
        for place, (name, value) in enumerate(face.probabilities.items())
    )


def _one_line(text: str) -> str:
    return legible(" ".join(printable(text).split()))


def _percent(probability: float) -> str:
    return f"{probability:.0%}"


@lru_cache(maxsize=4096)
def _length(text: str, letter: int) -> float:
    """Width of a text in bold letters, in pixels."""
    return Letters(letter, bold=True).length(text)
