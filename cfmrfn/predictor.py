"""Expressions of the faces in pictures: `Predictor`."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cfmrfn.checks import is_whole
from cfmrfn.classifier import Classifier, load_classifier
from cfmrfn.data import Sample, read_image
from cfmrfn.data.reading import UNREADABLE, image_size, reason, upright_rgb
from cfmrfn.data.transforms import normalise, to_pixels
from cfmrfn.errors import ConfigError, DataError, printable
from cfmrfn.faces import (
    FRAMING,
    DetectedFace,
    FaceDetector,
    Framing,
    align,
    check_options,
    is_framing,
)
from cfmrfn.process.cores import available_cores

Faces = Literal["whole", "detect", "auto"]
Box = tuple[float, float, float, float]
Item = TypeVar("Item")
Result = TypeVar("Result")
Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

# A picture of at most so many pixels on a side, and nearly square, is taken for a crop of a face.
# Public sets have crops of 48 to 224 pixels.
MOST_OF_CROP = 256
_NEARLY_SQUARE = 1.25

_loading = threading.Lock()  # of the caller's images, each of which Pillow loads at its first use


@dataclass(frozen=True)
class Face:
    """A face and its expression. Faces are equal where all but their landmarks is.

    Attributes:
        box: left, top, right, bottom in pixels of the picture as a viewer shows it.
        score: of the detector, 0 to 1; None where the whole picture was taken as the face.
        probabilities: of each class by name, in the network's order.
        landmarks: (68, 2), x and y in pixels of the picture, in the order of iBUG 300-W; None where
            the network has no trained landmark stream.
        track: in videos, a number from 1 that a face has in all frames; None in pictures.
    """

    box: Box
    score: float | None
    probabilities: dict[str, float] = field(hash=False)
    landmarks: np.ndarray | None = field(default=None, repr=False, compare=False)
    track: int | None = None

    @property
    def expression(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


class Predictor:
    """Finds the faces in pictures, and names their expressions.

    Args:
        checkpoint: a checkpoint, a run folder, whose `best.pt` is taken, or what `cfmrfn.export`
            wrote as ONNX or safetensors. None, or "pretrained": the network that comes with the
            package.
        device: "auto", or what `torch.device` takes.
        faces: "whole" takes each picture as one cropped face. "detect" finds the faces. "auto"
            takes a picture of at most 256 x 256 pixels whose sides are nearly equal as "whole",
            since crops of faces are such, and others as "detect".
        min_size: height of the smallest face to find, in pixels. None: 40, or a hundredth of the
            longer side of the picture if that is more.
        min_score: that a found face needs, 0 to 1.
        framing: of the crops, as in the network's training images. None: as the checkpoint says,
            and of older ones, which do not say, as in drawn faces.

    Raises:
        CheckpointError, ConfigError: the checkpoint or an argument cannot be used.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        device: str = "auto",
        faces: Faces = "auto",
        *,
        min_size: int | None = None,
        min_score: float = 0.9,
        framing: Framing | None = None,
    ) -> None:
        if faces not in ("whole", "detect", "auto"):
            raise ConfigError(f"faces must be whole, detect or auto; got {faces!r}")
        check_options(min_size, min_score)
        if not (framing is None or is_framing(framing)):
            raise ConfigError(
                f"framing must be None, or five points that are not all the same, got {framing!r}"
            )
        self.faces = faces
        self.min_size = min_size
        self.min_score = min_score
        self.classifier: Classifier = load_classifier(checkpoint, device)
        self.about = self.classifier.about
        self.framing = framing or self.about.framing or FRAMING
        self._to_pixels = to_pixels(self.about.image_size)
        self._normalise = normalise(self.about.mean, self.about.std)
        self._detector: FaceDetector | None = None
        if faces == "detect":
            self._detector = FaceDetector(min_size, min_score)  # fails now rather than later

    @overload
    def __call__(self, pictures: Picture) -> list[Face]: ...
    @overload
    def __call__(self, pictures: list[Picture] | tuple[Picture, ...]) -> list[list[Face]]: ...
    def __call__(
        self, pictures: Picture | list[Picture] | tuple[Picture, ...]
    ) -> list[Face] | list[list[Face]]:
        """The faces in a picture, the surest first; of a list of pictures, a list of these.

        Args:
            pictures: paths, PIL images, arrays or tensors, or a list of any of them. An array is
                (height, width), or (height, width, channels), which are grey, RGB or RGBA; a
                tensor has its channels first. Either is uint8, uint16, or floats from 0 to 1.

        Raises:
            DataError: a picture cannot be read.
        """
        if not isinstance(pictures, list | tuple):
            (faces,) = self._faces([pictures], workers=0)
            return faces
        return self._faces(pictures, workers=None)

    def _faces(self, pictures: Sequence[Picture], workers: int | None) -> list[list[Face]]:
        answers = []
        with closing(self.stream(pictures, workers=workers)) as results:
            for result in results:
                if isinstance(result, DataError):
                    raise result
                answers.append(result)
        return answers

    def stream(
        self, pictures: Iterable[Picture], batch_size: int = 32, workers: int | None = None
    ) -> Generator[list[Face] | DataError, None, None]:
        """The faces of one picture after the other, or why a picture cannot be read.

        While the network runs, threads read the pictures that come next and find the faces in them.

        Args:
            pictures: a list, or what else gives one after the other, of what a call takes. They are
                taken as they are needed, up to `batch_size` and two for each worker ahead. Of an
                array or a tensor with four axes the first counts its pictures.
            batch_size: faces at a time, and pictures at most.
            workers: threads that read pictures and find faces. None: one for each core, at most 8.
                0: none, and nothing is read ahead.

        Raises:
            ConfigError: an argument is not legal; or, when iterated, faces are to be found, and
                what that needs is not installed.
        """
        if isinstance(pictures, str | os.PathLike):
            raise ConfigError(f"pictures must be a list of pictures, got the one of {pictures!r}")
        what = type(pictures).__name__
        if isinstance(pictures, np.ndarray | Tensor) and pictures.ndim < 4:
            raise ConfigError(
                f"pictures must be a list of pictures, got one {what} of {tuple(pictures.shape)}"
            )
        if isinstance(pictures, bytes) or not isinstance(pictures, Iterable):
            raise ConfigError(f"pictures must be a list of pictures, got one {what}")
        if not (is_whole(batch_size) and batch_size >= 1):
            raise ConfigError(f"batch_size must be 1 or more, got {batch_size!r}")
        if workers is not None and not (is_whole(workers) and workers >= 0):
            raise ConfigError(f"workers must be 0 or more, got {workers!r}")
        if workers is None:
            workers = min(8, available_cores())
        return self._stream(pictures, batch_size, workers)

    def _stream(
        self, pictures: Iterable[Picture], batch_size: int, workers: int
    ) -> Generator[list[Face] | DataError, None, None]:
        ahead = batch_size + 2 * workers
        with closing(_map_ahead(self._prepared, pictures, workers, ahead)) as prepared:
            for batch in _batches(prepared, batch_size):
                readable = [each for each in batch if isinstance(each, Prepared)]
                answers = iter(self.classify(readable, batch_size))
                for each in batch:
                    yield next(answers) if isinstance(each, Prepared) else each

    def _prepared(self, picture: Picture) -> Prepared | DataError:
        try:
            return self.prepare(picture)
        except DataError as error:
            return error

    def prepare(self, picture: Picture, detected: Sequence[DetectedFace] | None = None) -> Prepared:
        """Reads a picture and cuts out its faces.

        Args:
            picture: as for a call.
            detected: the faces in it, where they are known.

        Raises:
            DataError: it cannot be read.
            ConfigError: faces are to be found, and what that needs is not installed.
        """
        size = self.about.image_size

        def needed(shown: tuple[int, int]) -> int | None:
            # a picture that is searched for faces, or has them cut out, at full size
            return size if detected is None and self.takes_whole(shown) else None

        image, shown = _read(picture, needed)
        if needed(shown) is not None:
            whole = DetectedFace((0, 0, *shown), 1, np.zeros((5, 2)))
            to_picture = np.diag([*np.array(shown) / size, 0])[:2]
            pixels = self._in_order(self._to_pixels(image))
            return Prepared([whole], pixels[None], [to_picture], False, self._normalise)
        photograph = np.asarray(image)
        if detected is None:
            detected = self.find(photograph)
        crops = [align(photograph, face.points, size, self.framing) for face in detected]
        stack = np.stack([crop.pixels for crop in crops]) if crops else np.empty((0, size, size, 3))
        pixels = self._in_order(torch.from_numpy(stack.astype(np.uint8, copy=False)).movedim(3, 1))
        return Prepared(
            detected, pixels, [crop.to_picture for crop in crops], True, self._normalise
        )

    def classify(self, prepared: Sequence[Prepared], batch_size: int = 32) -> list[list[Face]]:
        """The faces of each picture; the network gets up to `batch_size` of them at a time."""
        if not any(len(each.pixels) for each in prepared):
            return [[] for _ in prepared]
        batches = torch.cat([each.pixels for each in prepared]).split(int(batch_size))
        predictions = [self.classifier(self._normalise(batch)) for batch in batches]
        probabilities = iter([row for each in predictions for row in each.probabilities.tolist()])
        landmarks = iter(
            [
                points
                for each in predictions
                if each.landmarks is not None
                for points in each.landmarks.numpy()
            ]
        )
        answers = []
        for each in prepared:
            faces = []
            for face, to_picture in zip(each.detected, each.to_picture, strict=True):
                points = next(landmarks, None)
                if points is not None:
                    points = points @ to_picture[:, :2].T + to_picture[:, 2]
                named = dict(zip(self.about.class_names, next(probabilities), strict=True))
                faces.append(Face(face.box, face.score if each.found else None, named, points))
            answers.append(faces)
        return answers

    def find(self, pixels: np.ndarray) -> list[DetectedFace]:
        """The faces in a picture (height, width, 3), RGB, uint8, the surest first."""
        if self._detector is None:
            self._detector = FaceDetector(self.min_size, self.min_score)
        return self._detector(pixels)

    def follow(
        self, pixels: np.ndarray, faces: Sequence[DetectedFace]
    ) -> list[DetectedFace | None]:
        """Where the faces of one frame of a video are in the next one; None: not seen there."""
        if self._detector is None:
            self._detector = FaceDetector(self.min_size, self.min_score)
        return self._detector.follow(pixels, faces)

    def takes_whole(self, size: tuple[int, int]) -> bool:
        """Whether a picture of this width and height is taken as one face."""
        if self.faces != "auto":
            return self.faces == "whole"
        return is_crop(size)

    def _in_order(self, pixels: Tensor) -> Tensor:
        """RGB pixels (..., 3, size, size) with their channels in the network's order."""
        return pixels.flip(-3) if self.about.color == "BGR" else pixels.contiguous()


