"""Drawn faces pasted into larger pictures, for tests of what finds them."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from cfmrfn.data import EXPRESSIONS
from cfmrfn.data.synthetic import draw_face


class Scene(NamedTuple):
    """A picture with faces.

    `boxes` are the squares that were pasted, left, top, right, bottom; `landmarks` are (68, 2) in
    pixels of the picture.
    """

    image: Image.Image
    boxes: list[tuple[int, int, int, int]]
    landmarks: list[np.ndarray]


def ground(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of soft patches of colour, without a face."""
    patches = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def scene(seed: int, faces: int = 3, size: tuple[int, int] = (640, 400)) -> Scene:
    """A picture with so many faces side by side, of 90 to 200 pixels."""
    rng = np.random.default_rng(seed)
    image = ground(size, seed)
    boxes, landmarks = [], []
    room = size[0] // faces
    for place in range(faces):
        side = int(rng.integers(90, min(room, 200)))
        left = place * room + int(rng.integers(0, room - side))
        top = int(rng.integers(0, size[1] - side))
        expression = EXPRESSIONS[int(rng.integers(7))]
        face = draw_face(expression, side, (seed, place))
        image.paste(face.image, (left, top))
        boxes.append((left, top, left + side, top + side))
        landmarks.append(np.add(face.landmarks, (left, top)))
    return Scene(image, boxes, landmarks)
