"""Which faces of one frame are those of the next."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfmrfn.faces import DetectedFace
from cfmrfn.predictor import Predictor

SEARCH_EVERY = 0.2  # seconds between two searches of a frame for faces; between, they are followed
FORGOTTEN_AFTER = 1.0  # seconds after which a face that is lost and comes back has a new number


@dataclass
class _Track:
    number: int
    face: DetectedFace
    seen: float  # seconds
    is_lost: bool = False


class Tracker:
    """Gives the faces of successive frames numbers, from 1, that stay with them.

    Args:
        predictor: its detector is used.
        search_every: seconds, see `SEARCH_EVERY`.
    """

    def __init__(self, predictor: Predictor, search_every: float = SEARCH_EVERY) -> None:
        self.predictor = predictor
        self.search_every = search_every
        self._tracks: list[_Track] = []
        self._count = 0
        self._next_search = -math.inf
        self._thumbnail: np.ndarray | None = None

    def __call__(self, pixels: np.ndarray, seconds: float) -> dict[int, DetectedFace]:
        """The faces of a frame (height, width, 3), RGB, uint8, by their numbers."""
        if self._is_cut(pixels):
            self._tracks.clear()
            self._next_search = -math.inf
        self._tracks = [
            track
            for track in self._tracks
            if not track.is_lost or seconds - track.seen <= FORGOTTEN_AFTER
        ]
        seen = [track for track in self._tracks if not track.is_lost]
        places = self.predictor.follow(pixels, [track.face for track in seen]) if seen else []
        visible: list[_Track] = []
        for track, place in zip(seen, places, strict=True):
            # a face that is behind another is lost, and not that one
            if place is None or any(_overlap(place, other.face) > 0.5 for other in visible):
                track.is_lost = True
            else:
                track.face, track.seen = place, seconds
                visible.append(track)
        if seconds >= self._next_search or len(visible) < len(seen):
            self._next_search = seconds + self.search_every
            self._match(self.predictor.find(pixels), seconds)
        return {track.number: track.face for track in self._tracks if track.seen == seconds}

    def _match(self, found: Sequence[DetectedFace], seconds: float) -> None:
        """Takes the faces of a search into the tracks, the nearest first."""
        pairs = sorted(
            (
                (distance, place, track)
                for place, face in enumerate(found)
                for track in self._tracks
                if (distance := _distance(face, track.face)) < 0.7
            ),
            key=lambda pair: pair[0],
        )
        left = dict(enumerate(found))
        free = {track.number for track in self._tracks}
        for _, place, track in pairs:
            if place in left and track.number in free:
                free.remove(track.number)
                track.face, track.seen, track.is_lost = left.pop(place), seconds, False
        for face in left.values():
            self._count += 1
            self._tracks.append(_Track(self._count, face, seconds))

    def _is_cut(self, pixels: np.ndarray) -> bool:
        """Whether a frame is another picture than the one before, and not a part of it moved."""
        cv2: Any = importlib.import_module("cv2")
        grey = cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_NEAREST).mean(2)
        now = grey.reshape(16, 4, 16, 4).mean((1, 3))
        before, self._thumbnail = self._thumbnail, now
        if before is None or np.abs(now - before).mean() < 12:
            return False
        # a flash, or a lamp that is put out, changes all places alike
        now, before = now - now.mean(), before - before.mean()
        likeness = (now * before).sum() / max(np.sqrt((now**2).sum() * (before**2).sum()), 1e-6)
        return bool(likeness < 0.6)


def _overlap(one: DetectedFace, other: DetectedFace) -> float:
    """Intersection over union of two boxes."""
    first, second = np.array(one.box), np.array(other.box)
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    common = np.maximum(sides, 0).prod()
    return float(
        common / ((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod() - common)
    )


def _distance(one: DetectedFace, other: DetectedFace) -> float:
    """Of two boxes' centres, in sides of the boxes; infinite for boxes of very unlike sizes."""
    first, second = (np.array(face.box).reshape(2, 2) for face in (one, other))
    sides = [np.sqrt(np.abs(box[1] - box[0]).prod()) for box in (first, second)]
    if max(sides) > 2 * min(sides):
        return math.inf
    return float(np.hypot(*(first.mean(0) - second.mean(0))) / np.mean(sides))