def is_crop(size: tuple[int, int]) -> bool:
    """Whether a picture of this width and height is taken for a crop of a face."""
    return max(size) <= MOST_OF_CROP and max(size) <= _NEARLY_SQUARE * min(size)


@dataclass(frozen=True)
class Prepared:
    """The faces of a picture, cut out for the network.

    Attributes:
        detected: the faces; where none were looked for, the whole picture.
        pixels: (faces, 3, size, size), uint8, channels in the network's order.
        to_picture: for each face (2, 3), takes (x, y, 1) in its pixels to x and y in the picture.
        found: whether a detector found them.
        normalise: makes float32 of pixels.
    """

    detected: Sequence[DetectedFace]
    pixels: Tensor
    to_picture: Sequence[np.ndarray]
    found: bool
    normalise: Callable[[Tensor], Tensor]

    @property
    def images(self) -> Tensor:
        """(faces, 3, size, size), normalised as the network takes them."""
        return self.normalise(self.pixels)


def _batches(
    prepared: Iterable[Prepared | DataError], size: int
) -> Iterator[list[Prepared | DataError]]:
    """Runs of `size` pictures, or fewer that have as many faces."""
    batch: list[Prepared | DataError] = []
    faces = 0
    for each in prepared:
        batch.append(each)
        faces += len(each.pixels) if isinstance(each, Prepared) else 0
        if len(batch) == size or faces >= size:
            yield batch
            batch, faces = [], 0
    if batch:
        yield batch


