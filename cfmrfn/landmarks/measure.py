"""How well landmarks are found: on held-out drawn faces, and on photographs beside MTCNN."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from cfmrfn.faces import FaceDetector, align
from cfmrfn.landmarks.crops import Faces, plain_crops, spoilt_crops
from cfmrfn.models.mobilefacenet import NATIVE_SIZE, MobileFaceNet

OUTER_CORNERS = (36, 45)  # landmarks: of the eyes
FAILED = 0.08  # error from which on a face counts as failed

# The five points of a detector as means of landmarks: eyes, tip of the nose, corners of the mouth.
FIVE_POINTS = (range(36, 42), range(42, 48), (30,), (48,), (54,))

TRUE_COLOR, FOUND_COLOR = "#E69F00", "#00E5FF"


@torch.no_grad()
def find_landmarks(network: MobileFaceNet, crops: Tensor) -> Tensor:
    """(n, 3, 112, 112) in 0..1 -> (n, 68, 2), fractions of the side"""
    network.eval()
    device = next(network.parameters()).device
    return torch.cat([network(part.to(device)).cpu() for part in crops.split(64)])


def errors_of(found: Tensor, true: Tensor) -> Tensor:
    """(n,): mean distance of the landmarks in parts of that of the outer corners of the eyes.

    The normalised mean error of 300-W (Sagonas et al. 2013).

    Args:
        found, true: (n, 68, 2).
    """
    left, right = OUTER_CORNERS
    between = (true[:, left] - true[:, right]).norm(dim=1)
    return (found - true).norm(dim=2).mean(1) / between


@dataclass(frozen=True)
class Drawn:
    """Held-out drawn faces and what is found in them: as they are, and spoilt as in training.

    Attributes:
        crops: (n, 3, 112, 112), by what they are.
        true, found: (n, 68, 2), fractions of the side, likewise.
    """

    crops: dict[str, Tensor]
    true: dict[str, Tensor]
    found: dict[str, Tensor]

    def errors(self, name: str) -> Tensor:
        """(n,), see `errors_of`."""
        return errors_of(self.found[name], self.true[name])

    def __str__(self) -> str:
        lines = []
        for name, true in self.true.items():
            error = self.errors(name)
            lines.append(
                f"{name}: error {error.mean():.2%} of the distance between the outer corners of "
                f"the eyes, {(error > FAILED).float().mean():.1%} of {len(true)} faces above "
                f"{FAILED:.0%} (their mean landmarks, the same for all: "
                f"{errors_of(true.mean(0, keepdim=True), true).mean():.2%})"
            )
        return "\n".join(lines)

    def sheet(self, columns: int = 8) -> Image.Image:
        """A picture: two rows of each kind, true landmarks below those that are found."""
        tiles = []
        for name, crops in self.crops.items():
            for place in range(min(2 * columns, len(crops))):
                points = {TRUE_COLOR: self.true[name][place], FOUND_COLOR: self.found[name][place]}
                tiles.append(tile(crops[place], {c: p.numpy() for c, p in points.items()}))
        return sheet(tiles, columns)


def measure_drawn(network: MobileFaceNet, faces: Faces, seed: int) -> Drawn:
    """Finds the landmarks of drawn faces; `seed` decides how they are spoilt."""
    pictures, points = faces.take(slice(None))
    generator = Generator().manual_seed(seed)
    cut = {
        "framed as drawn sets": plain_crops(pictures, points),
        "spoilt as in training": spoilt_crops(pictures, points, NATIVE_SIZE, generator),
    }
    crops = {name: each for name, (each, _) in cut.items()}
    found = {name: find_landmarks(network, each) for name, each in crops.items()}
    return Drawn(crops, {name: true for name, (_, true) in cut.items()}, found)


@dataclass(frozen=True)
class Photographed:
    """Faces of photographs, each with the five points that the detector finds in its crop.

    Attributes:
        crops: (n, 112, 112, 3), RGB, uint8.
        five: (n, 5, 2), of the detector, fractions of the side.
        landmarks: (n, 68, 2), of the network, likewise.
    """

    crops: np.ndarray
    five: np.ndarray
    landmarks: np.ndarray

    def errors(self, five: np.ndarray) -> np.ndarray:
        """(n, 5): distances of points (n or 1, 5, 2) from the detector's, in parts of its eyes'."""
        between = np.linalg.norm(self.five[:, 0] - self.five[:, 1], axis=1)
        distances: np.ndarray = np.linalg.norm(five - self.five, axis=2) / between[:, None]
        return distances

    def __str__(self) -> str:
        error = self.errors(five_of(self.landmarks))
        eyes, nose, mouth = error[:, :2].mean(), error[:, 2].mean(), error[:, 3:].mean()
        each = error.mean(1)
        return (
            f"{len(each)} faces: five points {each.mean():.1%} of the distance of the eyes away "
            f"from MTCNN's, median {np.median(each):.1%} (eyes {eyes:.1%}, tip of the nose "
            f"{nose:.1%}, corners of the mouth {mouth:.1%}){self._of_mean_face()}"
        )

    def _of_mean_face(self) -> str:
        """What no look at the faces at all would reach; of few faces that says nothing."""
        if len(self.five) < 30:
            return ""
        error = self.errors(self.five.mean(0, keepdims=True)).mean()
        return f"; the mean of MTCNN's points, the same for all, would be {error:.1%} away"

    def sheet(self, columns: int = 8, rows: int = 6) -> Image.Image:
        """A picture of some of the faces, the detector's points below the landmarks."""
        places = np.linspace(0, len(self.crops) - 1, min(columns * rows, len(self.crops)))
        tiles = []
        for place in places.astype(int).tolist():
            crop = torch.from_numpy(self.crops[place]).permute(2, 0, 1) / 255
            points = {TRUE_COLOR: self.five[place], FOUND_COLOR: self.landmarks[place]}
            tiles.append(tile(crop, points))
        return sheet(tiles, columns)


