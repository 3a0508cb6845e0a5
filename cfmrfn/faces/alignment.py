"""Crops of faces in photographs, framed as the network's training images are."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from cfmrfn.checks import is_number
from cfmrfn.faces.detector import FaceDetector

# Where a face's five points, as of `DetectedFace`, lie in its square crop: x and y in fractions of
# the side, symmetric.
Framing: TypeAlias = tuple[tuple[float, float], ...]

# Of the drawn faces, as `measured_framing` finds it.
FRAMING: Framing = ((0.35, 0.465), (0.65, 0.465), (0.5, 0.637), (0.38, 0.795), (0.62, 0.795))

_MIRRORED = [1, 0, 2, 4, 3]  # the points of a face in a mirror
_LEAST_FACES = 8  # of a set of images that tell their framing


def is_framing(value: object) -> bool:
    """Whether a value can be a `Framing`: five points, which are not all the same."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 5
        and all(isinstance(point, list | tuple) and len(point) == 2 for point in value)
        and all(is_number(number) for point in value for number in point)
        and any(list(point) != list(value[0]) for point in value)
    )


def measured_framing(images: Iterable[np.ndarray]) -> Framing | None:
    """The framing of crops of faces: where the detector finds the points, on average.

    Args:
        images: (height, width, 3), RGB, uint8, one face in each.

    Returns:
        None where it finds a face in fewer than eight.

    Raises:
        ConfigError: the detector is not installed.
    """
    cv2: Any = importlib.import_module("cv2")
    side, border = 112, 28  # some of the faces that fill their crop are only found with a border
    detector = FaceDetector(side // 4)
    found = []
    for image in images:
        interpolation = cv2.INTER_AREA if min(image.shape[:2]) > side else cv2.INTER_LINEAR
        image = cv2.resize(image, (side, side), interpolation=interpolation)
        image = cv2.copyMakeBorder(image, *[border] * 4, cv2.BORDER_CONSTANT)
        for face in detector(image)[:1]:
            found.append((face.points - border) / side)
    if len(found) < _LEAST_FACES:
        return None
    mean = np.mean(found, 0)
    mean = np.mean([mean, np.column_stack([1 - mean[_MIRRORED, 0], mean[_MIRRORED, 1]])], 0)
    return tuple((float(x), float(y)) for x, y in mean.round(4))


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
    """The crop of a face, turned and scaled so that its points lie where the framing has them.

    As nearly as a similarity can: the sum of squared distances is the least. What lies beyond the
    picture has the colour of its edge.

    Args:
        picture: (height, width, 3), RGB, uint8.
        points: (5, 2), as of `DetectedFace`.
        size: side of the crop in pixels.
        framing: of the crop.
    """
    cv2: Any = importlib.import_module("cv2")
    wanted = np.array(framing)
    # as complex numbers, a turn and a scaling are one product
    here, there = (each - each.mean(0) for each in (wanted, points))
    turn = np.vdot(here @ (1, 1j), there @ (1, 1j)) / (here**2).sum()
    side = max(abs(turn), 1.0)
    scale = side / size
    turn /= max(abs(turn), 1e-6)
    rotation = scale * np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    to_picture = np.column_stack([rotation, points.mean(0) - rotation @ wanted.mean(0) * size])

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
