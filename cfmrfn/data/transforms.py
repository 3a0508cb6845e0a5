"""Augmentation: PIL images in, normalised float32 tensors (3, size, size) out.

The training recipe is the paper's (section 3.2) and POSTER's: resize to 224, horizontal flip 0.5,
ImageNet normalisation, RandomErasing(p=0.5, scale=(0.02, 0.1)) on the normalised image, so that
erased pixels hold the mean colour. Crop and colour jitter are named in the paper's abstract only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], Tensor]


def train_transform(
    size: int = 224,
    *,
    flip: float = 0.5,
    erasing: float = 0.5,
    erasing_scale: tuple[float, float] = (0.02, 0.1),
    crop: bool = False,
    jitter: bool = False,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Transform:
    """The training transform.

    Geometry and colour work on uint8; the normalisation makes floats.

    Args:
        size: side of the result, in pixels.
        flip: probability of a horizontal flip.
        erasing: probability that a random rectangle is erased.
        erasing_scale: smallest and largest erased part of the area.
        crop: take a random part of 80 to 100 % of the area, nearly square.
        jitter: change brightness, contrast and saturation by up to 20 %. Not hue, which would take
            longer than all the rest together.
        mean, std: of the normalisation, per channel.

    Returns:
        A function from a PIL image to a tensor (3, size, size).
    """
    steps: list[torch.nn.Module] = [v2.PILToTensor()]
    if crop:
        steps.append(v2.RandomResizedCrop(size, scale=(0.8, 1.0), ratio=(0.9, 1.1)))
    else:
        steps.append(_resize(size))
    steps.append(v2.RandomHorizontalFlip(flip))
    if jitter:
        steps.append(v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2))
    steps += _normalise(mean, std)
    steps.append(v2.RandomErasing(p=erasing, scale=erasing_scale))
    return v2.Compose(steps)


def eval_transform(
    size: int = 224,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Transform:
    """The evaluation transform: resizes and normalises, with nothing random.

    Args:
        size: side of the result, in pixels.
        mean, std: of the normalisation, per channel.

    Returns:
        A function from a PIL image to a tensor (3, size, size).
    """
    return v2.Compose([to_pixels(size), normalise(mean, std)])


def to_pixels(size: int) -> Transform:
    """The first half of `eval_transform`: from a PIL image to a uint8 tensor (3, size, size)."""
    return v2.Compose([v2.PILToTensor(), _resize(size)])


def normalise(
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Callable[[Tensor], Tensor]:
    """Its second half: from uint8 (..., 3, size, size) to float32."""
    return v2.Compose(_normalise(mean, std))


def _resize(size: int) -> torch.nn.Module:
    return v2.Resize((size, size), InterpolationMode.BILINEAR, antialias=True)


def _normalise(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> list[torch.nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
