"""Crops of faces with landmarks: plain ones, and ones that are framed, lit and spoilt at random.

A network that learns from the latter is to find landmarks in photographs of any kind, too. All of
it works on batches, on the CPU, and follows from a generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Generator, Tensor

from cfmrfn.models.mobilefacenet import NATIVE_SIZE

# Landmark in a mirror -> landmark here, in the order of iBUG 300-W.
MIRRORED = [
    *range(16, -1, -1),  # jaw
    *range(26, 16, -1),  # brows
    *range(27, 31),  # bridge of the nose
    *range(35, 30, -1),  # its base
    *(45, 44, 43, 42, 47, 46),  # eyes
    *(39, 38, 37, 36, 41, 40),
    *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),  # mouth, outside
    *(64, 63, 62, 61, 60, 67, 66, 65),  # and inside
]


@dataclass(frozen=True)
class Faces:
    """Pictures (n, side, side, 3), RGB, uint8, and landmarks (n, 68, 2) in their pixels."""

    pictures: np.ndarray
    points: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def take(self, indices: np.ndarray | slice) -> tuple[Tensor, Tensor]:
        """(batch, 3, side, side) in 0..1, and (batch, 68, 2)"""
        pictures = torch.from_numpy(self.pictures[indices]).permute(0, 3, 1, 2)
        return pictures.float() / 255, torch.from_numpy(self.points[indices])


def plain_crops(pictures: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Upright crops, framed as the drawn sets are.

    Args:
        pictures: (batch, 3, side, side).
        points: (batch, 68, 2), in their pixels.

    Returns:
        (batch, 3, 112, 112), and (batch, 68, 2) in fractions of the side.
    """
    frames = plain_frames(points)
    return frames.cut(pictures, NATIVE_SIZE), frames.points(points)


