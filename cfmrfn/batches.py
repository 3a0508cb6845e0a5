"""Batches of images as networks see them: a reproducible order, and loaders.

Order and augmentation are functions of (seed, epoch, position) alone, so a run resumes in the
middle of an epoch, with any number of workers or processes, on exactly the images it would have
seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cfmrfn.checkpoint import About
from cfmrfn.data import (
    ExpressionDataset,
    Sample,
    eval_transform,
)
from cfmrfn.data.cache import ImageCache
from cfmrfn.data.transforms import ImageTransform, Pixels
from cfmrfn.errors import ConfigError
from cfmrfn.process.cores import available_cores
from cfmrfn.process.distributed import World
from cfmrfn.process.seeds import derived_seed
from cfmrfn.process.signals import init_worker, signals_wait

Key = tuple[int, int]  # (index of the image, its position in the epoch)


class EpochBatches:
    """Batch sampler: this process's share of each batch of an epoch, from any step on.

    Args:
        labels: class of each image.
        batch_size: images of a batch over all processes; an incomplete last batch is dropped.
        seed: seed of the order.
        balanced: draw every class equally often, with repetition; else every image once.
        world: the processes; each takes an equal, consecutive share of a batch.

    Raises:
        ConfigError: there are fewer images than a batch holds.
    """

    def __init__(
        self, labels: Sequence[int], batch_size: int, seed: int, balanced: bool, world: World
    ) -> None:
        if batch_size > len(labels):
            raise ConfigError(
                f"batch-size must be at most the number of training images, {len(labels)}; "
                f"got {batch_size}"
            )
        self.labels = torch.as_tensor(labels)
        self.batch_size = batch_size
        self.seed = seed
        self.balanced = balanced
        self.world = world
        self.steps = len(labels) // batch_size
        self.start(0)

    def start(self, epoch: int, step: int = 0) -> None:
        """Chooses what the next iteration yields: `epoch`, from `step` on."""
        self.first_step = step
        generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
        if self.balanced:
            weights = 1 / torch.bincount(self.labels)[self.labels]
            chosen = torch.multinomial(
                weights, len(self.labels), replacement=True, generator=generator
            )
        else:
            chosen = torch.randperm(len(self.labels), generator=generator)
        self.order = chosen.tolist()

    def batch(self, step: int) -> list[Key]:
        """The whole batch of `step`, over all processes."""
        first = step * self.batch_size
        return [(self.order[i], i) for i in range(first, first + self.batch_size)]

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch_size // self.world.size
        for step in range(self.first_step, self.steps):
            yield self.batch(step)[self.world.rank * share :][:share]


Loader = Iterable[tuple[Tensor, Tensor]]


class BatchLoader:
    """Iterable of (images, targets) on the device of the run, which reads and augments ahead.

    Workers hand over uint8 of a channel or three, which is normalised here: the processes pass on
    and the device is sent a twelfth or a quarter of the bytes.
    """

    def __init__(self, dataset: ExpressionDataset, world: World, **options: Any) -> None:
        self.dataset = dataset
        self.device = world.device
        self.loader: DataLoader[Any] = DataLoader(
            _Batches(dataset),
            collate_fn=_as_it_is,
            worker_init_fn=init_worker,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # without one it would draw from the global random state
            **options,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(batch, 3, size, size), and labels (batch,) or votes (batch, classes)"""
        transform = self.dataset.transform
        assert isinstance(transform, ImageTransform)
        with signals_wait():
            read_ahead = iter(self.loader)
        for pixels, targets in read_ahead:
            images = pixels.images.to(self.device, non_blocking=True)
            yield (
                transform.finish(Pixels(images, pixels.erased)),
                targets.to(self.device, non_blocking=True),
            )


class _Batches(Dataset[tuple[Pixels, Tensor]]):
    """`ExpressionDataset.batch`, as a `DataLoader` asks for it."""

    def __init__(self, images: ExpressionDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[int | Key]) -> tuple[Pixels, Tensor]:
        return self.images.batch(keys)


def _as_it_is(batch: Any) -> Any:
    return batch


def training_loader(
    dataset: ExpressionDataset, batches: EpochBatches, workers: int | None
) -> BatchLoader:
    """Loader of (images, targets) in the order of `batches`."""
    workers = default_workers() if workers is None else workers
    return BatchLoader(
        dataset,
        batches.world,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def evaluation_loader(
    samples: Sequence[Sample],
    about: About,
    *,
    batch_size: int,
    world: World,
    workers: int | None,
    on_broken: str = "error",
    cache: ImageCache | None = None,
) -> BatchLoader:
    """Loader of (images, labels) as the network that `about` describes sees them.

    It loads this process's part of `samples`; over all processes each comes once. An image that
    cannot be read is a `DataError`, or with `on_broken="mark"` a black one that has the label
    `UNREADABLE_LABEL`. `cache`: of all `samples`.
    """
    own = slice(world.rank, None, world.size)
    dataset = ExpressionDataset(
        samples[own],
        about.class_names,
        eval_transform(about.image_size, mean=about.mean, std=about.std),
        color=about.color,
        on_broken=on_broken,
        at_least=about.image_size,
        cache=None if cache is None else cache.part(own),
        part=world.size > 1,
    )
    return BatchLoader(
        dataset,
        world,
        batch_size=batch_size,
        num_workers=default_workers() if workers is None else workers,
    )


def default_workers() -> int:
    """A worker for each core that computing leaves spare, at most 8, in each process of the run."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(8, max(available_cores() // processes - 1, 0))
