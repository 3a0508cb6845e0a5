"""Faces and their expressions in videos and before cameras, frame by frame::

    predictor = cfmrfn.Predictor("best.pt")
    for frame in cfmrfn.video.read("clip.mp4", predictor):
        print(frame.number, frame.seconds, [(face.track, face.expression) for face in frame.faces])

OpenCV decodes and encodes. One thread reads the frames that come next, another finds the faces in
them, and the network runs in the caller's.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from cfmrfn.data.files import IMAGE_SUFFIXES
from cfmrfn.data.reading import HEIC_SUFFIXES
from cfmrfn.errors import ConfigError, DataError, printable
from cfmrfn.faces import DetectedFace
from cfmrfn.predictor import Face, Predictor, Prepared

Item = TypeVar("Item")
Source: TypeAlias = "str | os.PathLike[str] | int"

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts",
    ".wmv", ".flv", ".3gp", ".ogv",
)  # fmt: skip

SEARCH_EVERY = 0.2  # seconds between two searches of a frame for faces; between, they are followed
FORGOTTEN_AFTER = 1.0  # seconds after which a face that is lost and comes back has a new number

_CONVERT = "`ffmpeg -i FILE -c:v libx264 NEW.mp4` makes a file that it reads"
_NEEDS = "reading video needs OpenCV: pip install 'sdwa[faces]'"
_AHEAD_FRAMES, _AHEAD_BYTES = 8, 1 << 26  # that a thread may be ahead of the next one
_MOST_RATE, _USUAL_RATE = 240, 30  # frames per second
_LONGEST_PAUSE = 600  # seconds between two frames; more is an error in the file


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
    if not 0 <= smooth < math.inf:
        raise ConfigError(f"smooth must be 0 seconds or more, got {smooth}")
    if limit is not None and not limit > 0:
        raise ConfigError(f"limit must be more than 0 seconds, got {limit}")
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
        return averaged


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
        self._tracks = [track for track in self._tracks if seconds - track.seen <= FORGOTTEN_AFTER]
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


class VideoPicture(NamedTuple):
    """A frame as it was read; see `Frame`."""

    number: int
    seconds: float
    pixels: np.ndarray


class Video:
    """A video file or a camera, open for reading.

    Args:
        source: path of a file, or index of a camera. An animated picture that FFmpeg reads, such as
            GIF, is a video here.

    Attributes:
        name: of it, for messages.
        is_live: whether it is a camera.
        rate: frames per second; of a file whose rate varies, the average.
        size: width and height in pixels.
        frames: number of them as the file says, which is not always exact; None: not known.

    Raises:
        DataError: it cannot be opened; says why.
        ConfigError: OpenCV is not installed.
    """

    def __init__(self, source: Source) -> None:
        self._cv2 = opencv()
        self.is_live = isinstance(source, int)
        self.path = None if isinstance(source, int) else os.fspath(source)
        self.name = f"camera {source}" if self.path is None else printable(self.path)
        with _quietly(self._cv2):
            if isinstance(source, int):
                self._capture = self._cv2.VideoCapture(source)
            else:
                self._capture = self._open_file(os.fspath(source))
        if not self._capture.isOpened():
            self.close()
            raise DataError(self._why_closed())
        get = self._capture.get
        rate = get(self._cv2.CAP_PROP_FPS)
        self.rate = float(rate) if 0 < rate <= _MOST_RATE else float(_USUAL_RATE)
        self.size = (
            int(get(self._cv2.CAP_PROP_FRAME_WIDTH)),
            int(get(self._cv2.CAP_PROP_FRAME_HEIGHT)),
        )
        frames = get(self._cv2.CAP_PROP_FRAME_COUNT)
        self.frames = int(frames) if 0 < frames < 1e9 and not self.is_live else None

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends reading."""
        self._capture.release()

    def pictures(self, limit: float | None = None) -> Generator[VideoPicture, None, None]:
        """The frames; once.

        Args:
            limit: seconds after which to stop.

        Raises:
            DataError: after the last frame that could be read: there was none, the file is cut off,
                or the camera stopped.
        """
        count, seconds, start = 0, 0.0, time.monotonic()
        while True:
            is_read, pixels = self._capture.read()
            if not is_read:
                break
            if self.is_live:
                seconds = time.monotonic() - start if count else 0.0
                start = start if count else time.monotonic()
            else:
                seconds = self._time_of(count, seconds)
            if limit is not None and seconds >= limit:
                return
            yield VideoPicture(count, seconds, self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB))
            count += 1
        if reason := self._why_ended(count):
            raise DataError(reason)

    def _time_of(self, number: int, before: float) -> float:
        """Seconds of the frame that was read; files may have frames without a time."""
        told = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000
        if not number:
            return told if 0 <= told < _LONGEST_PAUSE else 0.0
        return told if before < told < before + _LONGEST_PAUSE else before + 1 / self.rate

    def _open_file(self, path: str) -> Any:
        """A capture, open or not.

        Raises:
            DataError: the file is not there, or not readable, or empty, or no video.
        """
        try:
            with open(path, "rb") as file:
                head = file.read(512)
                # OpenCV would open lists of addresses, too
                if not _begins_video(head) and not head.startswith((b"GIF8", b"\x89PNG")):
                    what = "no video by its content" if head else "empty file"
                    raise DataError(f"cannot read video {self.name}: {what}")
                # an absolute path is never taken for an address
                name = _for_opencv(os.path.abspath(path), f"/dev/fd/{file.fileno()}")
                return self._cv2.VideoCapture(name, self._cv2.CAP_FFMPEG)
        except OSError as error:
            raise DataError(f"cannot read video {self.name}: {_why(error)}") from error

    def _why_closed(self) -> str:
        if self.path is None:
            return (
                f"cannot open {self.name}: there is none, another program uses it, or this one may "
                "not"
            )
        why = _cut_off(self.path) or (
            f"it is damaged, has no pictures, or OpenCV lacks its codec; {_CONVERT}"
        )
        return f"cannot read video {self.name}: {why}"

    def _why_ended(self, count: int) -> str | None:
        """What is wrong after `count` frames were read; None: nothing."""
        if self.path is None:
            return f"{self.name} gave no more pictures after {count} frames"
        of = "" if self.frames is None else f" of {self.frames}"
        cut = _cut_off(self.path)
        if not count:
            code = int(self._capture.get(self._cv2.CAP_PROP_FOURCC)).to_bytes(4, "little")
            codec = printable(code.decode("latin-1"))
            why = cut or f"it is damaged, or OpenCV lacks its codec, {codec}; {_CONVERT}"
            return f"cannot read video {self.name}: no frame{of} could be decoded: {why}"
        return f"video {self.name} ends early: {count}{of} frames were read: {cut}" if cut else None


