"""The images of a run: its splits, and what is found out about them before training."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cfmrfn.config import Config, ImageConfig
from cfmrfn.data import (
    ExpressionDataset,
    Sample,
    layout_named,
    open_set,
    read_image,
    train_transform,
    why_unreadable,
)
from cfmrfn.data.cache import ImageCache, cached, memory_limit
from cfmrfn.data.duplicates import NOT_LOOKED_FOR, UNASKED, copies_of_training_images
from cfmrfn.data.reading import UNREADABLE
from cfmrfn.data.synthetic import write_faces
from cfmrfn.errors import ConfigError, DataError
from cfmrfn.faces import Framing, measured_framing, why_no_detector
from cfmrfn.losses import class_weights
from cfmrfn.process.cores import available_cores
from cfmrfn.process.distributed import World

# What opening images before training may take: all of most sets, and the evaluation images of the
# largest.
CHECK_SECONDS = 20

GIVE_VALIDATION_IMAGES = (
    "give others, or let the held-out images choose the best epoch by --validation 0"
)

FRAMING_IMAGES = 64  # the mean of their points is known to 1 % of the side

MOST_NAMED = 20  # unreadable images in the log


class RunImages:
    """The images that a run is trained and evaluated on.

    Attributes:
        splits: without what evaluation leaves out.
        fingerprint, file_sizes: of all images, see `Splits`.
        checked: what opening images before training found.
        duplicates: evaluation images that are training images too. None: it is not known.
        caches: the decoded images.

    Raises:
        ConfigError, DataError: the images cannot be used.
    """

    def __init__(self, config: Config, world: World) -> None:
        images, run = config.images, config.run
        splits = open_splits(images, config.optim.seed, world)
        self.fingerprint = splits.fingerprint()
        self.file_sizes = world.on_main(splits.file_sizes)
        self.checked = world.on_main(lambda: check_images(splits, run.on_broken))
        self.splits = splits.without(self.checked.unreadable.keys())
        self.drop_duplicates = images.drop_duplicates
        self.duplicates = world.on_main(lambda: find_duplicates(self.splits, self.drop_duplicates))
        if self.drop_duplicates and self.duplicates:
            self.splits = self.splits.without(self.duplicates, "that is a training image too")
        self.caches = cache_splits(self.splits, images.image_size, run.cache)

    def are_duplicates(self, samples: Sequence[Sample]) -> list[bool]:
        """Which of `samples` are training images too; empty where none is, or it is not known."""
        if not self.duplicates:
            return []
        return [sample in self.duplicates for sample in samples]

    def as_dict(self) -> dict[str, Any]:
        """What `report.json` says of the images."""
        duplicates = None
        if self.duplicates is not None:
            duplicates = {
                "left_out": self.drop_duplicates,
                "images": sorted(sample.path for sample in self.duplicates),
            }
        return {
            "data": self.splits.name,
            "fingerprint": self.fingerprint,
            "image_bytes": int(self.file_sizes.clamp(min=0).sum()),
            "training_images": len(self.splits.train),
            "validation_images": len(self.splits.validation),
            "validation_split": self.splits.validation_split,
            "left_out": self.splits.left_out(),
            "duplicates": duplicates,
        }

    def description(self) -> list[str]:
        """What the log says of the images, in lines."""
        splits = self.splits
        unreadable = list(self.checked.unreadable.values())
        named = [*unreadable[:MOST_NAMED]]
        if len(unreadable) > MOST_NAMED:
            named.append(f"{len(unreadable) - MOST_NAMED} more")
        return [
            f"{splits.name}: {len(splits.train)} images to train on, "
            f"{len(splits.validation)} for validation, {len(splits.held_out)} held out; "
            f"classes {', '.join(splits.class_names)}",
            *(f"left out: {count}, {reason}" for reason, count in splits.left_out().items()),
            *self._about_duplicates(),
            *(f"left out of evaluation: {each}" for each in named),
            str(self.checked),
            self.caches.remark,
        ]

    def _about_duplicates(self) -> list[str]:
        if self.duplicates is None:
            return [NOT_LOOKED_FOR]
        validation, held_out = (
            sum(self.are_duplicates(samples))
            for samples in (self.splits.validation, self.splits.held_out)
        )
        if not validation + held_out:  # there are none, or they were left out and counted
            return []
        return [
            f"{validation} validation images and {held_out} held-out ones are pixel for pixel "
            "training images: results are given with and without them; --drop-duplicates leaves "
            "them out"
        ]


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
        layout: that the set was read as.
        validation_split: the set's split that validation images are of, "val", or "train", of which
            they were set aside; None: there are none.
    """

    name: str
    class_names: tuple[str, ...]
    train: list[Sample]
    validation: list[Sample]
    held_out: list[Sample]
    dropped: Mapping[str, int] = field(default_factory=dict)
    without_effect: Sequence[str] = ()
    layout: str | None = None
    validation_split: str | None = None

    def left_out(self) -> dict[str, int]:
        """Number of files and images left out, by the reasons there were."""
        return {reason: count for reason, count in self.dropped.items() if count}

    def evaluated(self) -> dict[str, list[Sample]]:
        """The images that are evaluated, by the name of their split in files."""
        splits = {"val": self.validation, "test": self.held_out}
        return {name: samples for name, samples in splits.items() if samples}

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
        validation, validation_split = opened.splits["val"], "val"
        if images.validation > 0:
            idle.append(
                f"validation {images.validation} has no effect, as the data has validation images"
            )
    else:
        train, validation = stratified_split(train, images.validation, seed)
        validation_split = "train"
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
        opened.name,
        opened.class_names,
        train,
        validation,
        held_out,
        opened.dropped,
        idle,
        opened.layout,
        validation_split if validation else None,
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
        what: that they are, for the log.
    """

    number: int
    total: int
    unreadable: Mapping[Sample, str]
    what: str = "images"

    def __str__(self) -> str:
        result = f"{len(self.unreadable)} cannot be read" if self.unreadable else "all readable"
        return f"{self.number} of {self.total} {self.what} were opened before training, {result}"


def check_images(splits: Splits, on_broken: str) -> Checked:
    """Opens images before training, which is better told of an unreadable one now than in hours.

    With "skip" these are all images that are evaluated, each of which must count once. With "error"
    they are as many as `CHECK_SECONDS` allow, of those to evaluate first, then those to train on.

    Raises:
        DataError: an image cannot be read, and that is an error.
    """
    evaluated = [*splits.validation, *splits.held_out]
    if on_broken == "skip":
        return check_readable(evaluated)._replace(what="images to evaluate")
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
    with bar, ThreadPoolExecutor(min(8, available_cores())) as pool:
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
        cache = cached(samples, at_least, limit, min(8, available_cores()))
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

    That is one image at least, unless `fraction` is 0, and leaves the first one at least.
    """
    order = np.random.default_rng(seed).permutation(len(samples))
    by_class: dict[int, list[int]] = {}
    for index in order.tolist():
        by_class.setdefault(samples[index].label, []).append(index)
    second: set[int] = set()
    for members in by_class.values():
        number = max(1, round(fraction * len(members))) if fraction > 0 else 0
        second.update(members[: min(number, len(members) - 1)])
    return (
        [sample for index, sample in enumerate(samples) if index not in second],
        [sample for index, sample in enumerate(samples) if index in second],
    )


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


def weights_of_classes(splits: Splits, config: Config) -> Tensor | None:
    """(classes,) for the loss, as `config` says; None: all equal.

    Raises:
        ConfigError: the weights do not fit the classes, or sampling balances them already.
    """
    choice, images = config.optim.class_weights, config.images
    if choice is None:
        return None
    if images.balanced and isinstance(choice, str):
        raise ConfigError(
            f"class-weights {choice} and --balanced both favour rare classes: leave one out"
        )
    labels = torch.tensor([sample.label for sample in splits.train])
    targets = F.one_hot(labels, len(splits.class_names)).double()
    # how often each image is drawn
    drawn = 1 / targets.sum(0)[labels] if images.balanced else torch.ones(len(labels))
    if images.soft_labels:
        targets = torch.tensor([s.votes for s in splits.train], dtype=torch.float64)
    try:
        return class_weights(choice, (drawn[:, None] * targets).sum(0))
    except ValueError as error:
        names = ", ".join(splits.class_names)
        raise ConfigError(f"{error}, in this order: {names}") from error