def spoilt_crops(
    pictures: Tensor, points: Tensor, size: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Crops that are framed and spoilt at random, (batch, 3, size, size); else as `plain_crops`."""
    frames = random_frames(points, generator)
    padding = ("border", "zeros")[int(torch.randint(2, (), generator=generator))]
    inside = frames.points(points)
    return spoil(frames.cut(pictures, size, padding), inside, generator), inside


def normalised(images: Tensor) -> Tensor:
    """Images in 0..1 as the network's input."""
    mean, std = (
        images.new_tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (images - mean) / std


class Frames(NamedTuple):
    """How crops lie on their pictures: (x, y) in -1..1 of a crop is at `turn @ (x, y) + middle`.

    Attributes:
        turn: (batch, 2, 2), to pixels of the picture.
        middle: (batch, 2), pixels.
        is_mirrored: (batch,) bool.
    """

    turn: Tensor
    middle: Tensor
    is_mirrored: Tensor

    def cut(self, pictures: Tensor, size: int, padding: str = "border") -> Tensor:
        """(batch, 3, side, side) -> (batch, 3, size, size)"""
        side = pictures.shape[-1]
        theta = torch.cat([self.turn * 2 / side, (self.middle * 2 / side - 1)[:, :, None]], 2)
        if 1.5 * size < 2 * float(self.turn.det().abs().sqrt().mean()):
            pictures = F.avg_pool2d(pictures, 2)  # else pixels in between would be lost
        grid = F.affine_grid(theta, [len(pictures), 3, size, size], align_corners=False)
        return F.grid_sample(pictures, grid, padding_mode=padding, align_corners=False)

    def points(self, points: Tensor) -> Tensor:
        """Landmarks (batch, 68, 2) in pixels of the pictures -> in fractions of the crops' side."""
        inside = torch.linalg.solve(self.turn, (points - self.middle[:, None]).mT).mT / 2 + 0.5
        return torch.where(self.is_mirrored[:, None, None], inside[:, MIRRORED], inside)


def plain_frames(points: Tensor) -> Frames:
    """Frames as those of the drawn sets, upright.

    Args:
        points: (batch, 68, 2), pixels.
    """
    batch = len(points)
    turn = torch.eye(2).repeat(batch, 1, 1)
    place = torch.tensor([0.5, 0.65]).repeat(batch, 1)
    return _frames(points, turn, torch.full((batch,), 0.64), place, torch.zeros(batch).bool())


def random_frames(points: Tensor, generator: Generator) -> Frames:
    """Frames turned by up to 30 degrees, looser and tighter than a detector's, half mirrored.

    Args:
        points: (batch, 68, 2), pixels.
        generator: of what is random.
    """
    batch = len(points)
    uniform = _Uniform(batch, generator)
    angle = (uniform() + uniform() - 1) * math.radians(30)
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    stretch = torch.eye(2).repeat(batch, 1, 1)
    wide = uniform(-0.1, 0.1).exp()
    is_mirrored = uniform() < 0.5
    stretch[:, 0, 0] = wide * torch.where(is_mirrored, -1.0, 1.0)
    stretch[:, 1, 1] = 1 / wide
    stretch[:, 0, 1] = uniform(-0.1, 0.1)
    place = torch.stack([uniform(0.38, 0.62), uniform(0.45, 0.72)], 1)
    return _frames(points, rotation @ stretch, uniform(0.5, 0.95), place, is_mirrored)


def _frames(
    points: Tensor, turn: Tensor, part: Tensor, place: Tensor, is_mirrored: Tensor
) -> Frames:
    """Frames where faces take `part` (batch,) of the side, in the middle around `place`."""
    low, high = points.amin(1), points.amax(1)
    side = (high - low).prod(1).sqrt() / part
    turn = turn * side[:, None, None] / 2
    return Frames(
        turn, (low + high) / 2 - (turn @ (2 * place - 1)[:, :, None])[..., 0], is_mirrored
    )


def spoil(crops: Tensor, points: Tensor, generator: Generator) -> Tensor:
    """Crops as bad as photographs can be: backgrounds, light, colour, sharpness, noise, occlusion.

    Args:
        crops: (batch, 3, size, size), 0..1.
        points: (batch, 68, 2), fractions of the side.
        generator: of what is random.
    """
    batch, size = len(crops), crops.shape[-1]
    uniform = _Uniform(batch, generator, (1, 1, 1))
    other = crops[torch.randperm(batch, generator=generator)]

    # another background outside of an ellipse around the face, or of the face in hair
    low, high = (each[:, :, None, None] for each in (points.amin(1), points.amax(1)))
    middle, half = (low + high) / 2, (high - low) / 2
    across = (torch.arange(size) + 0.5) / size
    x = (across - middle[:, :1]) / half[:, :1]
    y = (across[:, None] - middle[:, 1:] + 0.3 * half[:, 1:]) / half[:, 1:]
    beyond = (x**2 + y**2 / 1.9).sqrt() / uniform(1.0, 1.7)
    blend = ((beyond - 1) * uniform(3, 15)).clamp(0, 1) * (uniform() < 0.5)
    texture = _texture(batch, 3, size, generator)
    background = torch.where(uniform() < 0.6, texture, other)
    crops = crops + blend * (background - crops)

    # light: ramps, shadows, exposure
    ramp = (x.clamp(-2, 2) * uniform(-0.4, 0.4) + y.clamp(-2, 2) * uniform(-0.4, 0.4)) * (
        uniform() < 0.6
    )
    shadows = (_texture(batch, 1, size, generator) - 0.5) * uniform(0, 1.2) * (uniform() < 0.5)
    crops = crops * (ramp + shadows).exp()
    crops = crops.clamp(1e-3, 1) ** uniform(-0.7, 0.5).exp()

    # colour, up to none
    gain = 1 + 0.25 * (torch.rand(batch, 3, 1, 1, generator=generator) - 0.5)
    crops = crops * gain
    grey = crops.mean(1, keepdim=True)
    saturation = torch.where(uniform() < 0.5, 0.0, uniform(0.2, 1.5))
    crops = grey + saturation * (crops - grey)
    if float(torch.rand((), generator=generator)) < 0.3:  # also for networks that see BGR
        crops = crops.flip(1)

    # what is in front of the face
    for _ in range(2):
        corner, extent = _sizes(batch, generator)
        inside = ((across >= corner[0]) & (across < corner[0] + extent[0])) & (
            (across[:, None] >= corner[1]) & (across[:, None] < corner[1] + extent[1])
        )
        paint = torch.where(
            uniform() < 0.5, torch.rand(batch, 3, 1, 1, generator=generator), other.roll(1, 0)
        )
        crops = torch.where(inside & (uniform() < 0.25), paint, crops)

    # the camera: contrast, sharpness, noise, resolution
    mean = crops.mean((1, 2, 3), keepdim=True)
    crops = (crops - mean) * uniform(0.4, 1.4) + mean + uniform(-0.25, 0.25)
    smooth = F.avg_pool2d(crops, 5, 1, 2, count_include_pad=False)
    crops = crops + uniform(-1.0, 1.2) * (crops - smooth)
    noise = torch.randn(batch, 1, size, size, generator=generator)
    crops = crops + noise * (0.12 * uniform() ** 3)
    few = batch // 4
    for start in (0, few):
        side = int(torch.randint(24, max(size // 2, 25), (), generator=generator))
        part = crops[start : start + few]
        if len(part):
            part = F.interpolate(part, (side, side), mode="bilinear", antialias=True)
            crops[start : start + few] = F.interpolate(part, (size, size), mode="bilinear")
    return crops.clamp(0, 1)


class _Uniform:
    """Random numbers, one per crop: of (batch,) or (batch, *shape)."""

    def __init__(self, batch: int, generator: Generator, shape: tuple[int, ...] = ()) -> None:
        self.shape = (batch, *shape)
        self.generator = generator

    def __call__(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(self.shape, generator=self.generator)


def _texture(batch: int, channels: int, size: int, generator: Generator) -> Tensor:
    """(batch, channels, size, size): blurred colours, coarse or fine."""
    side = int(torch.randint(2, 17, (), generator=generator))
    coarse = torch.rand(batch, channels, side, side, generator=generator)
    return F.interpolate(coarse, (size, size), mode="bilinear")


def _sizes(batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Corners and extents (2, batch, 1, 1, 1) of rectangles of 1 to 15 % of a crop."""
    uniform = _Uniform(batch, generator, (1, 1, 1))
    area, shape = uniform(0.01, 0.15), uniform(-0.7, 0.7).exp()
    extent = torch.stack([area.sqrt() * shape, area.sqrt() / shape])
    return torch.stack([uniform(), uniform()]) * 1.1 - 0.1, extent