class VideoWriter:
    """Writes frames as an MP4 file (MPEG-4 Part 2, without sound), which is there when all is.

    A file has frames at a constant rate: a frame is repeated until the next one's time, and of
    several that fall on one the first is taken. So it lasts as long as the source does.

    Args:
        path: of the file, which ends in .mp4.
        rate: frames per second.

    Raises:
        ConfigError: OpenCV is not installed.
        OSError: when used, the file cannot be written whole.
    """

    def __init__(self, path: str | Path, rate: float) -> None:
        self._cv2 = opencv()
        self.path = Path(path)
        self.rate = rate
        self._partial = self.path.with_name(f".{os.getpid()}-{id(self):x}.partial.mp4")
        self._folder: int | None = None
        self._writer: Any = None
        self._size = (0, 0)
        self._last: np.ndarray | None = None
        self._start = 0.0
        self._count = 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._writer is not None:
                self._writer.release()
                if kind is None:
                    self._check()
                    self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)
            if self._folder is not None:
                os.close(self._folder)

    def write(self, frame: Image.Image | np.ndarray, seconds: float) -> None:
        """Adds a frame, RGB, that is shown from this time on; all of the size of the first one."""
        pixels = self._cv2.cvtColor(np.asarray(frame), self._cv2.COLOR_RGB2BGR)
        if self._writer is None:
            self._size = pixels.shape[1], pixels.shape[0]
            self._start = seconds
            self._writer = self._open()
        if (pixels.shape[1], pixels.shape[0]) != self._size:
            pixels = self._cv2.resize(pixels, self._size, interpolation=self._cv2.INTER_AREA)
        place = round((seconds - self._start) * self.rate)
        while self._last is not None and self._count < place:
            self._add(self._last)
        if self._count <= place:
            self._add(pixels)
        self._last = pixels

    def _add(self, pixels: np.ndarray) -> None:
        self._writer.write(pixels)
        self._count += 1

    def _open(self) -> Any:
        self._partial.touch()  # OpenCV would not say why it cannot
        self._folder = os.open(self._partial.parent, os.O_RDONLY) if os.name == "posix" else None
        name = _for_opencv(
            os.path.abspath(self._partial), f"/dev/fd/{self._folder}/{self._partial.name}"
        )
        with _quietly(self._cv2):
            code = self._cv2.VideoWriter_fourcc(*"mp4v")
            writer = self._cv2.VideoWriter(name, self._cv2.CAP_FFMPEG, code, self.rate, self._size)
        if not writer.isOpened():
            raise OSError(f"OpenCV cannot write video {printable(str(self.path))} as MPEG-4")
        return writer

    def _check(self) -> None:
        """OpenCV does not say that a disk is full."""
        full = OSError(f"cannot write video {printable(str(self.path))}: is the disk full?")
        try:
            with Video(self._partial) as written:
                frames = written.frames
        except DataError:
            raise full from None
        if frames != self._count:
            raise full


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


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video by its name, or, where that says neither video nor picture, by its
    first bytes. An animated picture is a picture."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    if suffix in (*IMAGE_SUFFIXES, *HEIC_SUFFIXES):
        return False
    try:
        with open(path, "rb") as file:
            return _begins_video(file.read(512))
    except OSError:
        return False


