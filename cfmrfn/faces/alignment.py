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
        pixels: (side, side, 3), RGB, uint8.
        to_picture: (2, 3), takes (x, y, 1) in pixels of the crop to x and y in the picture.
    """

    pixels: np.ndarray
    to_picture: np.ndarray


def align(
    picture: np.ndarray, points: np.ndarray, framing: Framing = FRAMING, most: int = 448
) -> Crop:
    """The crop of a face, turned so that its eyes are level.

    A face that is turned to the side has its eyes close together, and one that looks down has them
    close to its mouth: the larger of the two distances, each as a part of the framing's, gives the
    size. What lies beyond the picture has the colour of its edge.

    Args:
        picture: (height, width, 3), RGB, uint8.
        points: (5, 2), as of `DetectedFace`.
        framing: of the crop.
        most: side of the crop in pixels; a larger face is made smaller.
    """
    cv2: Any = importlib.import_module("cv2")
    left, right = points[:2]
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    across = right - left
    side = max(
        np.hypot(*across) / framing.eye_distance,
        np.hypot(*(mouth - eyes)) / framing.eyes_to_mouth,
    )
    pixels = int(np.clip(round(side), 2, most))
    scale = side / pixels
    x_axis = across / max(np.hypot(*across), 1e-6)
    y_axis = np.array([-x_axis[1], x_axis[0]])
    corner = eyes - side * (0.5 * x_axis + framing.eye_height * y_axis)
    to_picture = np.column_stack([x_axis * scale, y_axis * scale, corner])
    if scale > 1:  # else pixels between those that are taken would be lost
        smaller = cv2.resize(
            picture, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA
        )
        shrink = np.array([smaller.shape[1], smaller.shape[0]]) / (picture.shape[1::-1])
        taken, source = to_picture * shrink[:, None], smaller
    else:
        taken, source = to_picture, picture
    crop = cv2.warpAffine(
        source,
        taken,
        (pixels, pixels),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return Crop(crop, to_picture)