def _map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Generator[Result, None, None]:
    """`map(function, items)` by threads, which have begun `ahead` items before they are needed."""
    if not threads:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, "cfmrfn.Predictor")
    begun: deque[Future[Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(
    picture: Picture, needed: Callable[[tuple[int, int]], int | None]
) -> tuple[Image.Image, tuple[int, int]]:
    """RGB, upright; and the size that a viewer shows.

    Args:
        picture: as for a call of `Predictor`.
        needed: of a picture of this size, the side in pixels that will be used: files may be
            decoded at less than their size, as evaluation does. None: all of it.

    Raises:
        DataError: it cannot be read, or is no picture.
    """
    if isinstance(picture, str | os.PathLike):
        path = os.fspath(picture)
        try:
            width, height = image_size(path)
            image = read_image(Sample(path, 0), needed((width, height)))
        except UNREADABLE as error:
            raise DataError(
                f"cannot read image {printable(path)}: {reason(path, error)}"
            ) from error
        # only larger if it was decoded at less, which is done where the size is known before
        is_less = width > image.width and height > image.height
        return image, (width, height) if is_less else image.size
    if isinstance(picture, Tensor):
        picture = _from_tensor(picture)
    elif isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    if not isinstance(picture, Image.Image):
        raise DataError(
            "a picture must be a path, a PIL image, an array or a tensor; got "
            f"{type(picture).__name__}"
        )
    try:
        with _loading:  # one image may be in several places of a list, and so in several threads
            image = upright_rgb(picture)
    except UNREADABLE as error:
        raise DataError(f"cannot read the image: {printable(str(error))}") from error
    return image, image.size


def _from_tensor(pixels: Tensor) -> Image.Image:
    """Of (height, width), or (channels, height, width); raises DataError."""
    pixels = pixels.detach().cpu()
    if pixels.is_floating_point():
        pixels = pixels.float()  # NumPy has no bfloat16
    return _from_array((pixels.movedim(0, -1) if pixels.ndim > 2 else pixels).numpy())


def _from_array(pixels: np.ndarray) -> Image.Image:
    """Of (height, width), or (height, width, 1, 3 or 4); raises DataError."""
    if 0 in pixels.shape or pixels.ndim < 2 or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
        raise DataError(
            "an array must be (height, width) or (height, width, 1, 3 or 4), and a tensor "
            "(height, width) or (1, 3 or 4, height, width); got an array, or a tensor with its "
            f"channels moved to the end, of {pixels.shape}"
        )
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = pixels.min(), pixels.max()
        if not 0 <= low <= high <= 1:  # nor where one is nan
            raise DataError(f"floats must be 0 to 1, got {low:g} to {high:g}")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    elif pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)  # as of 16-bit files
    if pixels.dtype != np.uint8:
        raise DataError(f"pixels must be uint8, uint16 or floats, got {pixels.dtype}")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
