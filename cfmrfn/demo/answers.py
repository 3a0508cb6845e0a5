"""Uploaded bytes into what `POST /predict` answers; see the package for its entries."""

from __future__ import annotations

import base64
import io
import time
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from cfmrfn.data.reading import (
    HEIC_NEEDS,
    PHOTOGRAPHS,
    UNREADABLE,
    begins_as_heic,
    heic_is_readable,
    upright_rgb,
)
from cfmrfn.demo.attention import AttentionMaps
from cfmrfn.errors import DataError, printable
from cfmrfn.inference import plain_face
from cfmrfn.predictor import Predictor

MOST_SHOWN = 1600  # side of the picture that is sent back, in pixels


class NotAPicture(DataError):
    """The bytes are those of no picture, or of a kind that is not read here."""


class Answers:
    """What the page and other programs are told.

    Args:
        predictor: whose answers they are.
        name: of the run.
    """

    def __init__(self, predictor: Predictor, name: str) -> None:
        self._predictor = predictor
        self._name = name
        self._attention = AttentionMaps.of(predictor.classifier)

    def about(self) -> dict[str, Any]:
        """The answer to `GET /about`, but for what the server knows."""
        about = self._predictor.about
        data = about.config.images.data
        return {
            "network": about.config.network.preset,
            "run": printable(self._name),
            "class_names": about.class_names,
            "trained_on": None if about.is_drawn else printable(Path(str(data)).name),
            "attention": None if self._attention is None else self._attention.about(),
            "most_pixels": Image.MAX_IMAGE_PIXELS,
        }

    def answer(self, data: bytes, *, attention: bool, picture: bool) -> dict[str, Any]:
        """The answer to `POST /predict`.

        Args:
            data: of the picture's file.
            attention, picture: whether these are asked for.

        Raises:
            NotAPicture: it is none.
            DataError: it cannot be read.
        """
        start = time.perf_counter()
        image = decode(data)
        prepared = self._predictor.prepare(image)
        (found,) = self._predictor.classify([prepared])
        size = self._predictor.about.image_size
        faces = [
            {
                **plain_face(number, face),
                "crop": {"size": size, "to_picture": to_picture.tolist()},
            }
            for number, (face, to_picture) in enumerate(
                zip(found, prepared.to_picture, strict=True), 1
            )
        ]
        if attention and faces and self._attention is not None:
            for entry, maps in zip(faces, self._attention(prepared.images), strict=True):
                entry["attention"] = maps
        answer = {"width": image.width, "height": image.height, "faces": faces}
        if picture:
            image.thumbnail((MOST_SHOWN, MOST_SHOWN))
            answer["picture"] = _data_url(image)
        return {**answer, "seconds": round(time.perf_counter() - start, 3)}


def decode(data: bytes) -> Image.Image:
    """The picture in a file's bytes: RGB, upright.

    Raises:
        NotAPicture: there is none.
        DataError: it is damaged, or has too many pixels.
    """
    if not data:
        raise DataError("the file is empty")
    heic = ("HEIF",) if heic_is_readable() else ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # others are left out: some, Pillow hands to other programs in files
            with Image.open(io.BytesIO(data), formats=PHOTOGRAPHS + heic) as image:
                return upright_rgb(image)
    except UnidentifiedImageError:
        if begins_as_heic(data) and not heic:
            raise NotAPicture(f"this is {HEIC_NEEDS}") from None
        raise NotAPicture(
            "this is no picture that can be read here; legal are JPEG, PNG, WebP, GIF, BMP, TIFF, "
            "PPM, JPEG 2000 and AVIF"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise DataError(
            f"the picture has too many pixels; {most:.0f} million are the most: make it smaller"
        ) from None
    except UNREADABLE as error:
        reason = printable(str(error)) or type(error).__name__
        raise DataError(f"the picture is damaged: {reason}") from error


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
