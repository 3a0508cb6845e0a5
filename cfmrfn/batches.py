"""Data as training sees it: splits, a reproducible order, and loaders.

Order and augmentation are functions of (seed, epoch, position) alone, so a run resumes in the
middle of an epoch, with any number of workers or processes, on exactly the images it would have
seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cfmrfn.checkpoint import About
from cfmrfn.config import ImageConfig
from cfmrfn.data import (
    ExpressionDataset,
    Sample,
    eval_transform,
    layout_named,
    open_set,
    read_image,
    train_transform,
    why_unreadable,
)
from cfmrfn.data.cache import ImageCache, cached, memory_limit
from cfmrfn.data.duplicates import UNASKED, copies_of_training_images
from cfmrfn.data.reading import UNREADABLE
from cfmrfn.data.synthetic import write_faces
from cfmrfn.data.transforms import ImageTransform, Pixels
from cfmrfn.distributed import World
from cfmrfn.errors import ConfigError, DataError
from cfmrfn.faces import Framing, measured_framing, why_no_detector
from cfmrfn.seeds import derived_seed
from cfmrfn.signals import init_worker, signals_wait

Key = tuple[int, int]  # (index of the image, its position in the epoch)

# What opening images before training may take: all of most sets, and the evaluation images of the
# largest.
CHECK_SECONDS = 20

GIVE_VALIDATION_IMAGES = (
    "give others, or let the held-out images choose the best epoch by --validation 0"
)

FRAMING_IMAGES = 64  # the mean of their points is known to 1 % of the side


@dataclass(frozen=True)
class Splits:
    """The images of a run.

    Attributes:
        name: of the data set.
        class_names: expressions in label order.
        train: images to train on.
        validation: images that choose the best epoch, `val` in files; may be empty.
        held_out: images that results are reported on, `test` in files.
        dropped: number of files and images left out, by reason.
        without_effect: options that were set and change nothing on this set, in lines that say why.
    """

    name: str
    class_names: tuple[str, ...]
    train: list[Sample]
    validation: list[Sample]
    held_out: list[Sample]
    dropped: Mapping[str, int] = field(default_factory=dict)
    without_effect: Sequence[str] = ()

    def left_out(self) -> dict[str, int]:
        """Number of files and images left out, by the reasons there were."""
        return {reason: count for reason, count in self.dropped.items() if count}

    def fingerprint(self) -> str:
        """Changes with any file name or label, so that a run is resumed on its own data only."""
        # names are bytes on some systems, and not always of UTF-8
        digest = hashlib.sha256(os.fsencode("\n".join(self.class_names)))
        for samples in (self.train, self.validation, self.held_out):
            for sample in samples:
                digest.update(os.fsencode(f"{os.path.basename(sample.path)} {sample.label}\n"))
        return digest.hexdigest()[:16]

    def file_sizes(self) -> Tensor:
        """Bytes of each image's file, and -1 where it cannot be reached; int64, (images).

        Others than before tell what `fingerprint` cannot: images replaced under their names.
        """
        sizes = []
        for sample in (*self.train, *self.validation, *self.held_out):
            try:
                sizes.append(os.stat(sample.path).st_size)
            except OSError:
                sizes.append(-1)
        return torch.tensor(sizes, dtype=torch.int64)

    def without(self, left_out: Set[Sample], reason: str = "that cannot be read") -> Splits:
        """The same without those evaluation images, which are counted by `reason`.

        Training images stay: training takes another image in the place of one it cannot read.

        Raises:
            DataError: no held-out image is left, or no validation image of those there were.
        """
        validation, held_out = (
            [sample for sample in samples if sample not in left_out]
            for samples in (self.validation, self.held_out)
        )
        if not held_out:
            raise DataError(f"{self.name}: no held-out image is left, each is one {reason}")
        if self.validation and not validation:
            raise DataError(
                f"{self.name}: no validation image is left, each is one {reason}; "
                f"{GIVE_VALIDATION_IMAGES}"
            )
        dropped = dict(self.dropped)
        for what, before, after in (
            ("validation", self.validation, validation),
            ("held-out", self.held_out, held_out),
        ):
            if len(after) < len(before):
                dropped[f"{what} image {reason}"] = len(before) - len(after)
        return replace(self, validation=validation, held_out=held_out, dropped=dropped)


def open_splits(images: ImageConfig, seed: int, world: World) -> Splits:
    """Opens the data set, drawing the faces first where no `data` is given.

    Raises:
        ConfigError: the layout named is not that of drawn faces, and no `data` is given.
        DataError: the data set cannot be opened, or has no images to report results on.
    """
    root = images.data
    if root is None:
        named = layout_named(images.layout)
        if named is not None and named.name != "drawn":
            raise ConfigError(f"--data must be given: the root folder of the {images.layout} data")
        root = world.on_main(lambda: _drawn_faces(images))
    opened = open_set(
        root,
        images.layout,
        images.classes,
        only=images.only,
        boxes=images.boxes,
        digits=images.digits,
    )
    idle = opened.without_effect(boxes=images.boxes, digits=images.digits)
    train = opened.splits["train"]
    if opened.held_out == "test" and "val" in opened.splits:
        validation = opened.splits["val"]
        if images.validation > 0:
            idle.append(
                f"validation {images.validation} has no effect, as the data has validation images"
            )
    else:
        train, validation = stratified_split(train, images.validation, seed)
        if images.validation > 0 and not validation:
            raise DataError(
                f"{opened.name}: no class has two images, of which --validation could take one; "
                f"{GIVE_VALIDATION_IMAGES}"
            )
    held_out = opened.splits[opened.held_out]
    if not held_out:
        reasons = "".join(f"; {line}" for line in opened.left_out())
        raise DataError(
            f"{opened.name}: no image in the {opened.held_out} split, which results are reported on"
            f"{reasons}"
        )
    return Splits(
        opened.name, opened.class_names, train, validation, held_out, opened.dropped, idle
    )


def find_duplicates(splits: Splits, drop: bool) -> frozenset[Sample] | None:
    """Evaluation images that are pixel for pixel training images.

    None where that is not known: the files have more bytes than are read unasked, without `drop`.
    """
    evaluated = [*splits.validation, *splits.held_out]
    return copies_of_training_images(evaluated, splits.train, None if drop else UNASKED)


def _drawn_faces(images: ImageConfig) -> Path:
    classes = images.classes or 7
    root = Path("data") / f"drawn-faces-{classes}-{images.drawn_train}-{images.drawn_test}"
    return write_faces(root, classes=classes, train=images.drawn_train, test=images.drawn_test)


class Checked(NamedTuple):
    """What `check_readable` found.

    Attributes:
        number: of the images that were opened, the first of `total`.
        total: of the images that were given.
        unreadable: those that cannot be decoded, and why: `"path: reason"`.
    """

    number: int
    total: int
    unreadable: Mapping[Sample, str]

    def __str__(self) -> str:
        result = f"{len(self.unreadable)} cannot be read" if self.unreadable else "all readable"
        return f"{self.number} of {self.total} images were opened before training, {result}"


def check_images(splits: Splits, on_broken: str) -> Checked:
    """Opens images before training, which is better told of an unreadable one now than in hours.

    With "skip" these are all images that are evaluated, each of which must count once. With "error"
    they are as many as `CHECK_SECONDS` allow, of those to evaluate first, then those to train on.

    Raises:
        DataError: an image cannot be read, and that is an error.
    """
    evaluated = [*splits.validation, *splits.held_out]
    if on_broken == "skip":
        return check_readable(evaluated)
    checked = check_readable([*evaluated, *splits.train], CHECK_SECONDS)
    if reasons := list(checked.unreadable.values()):
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise DataError(
            f"{len(reasons)} of {checked.number} images cannot be read: {'; '.join(reasons[:3])}"
            f"{more}. Put readable files in their place, or leave them out with --on-broken skip"
        )
    return checked


def check_readable(samples: Sequence[Sample], seconds: float = math.inf) -> Checked:
    """Decodes `samples` in order, several at a time, until all are done or `seconds` are over."""
    ends = time.monotonic() + seconds
    answers: list[str | None] = []
    bar = tqdm(total=len(samples), desc="opening images", unit="img", leave=False, disable=None)
    # decoding is done without Python's lock, so threads are enough
    with bar, ThreadPoolExecutor(min(8, _cores())) as pool:
        while len(answers) < len(samples) and time.monotonic() < ends:
            some = samples[len(answers) : len(answers) + 256]
            answers += pool.map(why_unreadable, some)
            bar.update(len(some))
    reasons = zip(samples, answers, strict=False)
    unreadable = {sample: why for sample, why in reasons if why is not None}
    return Checked(len(answers), len(samples), unreadable)


class Caches(NamedTuple):
    """The decoded images of a run's splits.

    Attributes:
        train, validation, held_out: None where they are not kept.
        remark: for the log.
    """

    train: ImageCache | None
    validation: ImageCache | None
    held_out: ImageCache | None
    remark: str


def cache_splits(splits: Splits, at_least: int, wanted: bool) -> Caches:
    """Decodes all images of a run, if `wanted` and if they fit; `at_least` as in `read_image`."""
    if not wanted:
        return Caches(None, None, None, "images are read from their files in each epoch")
    samples = [*splits.train, *splits.validation, *splits.held_out]
    limit = memory_limit()
    allowed = f"the {limit / 1e6:.1f} MB that --cache may take"
    try:
        cache = cached(samples, at_least, limit, min(8, _cores()))
    except DataError as error:
        remark = f"images are read from their files in each epoch: {error} would be more than "
        return Caches(None, None, None, remark + allowed)
    remark = f"decoded images are kept in memory: {cache.nbytes / 1e6:.1f} MB of {allowed}"
    if cache.unreadable:
        remark += f"; {cache.unreadable} of {len(cache)} cannot be read"
    trained = len(splits.train)
    evaluated = trained + len(splits.validation)
    return Caches(
        cache.part(slice(trained)),
        cache.part(slice(trained, evaluated)),
        cache.part(slice(evaluated, None)),
        remark,
    )


def framing_of(samples: Sequence[Sample]) -> Framing | None:
    """Where the faces lie in training images, measured on some of them.

    Returns:
        None where the face detector is not installed, or finds too few.
    """
    if why_no_detector() is not None:
        return None

    def images() -> Iterator[np.ndarray]:
        for sample in samples[:: max(1, len(samples) // FRAMING_IMAGES)][:FRAMING_IMAGES]:
            with contextlib.suppress(*UNREADABLE):  # named elsewhere
                yield np.asarray(read_image(sample))

    return measured_framing(images())


def stratified_split(
    samples: Sequence[Sample], fraction: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Splits `samples` in two, the second having `fraction` of every class.

    That is one image at least, unless it is the only one of its class or `fraction` is 0.
    """
    order = np.random.default_rng(seed).permutation(len(samples))
    by_class: dict[int, list[int]] = {}
    for index in order.tolist():
        by_class.setdefault(samples[index].label, []).append(index)
    second: set[int] = set()
    for members in by_class.values():
        at_least = 1 if fraction > 0 and len(members) > 1 else 0
        second.update(members[: max(at_least, round(fraction * len(members)))])
    return (
        [sample for index, sample in enumerate(samples) if index not in second],
        [sample for index, sample in enumerate(samples) if index in second],
    )


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


def training_dataset(
    splits: Splits,
    images: ImageConfig,
    seed: int,
    on_broken: str,
    cache: ImageCache | None = None,
) -> ExpressionDataset:
    """The training images, augmented as `images` says; the seed decides how each is augmented."""
    transform = train_transform(
        images.image_size,
        flip=images.flip,
        erasing=images.erasing,
        erasing_scale=images.erasing_scale,
        crop=images.crop,
        jitter=images.jitter,
        rotation=images.rotation,
        translate=images.translate,
        scale=images.scale,
        stretch=images.stretch,
        brightness=images.brightness,
        contrast=images.contrast,
    )
    return ExpressionDataset(
        splits.train,
        splits.class_names,
        transform,
        color=images.color,
        on_broken=on_broken,
        soft_labels=images.soft_labels,
        at_least=images.image_size,
        seed=seed,
        cache=cache,
    )


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
    return min(8, max(_cores() // processes - 1, 0))


def _cores() -> int:
    # not every system tells which cores a process may use
    affinity = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))
