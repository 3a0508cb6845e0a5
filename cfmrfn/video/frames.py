"""Reads a video or a camera, finds the faces in its frames, and names their expressions."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from cfmrfn.checks import is_number
from cfmrfn.errors import ConfigError
from cfmrfn.predictor import Face, Predictor, Prepared
from cfmrfn.video.files import Source, Video, VideoPicture
from cfmrfn.video.tracking import FORGOTTEN_AFTER, Tracker

Item = TypeVar("Item")

_AHEAD_FRAMES, _AHEAD_BYTES = 8, 1 << 26  # that a thread may be ahead of the next one


@dataclass(frozen=True)
class Frame:
    """A frame of a video, and the faces in it.

    Attributes:
        number: from 0. A camera's frames that came too fast are counted, and not read.
        seconds: from the start of the video.
        pixels: (height, width, 3), RGB, uint8, turned as a player shows it.
        faces: the oldest first; `track` is the same in all frames that show the same face.
    """

    number: int
    seconds: float
    pixels: np.ndarray
    faces: list[Face]


def read(
    source: Source | Video,
    predictor: Predictor,
    *,
    smooth: float = 0.0,
    limit: float | None = None,
) -> Generator[Frame, None, None]:
    """The frames of a video or a camera, with their faces.

    Every frame's faces are located, and named by the network. A frame is searched for faces at its
    first frame, after each cut, five times a second, and whenever a face is lost; in the frames
    between, the detector's last network follows them. After a cut all faces have new numbers.

    Args:
        source: path of a file, index of a camera, or an open `Video`.
        predictor: what finds and names the faces. Where it takes frames of this size as whole
            faces, each frame is one face of track 1.
        smooth: time constant in seconds of an exponential moving average of each face's
            probabilities: what was seen this long ago counts 0.37 of what is seen now. 0: none.
        limit: seconds after which to stop.

    Raises:
        DataError: the file or camera cannot be read; or, after the last frame that could be read,
            the video ends early.
        ConfigError: an argument is not legal, or OpenCV is not installed.
    """
    if not (is_number(smooth) and smooth >= 0):
        raise ConfigError(f"smooth must be 0 seconds or more, and finite; got {smooth!r}")
    if limit is not None and not (is_number(limit) and limit > 0):
        raise ConfigError(f"limit must be more than 0 seconds, and finite; got {limit!r}")
    if isinstance(source, Video):
        return _read(source, predictor, smooth, limit)
    return _read_and_close(Video(source), predictor, smooth, limit)


def _read_and_close(
    video: Video, predictor: Predictor, smooth: float, limit: float | None
) -> Generator[Frame, None, None]:
    with video, closing(_read(video, predictor, smooth, limit)) as frames:
        yield from frames


def _read(
    video: Video, predictor: Predictor, smooth: float, limit: float | None
) -> Generator[Frame, None, None]:
    depth = 1
    if not video.is_live:
        frame_bytes = 3 * max(1, math.prod(video.size))
        depth = int(np.clip(_AHEAD_BYTES // frame_bytes, 1, _AHEAD_FRAMES))
    average = _Average(smooth)
    pictures = _Ahead(video.pictures(limit), depth, newest=video.is_live)
    with closing(_Ahead(_located(pictures, Tracker(predictor)), depth)) as located:
        while batch := located.take(depth):
            faces = predictor.classify([each.prepared for each in batch])
            for each, named in zip(batch, faces, strict=True):
                picture = each.picture
                tracked = [
                    replace(face, track=track)
                    for track, face in zip(each.tracks, named, strict=True)
                ]
                yield Frame(
                    picture.number, picture.seconds, picture.pixels, average(tracked, picture)
                )


class _Located(NamedTuple):
    """A picture, and its faces cut out for the network.

    Attributes:
        picture: of a video.
        tracks: numbers of the faces.
        prepared: the faces, in the same order.
    """

    picture: VideoPicture
    tracks: list[int]
    prepared: Prepared


def _located(pictures: _Ahead[VideoPicture], tracker: Tracker) -> Generator[_Located, None, None]:
    with closing(pictures):
        while batch := pictures.take(1):
            (picture,) = batch
            pixels = picture.pixels
            if tracker.predictor.takes_whole((pixels.shape[1], pixels.shape[0])):
                yield _Located(picture, [1], tracker.predictor.prepare(pixels))
                continue
            found = tracker(pixels, picture.seconds)
            prepared = tracker.predictor.prepare(pixels, list(found.values()))
            yield _Located(picture, list(found), prepared)


class _Average:
    """Exponential moving average of the probabilities of each track, see `read`."""

    def __init__(self, time_constant: float) -> None:
        self.time_constant = time_constant
        self.last: dict[int, tuple[float, dict[str, float]]] = {}

    def __call__(self, faces: list[Face], picture: VideoPicture) -> list[Face]:
        if not self.time_constant:
            return faces
        averaged = []
        for face in faces:
            assert face.track is not None
            values = face.probabilities
            if face.track in self.last:
                since, before = self.last[face.track]
                old = math.exp((since - picture.seconds) / self.time_constant)
                values = {
                    name: old * before[name] + (1 - old) * value for name, value in values.items()
                }
            self.last[face.track] = picture.seconds, values
            averaged.append(replace(face, probabilities=values))
        # tracks that do not come back
        self.last = {
            track: (since, values)
            for track, (since, values) in self.last.items()
            if picture.seconds - since <= FORGOTTEN_AFTER
        }
        return averaged


class _Ahead(Generic[Item]):
    """An iterator that runs in a thread of its own, a few items ahead.

    Args:
        items: closed by the thread.
        depth: number of items that may wait.
        newest: whether of items that are not taken in time the oldest are dropped.
    """

    def __init__(
        self, items: Generator[Item, None, None], depth: int, *, newest: bool = False
    ) -> None:
        self._items = items
        self._depth = depth
        self._newest = newest
        self._waiting: deque[Item] = deque(maxlen=depth if newest else None)
        self._changed = threading.Condition()
        self._is_closed = self._has_ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="cfmrfn.video", daemon=True)
        self._thread.start()

    def take(self, most: int) -> list[Item]:
        """The next items, as many as wait, at least one; none at the end.

        Raises what the iterator raised, after its last item.
        """
        with self._changed:
            while not self._waiting and not self._has_ended:
                self._changed.wait()
            items = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            self._changed.notify_all()
        if not items and self._error is not None:
            raise self._error
        return items

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            with closing(self._items):
                for item in self._items:
                    if not self._put(item):
                        break
        except BaseException as error:  # raised where the items are taken
            self._error = error
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _put(self, item: Item) -> bool:
        """Whether more items are wanted."""
        with self._changed:
            while not self._newest and len(self._waiting) >= self._depth and not self._is_closed:
                self._changed.wait()
            self._waiting.append(item)
            self._changed.notify_all()
            return not self._is_closed
