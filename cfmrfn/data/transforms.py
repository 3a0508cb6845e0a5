"""Augmentation: images in, normalised float32 tensors (3, size, size) out.

The training recipe is the paper's (section 3.2) and POSTER's: resize to 224, horizontal flip 0.5,
ImageNet normalisation, RandomErasing(p=0.5, scale=(0.02, 0.1)) on the normalised image, so that
erased pixels hold the mean colour. Crop and colour jitter are named in the paper's abstract only;
the rest is for training from nothing on few images.

Loaders work on whole batches: `ImageTransform.pixels` makes uint8 of them, in worker processes, and
`ImageTransform.finish` the network's input, where the network is. Each image comes out bit for bit
as it does alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as VF

from cfmrfn.data.reading import as_rgb

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], Tensor]

# Images that are warped at once: their sampling points then stay in a core's cache.
_AT_ONCE = 4


class Pixels(NamedTuple):
    """A batch before its normalisation.

    Attributes:
        images: uint8 (batch, channels, size, size); one channel where all images are grey.
        erased: int64 (batch, 4), top, left, height and width of the erased rectangle; 0 high and
            wide where there is none.
    """

    images: Tensor
    erased: Tensor


class ImageTransform:
    """The evaluation transform: resizes and normalises, with nothing random.

    Args:
        size: side of the result, in pixels.
        mean, std: of the normalisation, per channel.
    """

    def __init__(
        self,
        size: int,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        self.size = size
        self.normalise = normalise(mean, std)
        self._resize = _resize(size)

    def __call__(self, image: Image.Image) -> Tensor:
        """From one PIL image to (3, size, size); the global random state decides.

        The image may be of any mode. It is not turned by its EXIF orientation, which
        `PIL.ImageOps.exif_transpose` does.
        """
        if image.mode not in ("L", "RGB"):
            image = as_rgb(image)
        return self.finish(self.pixels([VF.pil_to_tensor(image)]))[0]

    def pixels(self, images: Sequence[Tensor], seeds: Sequence[int] | None = None) -> Pixels:
        """Resizes, and where it trains augments, a batch.

        Args:
            images: uint8 (1 or 3, height, width) each, of any sizes.
            seeds: one per image, which alone decide what is random, and leave the global random
                state as it was. None: that state decides.
        """
        batch = self._of_one_size(images, [[]] * len(images))
        return Pixels(batch, torch.zeros(len(images), 4, dtype=torch.int64))

    def finish(self, pixels: Pixels) -> Tensor:
        """The network's input (batch, 3, size, size), on the device of the pixels."""
        images = self.normalise(pixels.images)
        for image, (top, left, height, width) in zip(images, pixels.erased.tolist(), strict=True):
            if height:
                image[:, top : top + height, left : left + width] = 0
        return images

    def _of_one_size(self, images: Sequence[Tensor], numbers: Sequence[list[float]]) -> Tensor:
        """Images of any sizes -> (batch, channels, size, size); `numbers` as in `_Drawn`."""
        groups: dict[torch.Size, list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            groups[image.shape].append(index)
        channels = max(len(image) for image in images)
        batch = torch.empty(len(images), channels, self.size, self.size, dtype=torch.uint8)
        for members in groups.values():
            some = torch.stack([images[index] for index in members])
            batch[members] = self._resized(some, [numbers[index] for index in members])
        return batch

    def _resized(self, images: Tensor, numbers: Sequence[list[float]]) -> Tensor:
        """(images, channels, height, width) -> (images, channels, size, size)"""
        return self._resize(images)


class _Drawn(NamedTuple):
    """What chance decides for one image; None: nothing."""

    crop: dict[str, Any] | None
    is_flipped: bool
    jitter: dict[str, Any] | None
    erased: tuple[int, int, int, int]
    numbers: list[float]  # seven of 0 to 1, for `_varied`; empty where it has nothing to do


class TrainTransform(ImageTransform):
    """The training transform; see `train_transform`, which makes it, for its arguments."""

    def __init__(
        self,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        flip: float,
        erasing: float,
        erasing_scale: tuple[float, float],
        crop: bool,
        jitter: bool,
        rotation: float,
        translate: float,
        scale: tuple[float, float],
        stretch: float,
        brightness: float,
        contrast: float,
    ) -> None:
        super().__init__(size, mean, std)
        self.flip = flip
        self.erasing = v2.RandomErasing(erasing, erasing_scale)
        self.crop = v2.RandomResizedCrop(size, (0.8, 1.0), (0.9, 1.1)) if crop else None
        self.jitter = v2.ColorJitter(0.2, 0.2, 0.2) if jitter else None
        self.rotation = math.radians(rotation)
        self.translate = translate
        self.scale = scale
        self.stretch = stretch
        self.brightness = brightness
        self.contrast = contrast
        self.is_warping = bool(rotation or translate or tuple(scale) != (1, 1) or stretch)
        self.is_varying = bool(self.is_warping or brightness or contrast)
        # middles of the pixels of the result, from -1 to 1
        self._middles = (torch.arange(size) * 2 + 1) / size - 1

    def pixels(self, images: Sequence[Tensor], seeds: Sequence[int] | None = None) -> Pixels:
        drawn = self._draw_all(images, seeds)
        if self.crop is not None:
            images = [
                self.crop.transform(image, each.crop)
                for image, each in zip(images, drawn, strict=True)
            ]
        batch = self._of_one_size(images, [each.numbers for each in drawn])
        flipped = [index for index, each in enumerate(drawn) if each.is_flipped]
        batch[flipped] = batch[flipped].flip(-1)
        if self.jitter is not None:
            batch = torch.stack(
                [
                    self.jitter.transform(image.expand(3, -1, -1), each.jitter)
                    for image, each in zip(batch, drawn, strict=True)
                ]
            )
        return Pixels(batch, torch.tensor([each.erased for each in drawn]))

    def _draw_all(self, images: Sequence[Tensor], seeds: Sequence[int] | None) -> list[_Drawn]:
        if seeds is None:
            return [self._draw(image) for image in images]
        drawn = []
        # torch.manual_seed and fork_rng go over every device, which takes longer than decoding
        before = torch.get_rng_state()
        try:
            for image, seed in zip(images, seeds, strict=True):
                torch.default_generator.manual_seed(seed)
                drawn.append(self._draw(image))
        finally:
            torch.set_rng_state(before)
        return drawn

    def _draw(self, image: Tensor) -> _Drawn:
        """From the global random state, in an order that former runs must be continued with."""
        crop = None if self.crop is None else self.crop.make_params([image])
        is_flipped = bool(torch.rand(1) < self.flip)
        jitter = None if self.jitter is None else self.jitter.make_params([])
        erased = (0, 0, 0, 0)
        if torch.rand(1) < self.erasing.p:
            found = self.erasing.make_params([self._middles.expand(3, self.size, self.size)])
            if found["v"] is not None:
                erased = (found["i"], found["j"], found["h"], found["w"])
        numbers = torch.rand(7).tolist() if self.is_varying else []
        return _Drawn(crop, is_flipped, jitter, erased, numbers)

    def _resized(self, images: Tensor, numbers: Sequence[list[float]]) -> Tensor:
        # small images are enlarged as they are warped, which blurs them once and not twice
        if not self.is_warping or max(images.shape[-2:]) > self.size:
            images = super()._resized(images, numbers)
        if not self.is_varying:
            return images
        some = zip(images.split(_AT_ONCE), _in_parts(numbers), strict=True)
        return torch.cat([self._varied(*each) for each in some])

    def _varied(self, images: Tensor, numbers: Sequence[list[float]]) -> Tensor:
        """Warps images (images, channels, height, width) and changes their brightness, contrast."""
        changed = images.float()
        if self.is_warping:
            points = self._points(numbers)
            # up to the edge as evaluation enlarges, which repeats the outermost pixels
            changed = F.grid_sample(changed, points, padding_mode="border", align_corners=False)
        if self.brightness or self.contrast:
            factor, offset = torch.tensor(
                [
                    self._shade(row, mean)
                    for row, mean in zip(
                        numbers, images.double().mean((1, 2, 3)).tolist(), strict=True
                    )
                ]
            )[:, :, None, None, None].unbind(1)
            changed = changed * factor + offset
        if self.is_warping:
            # black beyond the image; as floats, which are multiplied in a third of the time
            changed *= points.abs().amax(-1).le_(1)[:, None]
        return changed.round_().clamp_(0, 255).to(torch.uint8)

    def _points(self, numbers: Sequence[list[float]]) -> Tensor:
        """Where in the images the result's pixels lie: (images, size, size, 2) of -1 to 1."""
        matrix = torch.tensor([self._matrix(row) for row in numbers])[:, :, None]
        across = matrix[:, ::3] * self._middles + matrix[:, 2::3]  # (images, 2, size)
        down = matrix[:, 1::3] * self._middles
        return (across[:, :, None, :] + down[:, :, :, None]).permute(0, 2, 3, 1)

    def _matrix(self, numbers: list[float]) -> tuple[float, ...]:
        """Six elements of the affine map from the result to the image, row by row."""
        angle, zoom, width, right, down = numbers[:5]
        angle = _between(-self.rotation, self.rotation, angle)
        height = 1 / _between(*self.scale, zoom)
        width = height / _between(1 - self.stretch, 1 + self.stretch, width)
        # a side is 2 long here
        right = 2 * _between(-self.translate, self.translate, right)
        down = 2 * _between(-self.translate, self.translate, down)
        sine, cosine = math.sin(angle), math.cos(angle)
        return cosine * width, -sine * height, right, sine * width, cosine * height, down

    def _shade(self, numbers: list[float], mean: float) -> tuple[float, float]:
        """Factor and offset of pixels of 0 to 255 whose mean is `mean`."""
        offset = 255 * _between(-self.brightness, self.brightness, numbers[5])
        factor = _between(1 - self.contrast, 1 + self.contrast, numbers[6])
        return factor, mean * (1 - factor) + offset


def _between(low: float, high: float, part: float) -> float:
    return low + (high - low) * part


def _in_parts(numbers: Sequence[list[float]]) -> list[Sequence[list[float]]]:
    return [numbers[first : first + _AT_ONCE] for first in range(0, len(numbers), _AT_ONCE)]


def train_transform(
    size: int = 224,
    *,
    flip: float = 0.5,
    erasing: float = 0.5,
    erasing_scale: tuple[float, float] = (0.02, 0.1),
    crop: bool = False,
    jitter: bool = False,
    rotation: float = 0.0,
    translate: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    stretch: float = 0.0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> TrainTransform:
    """The training transform.

    Geometry and colour work on uint8; the normalisation makes floats. What a rotation, shift or
    smaller scale uncovers is black, whatever `brightness` and `contrast`; `jitter` comes after it.

    Args:
        size: side of the result, in pixels.
        flip: probability of a horizontal flip.
        erasing: probability that a random rectangle is erased.
        erasing_scale: smallest and largest erased part of the area.
        crop: take a random part of 80 to 100 % of the area, nearly square.
        jitter: change brightness, contrast and saturation by up to 20 %. Not hue, which would take
            longer than all the rest together.
        rotation: largest angle, in degrees, to either side.
        translate: largest shift along each axis, as a part of the side.
        scale: smallest and largest factor of the size.
        stretch: largest change of the width alone, as a part of it.
        brightness: largest number that is added to or taken from all pixels, as a part of white.
        contrast: largest change of the pixels' distance from the image's mean, as a part of it.
        mean, std: of the normalisation, per channel.

    Returns:
        A function from a PIL image to a tensor (3, size, size).
    """
    return TrainTransform(
        size,
        mean,
        std,
        flip=flip,
        erasing=erasing,
        erasing_scale=erasing_scale,
        crop=crop,
        jitter=jitter,
        rotation=rotation,
        translate=translate,
        scale=scale,
        stretch=stretch,
        brightness=brightness,
        contrast=contrast,
    )


def eval_transform(
    size: int = 224,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> ImageTransform:
    """The evaluation transform: resizes and normalises, with nothing random.

    Args:
        size: side of the result, in pixels.
        mean, std: of the normalisation, per channel.

    Returns:
        A function from a PIL image to a tensor (3, size, size).
    """
    return ImageTransform(size, mean, std)


def to_pixels(size: int) -> Transform:
    """The first half of `eval_transform`: from a PIL image to a uint8 tensor (3, size, size)."""
    return v2.Compose([v2.PILToTensor(), _resize(size)])


def normalise(
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Callable[[Tensor], Tensor]:
    """Its second half: from uint8 (..., 3, size, size) to float32."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def _resize(size: int) -> torch.nn.Module:
    return v2.Resize((size, size), InterpolationMode.BILINEAR, antialias=True)