def camera(name: str) -> int | None:
    """The index that a name on the command line has as a camera, where no file has that name."""
    return int(name) if name.isascii() and name.isdecimal() and not os.path.exists(name) else None


def _begins_video(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a container of videos."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in _PICTURE_BRANDS
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    is_transport_stream = any(
        len(head) > start + 188 and head[start] == head[start + size] == 0x47
        for start, size in ((0, 188), (4, 192))
    )
    return is_transport_stream or head[4:8] in _BOXES or head.startswith(_STARTS)


# Of MP4 and QuickTime: the first box of files from before `ftyp`; pictures in files of their kind.
_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip")
_PICTURE_BRANDS = (
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis"),
)
_EBML = b"\x1aE\xdf\xa3"
_STARTS = (
    _EBML,  # Matroska, WebM
    b"FLV",
    b"OggS",
    b"0&\xb2u\x8ef\xcf\x11",  # ASF, WMV
    b"\x00\x00\x01\xba",  # MPEG
    b"\x00\x00\x01\xb3",
)


def _cut_off(path: str) -> str | None:
    """What is missing from the end of a file by the lengths in it; None: nothing that is known."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[:4] == _EBML:
            end, has_index = _end_of_matroska(file), True
        elif head[:4] == b"RIFF":
            end, has_index = _end_of_riff(file), True
        elif head[4:8] in (b"ftyp", *_BOXES):
            end, has_index = _end_of_boxes(file)
        else:
            return None
    if end > size:
        return f"it is cut off, {size} of {end} bytes are there"
    if not has_index:
        return "its index is missing, as where a recording was not ended"
    return None


def _end_of_boxes(file: BinaryIO) -> tuple[int, bool]:
    """Where the last box of an MP4 or QuickTime file ends, and whether there is an index."""
    place, has_index = 0, False
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        has_index |= kind == b"moov"
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8 or not kind.isalnum():  # 0: up to the end of the file
            break
        place += length
        file.seek(place)
    return place, has_index


def _end_of_riff(file: BinaryIO) -> int:
    """Where the last part of an AVI file ends."""
    place = 0
    while (head := file.read(8))[:4] == b"RIFF" and len(head) == 8:
        place += 8 + int.from_bytes(head[4:], "little")
        file.seek(place)
    return place


def _end_of_matroska(file: BinaryIO) -> int:
    """Where the segment of a Matroska or WebM file ends; 0: it does not say."""
    place = 0
    for identifier in (_EBML, b"\x18S\x80g"):
        if file.read(4) != identifier:
            return 0
        first = file.read(1)
        if not first or not first[0]:
            return 0
        extra = 8 - first[0].bit_length()  # bytes that follow
        length = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + file.read(extra), "big")
        if length == (1 << 7 * (extra + 1)) - 1:
            return 0
        place = file.tell() + length
        file.seek(place)
    return place


def _for_opencv(path: str, other: str) -> str:
    """A path; OpenCV takes UTF-8 alone, so another path of the same file where it is none."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return other
    return path


def _why(error: OSError) -> str:
    return "missing" if isinstance(error, FileNotFoundError) else str(error.strerror or error)


def opencv() -> Any:
    """The module; raises ConfigError where it is not installed."""
    if importlib.util.find_spec("cv2") is None:
        raise ConfigError(_NEEDS)
    # read when FFmpeg first starts: without it, damaged files fill the terminal
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    return importlib.import_module("cv2")


_quiet = threading.Lock()
_SILENT = 0  # OpenCV's LOG_LEVEL_SILENT


@contextmanager
def _quietly(cv2: Any) -> Iterator[None]:
    """Without OpenCV's own words on the terminal about what cannot be opened."""
    # OpenCV 5 has them elsewhere
    logging = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
    with _quiet:
        level = logging.getLogLevel()
        logging.setLogLevel(_SILENT)
        try:
            yield
        finally:
            logging.setLogLevel(level)