def five_of(landmarks: np.ndarray) -> np.ndarray:
    """(n, 68, 2) -> (n, 5, 2): the points that `DetectedFace` has."""
    return np.stack([landmarks[:, list(part)].mean(1) for part in FIVE_POINTS], 1)


def measure_photographs(
    network: MobileFaceNet, pictures: Iterable[tuple[np.ndarray, bool]]
) -> Photographed | None:
    """Finds the landmarks of the faces that MTCNN finds in pictures.

    Args:
        network: what finds the landmarks.
        pictures: (height, width, 3), RGB, uint8, each with whether it is a crop of one face, which
            the network sees as it is; in others faces are found, and cropped as for prediction.

    Returns:
        None where there are no faces.

    Raises:
        ConfigError: the detector is not installed.
    """
    crops, five = [], []
    detector, small = FaceDetector(), FaceDetector(NATIVE_SIZE // 4)
    for picture, is_crop in pictures:
        found = [_seen_whole(picture, small)] if is_crop else _cut_out(picture, detector)
        for face in found:
            if face is not None:
                crops.append(face[0])
                five.append(face[1])
    if not crops:
        return None
    seen = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
    landmarks = find_landmarks(network, seen).numpy()
    return Photographed(np.stack(crops), np.stack(five), landmarks)


def _seen_whole(
    picture: np.ndarray, detector: FaceDetector
) -> tuple[np.ndarray, np.ndarray] | None:
    """The crop, and the detector's points in it; None: it finds no face."""
    cv2: Any = importlib.import_module("cv2")
    size = (NATIVE_SIZE, NATIVE_SIZE)
    interpolation = cv2.INTER_AREA if min(picture.shape[:2]) > NATIVE_SIZE else cv2.INTER_LINEAR
    crop = cv2.resize(picture, size, interpolation=interpolation)
    border = NATIVE_SIZE // 4  # some faces that fill their crop are only found with a border
    faces = detector(cv2.copyMakeBorder(crop, *[border] * 4, cv2.BORDER_CONSTANT))
    return (crop, (faces[0].points - border) / NATIVE_SIZE) if faces else None


def _cut_out(picture: np.ndarray, detector: FaceDetector) -> list[tuple[np.ndarray, np.ndarray]]:
    """The crops of the faces in a picture, and the detector's points in them."""
    cut = []
    for face in detector(picture):
        crop = align(picture, face.points, NATIVE_SIZE)
        turn, shift = crop.to_picture[:, :2], crop.to_picture[:, 2]
        points = np.linalg.solve(turn, (face.points - shift).T).T / NATIVE_SIZE
        cut.append((crop.pixels, points))
    return cut


def tile(crop: Tensor, points: dict[str, np.ndarray], scale: int = 2) -> Image.Image:
    """A crop (3, side, side), enlarged, with dots at points (n, 2) by their colour."""
    pixels = (crop.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    side = scale * len(pixels)
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for color, each in points.items():
        # few points are the larger ones, and lie below
        radius = 3 if len(each) < 10 else 1.5
        for x, y in (side * each).tolist():
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    return image


def sheet(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Tiles of one size in rows."""
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (min(columns, len(tiles)) * width, rows * height), "white")
    for place, each in enumerate(tiles):
        page.paste(each, (place % columns * width, place // columns * height))
    return page
