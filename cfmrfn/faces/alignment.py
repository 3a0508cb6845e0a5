"""Crops of faces in photographs, framed as the network's training images are."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Framing:
    """Where a face lies in its square crop, in fractions of the side.

    Attributes:
        eye_distance: from the centre of one eye to that of the other.
        eyes_to_mouth: from the middle between the eyes to the middle between the mouth's corners.
        eye_height: of the middle between the eyes, from the top; it is in the middle from the left.
    """

    eye_distance: float
    eyes_to_mouth: float
    eye_height: float


# Means over the drawn faces, whose landmarks are exact.
FRAMING = Framing(eye_distance=0.31, eyes_to_mouth=0.325, eye_height=0.458)


class Crop(NamedTuple):
    """A square crop of a picture.

    Attributes:
        pixels: (size, size, 3), RGB, uint8.
        to_picture: (2, 3), takes (x, y, 1) in the crop to x and y in the picture; both are in
            pixels from the top left corner, so that the first pixel's middle is at 0.5, 0.5.
    """

    pixels: np.ndarray
    to_picture: np.ndarray


def align(picture: np.ndarray, points: np.ndarray, size: int, framing: Framing = FRAMING) -> Crop:
    """The crop of a face, turned so that its eyes are level.

    A face that is turned to the side has its eyes close together, and one that looks down has them
    close to its mouth: the larger of the two distances, each as a part of the framing's, gives the
    part of the picture. What lies beyond the picture has the colour of its edge.

    Args:
        picture: (height, width, 3), RGB, uint8.
        points: (5, 2), as of `DetectedFace`.
        size: side of the crop in pixels.
        framing: of the crop.
    """
    cv2: Any = importlib.import_module("cv2")
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    across = points[1] - points[0]
    side = max(
        np.hypot(*across) / framing.eye_distance,
        np.hypot(*(mouth - eyes)) / framing.eyes_to_mouth,
        1,
    )
    x_axis = across / max(np.hypot(*across), 1e-6)
    y_axis = np.array([-x_axis[1], x_axis[0]])
    corner = eyes - side * (0.5 * x_axis + framing.eye_height * y_axis)
    scale = side / size
    to_picture = np.column_stack([x_axis * scale, y_axis * scale, corner])

    # the part of the picture that the crop shows, with the neighbours of its outermost pixels
    outline = to_picture @ [[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]]
    margin = 2 * np.ceil(scale) + 1
    limits = np.array(picture.shape[1::-1])
    low = np.clip(np.floor(outline.min(1) - margin), 0, limits - 1).astype(int)
    high = np.clip(np.ceil(outline.max(1) + margin), low + 1, limits).astype(int)
    part = picture[low[1] : high[1], low[0] : high[0]]
    shrink = np.ones(2)
    if scale > 1:  # else pixels between those that are taken would be lost
        smaller = np.maximum(np.round((high - low) / scale), 1).astype(int)
        part = cv2.resize(part, smaller.tolist(), interpolation=cv2.INTER_AREA)
        shrink = smaller / (high - low)
    to_part = (to_picture - np.column_stack([np.zeros((2, 2)), low])) * shrink[:, None]
    # OpenCV counts from the middle of the first pixel
    to_part[:, 2] += 0.5 * to_part[:, :2].sum(1) - 0.5
    crop = cv2.warpAffine(
        part,
        to_part,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return Crop(crop, to_picture)
