"""Video files and cameras, read and written by OpenCV."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from cfmrfn.errors import ConfigError, DataError, printable
from cfmrfn.video.containers import begins_video, cut_off

Source: TypeAlias = "str | os.PathLike[str] | int"

_CONVERT = "`ffmpeg -i FILE -c:v libx264 NEW.mp4` makes a file that it reads"
_NEEDS = "reading video needs OpenCV: pip install 'sdwa[faces]'"
# Frames per second: cameras reach 960; WebM files whose rate varies say 1000, whatever they have.
_MOST_RATE, _USUAL_RATE = 960, 30
_LONGEST_PAUSE = 600  # seconds between two frames; more is an error in the file
_MOST_LOST = 300  # damaged frames in a row; after more, the rest is given up


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
        rate: frames per second; of a file whose rate varies, the average. 30 where none is said, or
            more than 960.
        said_rate: what the file or camera says.
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
        self.said_rate = float(get(self._cv2.CAP_PROP_FPS))
        is_likely = 0 < self.said_rate <= _MOST_RATE
        self.rate = self.said_rate if is_likely else float(_USUAL_RATE)
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
                frames in it could not be decoded, or the camera stopped.
        """
        count, seconds, start = 0, 0.0, time.monotonic()
        failed = lost = 0  # reads; and those of them after which a frame came
        while True:
            is_read, pixels = self._capture.read()
            if not is_read:
                failed += 1
                # the end; or a damaged frame, after which others may be whole
                if count + failed > (self.frames or 0) or failed - lost > _MOST_LOST:
                    break
                continue
            lost = failed
            if self.is_live:
                seconds = time.monotonic() - start if count else 0.0
                start = start if count else time.monotonic()
            else:
                seconds = self._time_of(count, seconds)
            if limit is not None and seconds >= limit:
                if lost:
                    raise DataError(self._damage(count, lost))
                return
            yield VideoPicture(count, seconds, self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB))
            count += 1
        if reason := self._why_ended(count) or (self._damage(count, lost) if lost else None):
            raise DataError(reason)

    def _damage(self, count: int, lost: int) -> str:
        return (
            f"video {self.name} is damaged: {lost} frames could not be decoded, {count} were read"
        )

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
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe may never be written to
            what = "a folder" if os.path.isdir(path) else "no file but a pipe or a device"
            raise DataError(f"cannot read video {self.name}: {what}")
        try:
            with open(path, "rb") as file:
                head = file.read(512)
                # OpenCV would open lists of addresses, too
                if not begins_video(head) and not head.startswith((b"GIF8", b"\x89PNG")):
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
        why = cut_off(self.path) or (
            f"it is damaged, has no pictures, or OpenCV lacks its codec; {_CONVERT}"
        )
        return f"cannot read video {self.name}: {why}"

    def _why_ended(self, count: int) -> str | None:
        """What is wrong after `count` frames were read; None: nothing."""
        if self.path is None:
            return f"{self.name} gave no more pictures after {count} frames"
        of = "" if self.frames is None else f" of {self.frames}"
        cut = cut_off(self.path)
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
