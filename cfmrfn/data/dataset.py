"""The PyTorch dataset over the samples of any set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from cfmrfn.data.cache import ImageCache
from cfmrfn.data.reading import UNREADABLE, read_image, reason
from cfmrfn.data.samples import Sample
from cfmrfn.data.transforms import ImageTransform, Pixels, Transform
from cfmrfn.errors import DataError, printable
from cfmrfn.process.seeds import derived_seed

UNREADABLE_LABEL = -100  # of an image that could not be read


class ExpressionDataset(Dataset[tuple[Tensor, int | Tensor]]):
    """Images of `samples` as `transform` makes them, with their labels.

    Args:
        samples: one split of an `ExpressionSet`.
        class_names: names in label order.
        transform: PIL image to tensor (3, size, size), see `cfmrfn.data.transforms`.
        color: "RGB", or "BGR" for backbones trained that way. Channels are swapped before
            `transform`, whose mean and std then apply by position, as in POSTER.
        on_broken: what happens where a file cannot be decoded. "error": a `DataError` that names
            it. "skip": the next readable sample is taken instead, and the file is marked in
            `is_broken`; not for evaluation, which would count that sample twice (find unreadable
            files beforehand with `why_unreadable`). "mark": a black image with the label
            `UNREADABLE_LABEL` is in its place, for evaluation.
        soft_labels: labels are the votes, float tensors (classes,), instead of integers.
        at_least: side in pixels that `transform` needs; lets large JPEGs decode faster.
        seed: None leaves augmentation to the global random state. A number makes it a function
            of (seed, epoch, index) only, whatever the number of workers and wherever in an epoch
            a run resumes; `set_epoch` must then be called before each epoch.
        cache: the images of `samples`, decoded with `at_least`. None: each is read from its file
            whenever it is wanted. The images are the same.
        part: `samples` are one process's share of them, and may be none.

    Attributes:
        is_broken: bool (len(samples),), what this process and its workers could not read so far.

    Raises:
        ValueError: `color` or `on_broken` is not legal.
        DataError: there are no samples, a label has no class name, or votes are missing.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        class_names: Sequence[str],
        transform: Transform,
        *,
        color: str = "RGB",
        on_broken: str = "error",
        soft_labels: bool = False,
        at_least: int | None = None,
        seed: int | None = None,
        cache: ImageCache | None = None,
        part: bool = False,
    ) -> None:
        if color not in ("RGB", "BGR"):
            raise ValueError(f'color must be "RGB" or "BGR", got {color!r}')
        if on_broken not in ("error", "skip", "mark"):
            raise ValueError(f'on_broken must be "error", "skip" or "mark", got {on_broken!r}')
        if not samples and not part:
            raise DataError("no images: the split is empty")
        highest = max((sample.label for sample in samples), default=0)
        if highest >= len(class_names):
            raise DataError(
                f"label {highest} needs {highest + 1} classes, but {len(class_names)} are "
                f"configured: {', '.join(class_names)}"
            )
        if soft_labels and any(sample.votes is None for sample in samples):
            raise DataError("soft labels were asked for, but only FERPlus has votes")
        self.samples = samples
        self.class_names = tuple(class_names)
        self.transform = transform
        self.color = color
        self.on_broken = on_broken
        self.soft_labels = soft_labels
        self.at_least = at_least
        self.seed = seed
        self.cache = cache
        # Shared memory: workers mark what they could not read, the main process reads the marks
        # (and sets the epoch, also for workers that persist).
        self.is_broken = torch.zeros(len(samples), dtype=torch.bool).share_memory_()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int | Tensor]:
        """One image and its label.

        Args:
            key: an index; or (index, draw) where a sampler draws one image several times per epoch
                and each draw is to be augmented in its own way (only with `seed`).

        Returns:
            The image (3, size, size), and its label, or its votes (classes,).
        """
        index, draw, pixels = self._read(key)
        image = Image.fromarray(np.asarray(pixels.expand(3, -1, -1).permute(1, 2, 0)))
        if self.seed is None:
            tensor = self.transform(image)
        else:
            tensor = self._seeded(image, self._seed_of(index, draw))
        target = self._target(index)
        return tensor, torch.tensor(target) if isinstance(target, tuple) else target

    def batch(self, keys: Sequence[int | tuple[int, int]]) -> tuple[Pixels, Tensor]:
        """The images of `keys` before they are normalised, and their labels or votes.

        Needs an `ImageTransform`, whose `finish` makes of the first what `__getitem__` gives.

        Returns:
            The pixels, and labels (batch,) or votes (batch, classes).
        """
        assert isinstance(self.transform, ImageTransform)
        read = [self._read(key) for key in keys]
        seeds = None
        if self.seed is not None:
            seeds = [self._seed_of(index, draw) for index, draw, _ in read]
        pixels = self.transform.pixels([image for _, _, image in read], seeds)
        return pixels, torch.tensor([self._target(index) for index, _, _ in read])

    def set_epoch(self, epoch: int) -> None:
        """Chooses the augmentation of `epoch`; has an effect only with `seed`."""
        self._epoch.fill_(epoch)

    def _target(self, index: int) -> int | tuple[float, ...]:
        if self.on_broken == "mark" and self.is_broken[index]:
            return UNREADABLE_LABEL
        sample = self.samples[index]
        return sample.votes if self.soft_labels and sample.votes is not None else sample.label

    def _seed_of(self, index: int, draw: int) -> int:
        assert self.seed is not None
        return derived_seed(self.seed, int(self._epoch), index, draw)

    def _seeded(self, image: Image.Image, seed: int) -> Tensor:
        # torch.manual_seed and fork_rng go over every device, which takes longer than decoding
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            return self.transform(image)
        finally:
            torch.set_rng_state(before)

    def _read(self, key: int | tuple[int, int]) -> tuple[int, int, Tensor]:
        """Index of the image that is taken, the draw, and the image (1 or 3, height, width)."""
        index, draw = key if isinstance(key, tuple) else (key, 0)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        for candidate in self._candidates(index % len(self)):
            try:
                pixels = self._pixels(candidate)
            except UNREADABLE as error:
                path = self.samples[candidate].path
                if self.on_broken == "error":
                    raise DataError(
                        f"cannot read image {printable(path)}: {reason(path, error)}"
                    ) from error
                self.is_broken[candidate] = True
                if self.on_broken == "mark":
                    return candidate, draw, torch.zeros(1, 1, 1, dtype=torch.uint8)
            else:
                return candidate, draw, pixels.flip(0) if self.color == "BGR" else pixels
        first = printable(self.samples[0].path)
        raise DataError(f"not one of {len(self)} images can be read, {first} first")

    def _candidates(self, first: int) -> Iterator[int]:
        """All indices from `first` on, and around, but those that are known to be broken.

        Where thousands of broken files follow one another, each draw would open most of them again.
        """
        yield first
        broken = self.is_broken.numpy()
        for index, end in ((first + 1, len(self)), (0, first)):
            while index < end:
                index += int(broken[index:end].argmin())
                if broken[index]:
                    break
                yield index
                index += 1

    def _pixels(self, index: int) -> Tensor:
        pixels = None if self.cache is None else self.cache[index]
        if pixels is None:
            return pil_to_tensor(read_image(self.samples[index], self.at_least))
        return pixels
