"""Evaluation of a network on a split of a data set."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmrfn import checkpoint, trained
from cfmrfn.batches import evaluation_loader
from cfmrfn.errors import CheckpointError, DataError
from cfmrfn.evaluation import bootstrap
from cfmrfn.evaluation.bootstrap import Interval
from cfmrfn.inference import (
    PredictionTable,
    ReadableBatches,
    Split,
    open_split,
    open_table,
    reason_of,
)
from cfmrfn.metrics import Calibration, Report, brier_score, confusion_matrix
from cfmrfn.process.distributed import World
from cfmrfn.process.precision import Precision, autocast, sum_dtype
from cfmrfn.whole_files import CsvFile

# Split that chose the epoch -> how the epoch was chosen; None: not by any results.
HOW_CHOSEN = {
    "val": "best on the validation images",
    "test": "best on the held-out images themselves, as papers do: optimistic",
    None: "the last",
}


@torch.inference_mode()
def scored_batches(
    network: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    world: World,
    precision: Precision = "float32",
    *,
    flip: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores (batch, classes), whose softmax are the probabilities, and labels (batch,).

    With `flip` the probabilities are the mean of those of the image and of its mirror image.
    """
    network.eval()
    for images, labels in loader:
        images = images.to(world.device, non_blocking=True)
        labels = labels.to(world.device, non_blocking=True)
        with autocast(precision, world.device):
            scores = network(images).float()
            if flip:
                mirrored = network(images.flip(-1)).float()
        if flip:
            both = torch.stack([scores.log_softmax(1), mirrored.log_softmax(1)])
            scores = both.logsumexp(0) - math.log(2)
        yield scores, labels


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    class_names: tuple[str, ...],
    world: World,
    precision: Precision = "float32",
    duplicates: Sequence[bool] = (),
) -> Report:
    """Results of `network` on the images of `loader`, over all processes.

    Args:
        duplicates: (images of this process), in the order of `loader`: which are training images
            too. Empty: none, or it is not known.

    Raises:
        DataError: there are no images.
    """
    classes = len(class_names)
    # of images that are no training images, and of those that are
    matrices = torch.zeros(2, classes, classes, dtype=torch.int64, device=world.device)
    losses = torch.zeros(2, dtype=sum_dtype(world.device), device=world.device)
    first = 0
    for scores, labels in scored_batches(network, loader, world, precision):
        is_copy = torch.zeros_like(labels, dtype=torch.bool)
        if duplicates:
            is_copy = torch.tensor(duplicates[first : first + len(labels)], device=labels.device)
        first += len(labels)
        predictions = scores.argmax(1)
        each = F.cross_entropy(scores, labels, reduction="none").to(losses.dtype)
        for kind, chosen in enumerate((~is_copy, is_copy)):
            matrices[kind] += confusion_matrix(predictions[chosen], labels[chosen], classes)
            losses[kind] += each[chosen].sum()
    world.sum(matrices)
    world.sum(losses)
    counts = matrices.sum((1, 2))
    if not counts.any():
        raise DataError("not one image can be read")
    without = None
    if counts.all():
        loss = losses[0].item() / int(counts[0])
        without = Report(class_names, matrices[0].cpu().numpy(), loss)
    loss = losses.sum().item() / int(counts.sum())
    return Report(class_names, matrices.sum(0).cpu().numpy(), loss, without)


OnBroken = Literal["error", "skip"]


@dataclass(frozen=True)
class Evaluation:
    """Results of a checkpoint.

    Attributes:
        report: the results; its classes are those that predictions are among.
        about: what the checkpoint says of itself.
        images: what it was evaluated on.
        probabilities: (images, classes), NaN where an image could not be read.
        labels: (images,), indices of the true classes.
        unreadable: `"path: reason"` of these images, which do not count.
        flip: whether probabilities are the mean over image and mirror image.
        only_shared: whether predictions are among the classes that checkpoint and data set share.
    """

    report: Report
    about: checkpoint.About
    images: Split
    probabilities: np.ndarray
    labels: np.ndarray
    unreadable: Sequence[str]
    flip: bool = False
    only_shared: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes that predictions are among, in the order of the probabilities."""
        return self.report.class_names

    @property
    def is_read(self) -> np.ndarray:
        """(images,): which could be read."""
        return ~np.isnan(self.probabilities[:, 0])

    @property
    def is_correct(self) -> np.ndarray:
        """(images,): whose prediction is right; False where an image could not be read."""
        correct: np.ndarray = self.probabilities.argmax(1) == self.labels
        return correct & self.is_read

    @cached_property
    def calibration(self) -> Calibration:
        """How well confidence tells accuracy."""
        return Calibration.of(self.probabilities[self.is_read], self.labels[self.is_read])

    @cached_property
    def brier_score(self) -> float:
        """See `cfmrfn.metrics.brier_score`."""
        return brier_score(self.probabilities[self.is_read], self.labels[self.is_read])

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Of "accuracy" and "mean_class_accuracy", see `cfmrfn.evaluation.bootstrap`."""
        read = self.is_read
        return bootstrap.accuracy_intervals(self.labels[read], self.is_correct[read])

    @cached_property
    def is_duplicate(self) -> np.ndarray | None:
        """(images,): which are training images too, see `Split.duplicates`; None: not known."""
        copies = self.images.duplicates
        if copies is None:
            return None
        return np.array([sample in copies for sample in self.images.samples])

    @cached_property
    def without_duplicates(self) -> Evaluation | None:
        """The results on the images that are no training images too; None: all or none are such, or
        that is not known."""
        if self.is_duplicate is None or not (self.is_duplicate & self.is_read).any():
            return None
        kept = ~self.is_duplicate
        if not (kept & self.is_read).any():
            return None
        samples = [sample for sample, keep in zip(self.images.samples, kept, strict=True) if keep]
        probabilities, labels = self.probabilities[kept], self.labels[kept]
        read = ~np.isnan(probabilities[:, 0])
        return replace(
            self,
            report=_report(self.class_names, probabilities[read], labels[read]),
            images=replace(self.images, samples=samples, left_out_duplicates=[]),
            probabilities=probabilities,
            labels=labels,
        )

    def as_dict(self) -> dict[str, Any]:
        """Results, and what was left out, as plain values for JSON."""
        left_out = {
            f"class {name}, which the checkpoint does not know": count
            for name, count in self.images.other_classes.items()
        }
        if self.unreadable:
            left_out["cannot be read"] = len(self.unreadable)
        return {
            "class_names": list(self.class_names),
            "checkpoint_classes": list(self.about.class_names),
            "set_classes": list(self.images.set_classes),
            "left_out": left_out,
            "left_out_of_whole_set": dict(self.images.dropped),
            "unreadable": list(self.unreadable),
            "classes_without_images": [
                name for name in self.images.absent if name in self.class_names
            ],
            "versions": checkpoint.versions(),
            "checkpoint_versions": self.about.versions,
            **self._results(),
            "duplicates": self._named_duplicates(),
            "without_duplicates": None
            if self.without_duplicates is None
            else self.without_duplicates._results(),
        }

    def _results(self) -> dict[str, Any]:
        return {
            **self.report.as_dict(),
            "brier_score": self.brier_score,
            "calibration": self.calibration.as_dict(),
            "bootstrap": {
                "interval": bootstrap.CONFIDENCE,
                "resamples": bootstrap.RESAMPLES,
                "seed": bootstrap.SEED,
                **{name: list(interval) for name, interval in self.intervals.items()},
            },
        }

    def _named_duplicates(self) -> dict[str, Any] | None:
        if self.images.left_out_duplicates is not None:
            left_out, names = True, list(self.images.left_out_duplicates)
        elif self.images.duplicates is None:
            return None
        else:
            left_out, names = False, sorted(sample.path for sample in self.images.duplicates)
        return {"left_out": left_out, "of": self.images.learned_from, "images": names}

    def remarks(self) -> list[str]:
        """What a reader of the results should know of the images and predictions, in lines."""
        lines = [*self.images.remarks(), *self.images.about_duplicates()]
        if self.unreadable:
            lines.append(f"left out: {len(self.unreadable)} images that cannot be read")
        shared, own = self.images.shared_classes, self.about.class_names
        if len(shared) < max(len(own), len(self.images.set_classes)):
            lines.append(
                f"classes of both: {', '.join(shared)} ({len(shared)} of the checkpoint's "
                f"{len(own)} and of the data set's {len(self.images.set_classes)})"
            )
            if len(shared) == len(own):
                lines.append("predictions are among these, as the checkpoint knows no others")
            elif self.only_shared:
                lines.append(
                    "predictions are among these only, whose probabilities are scaled to sum to 1"
                )
            else:
                lines.append(
                    f"predictions are among all {len(own)} of the checkpoint, so that one of the "
                    "others is an error; --shared-classes leaves the others out"
                )
        if self.flip:
            lines.append("probabilities: mean of those of each image and of its mirror image")
        return lines

    def __str__(self) -> str:
        notes = {
            name: f"95 % interval {low:.4f} to {high:.4f}"
            for name, (low, high) in self.intervals.items()
        }
        calibration = self.calibration
        return "\n".join(
            [
                self.report.figures(notes),
                *self._figures_without_duplicates(),
                f"ECE                  {calibration.ece:.4f}  expected calibration error (Guo et "
                f"al. 2017, {calibration.BINS} equal-width bins); mean confidence "
                f"{calibration.mean_confidence:.4f}",
                f"log loss             {self.report.loss:.4f}  mean negative log likelihood",
                f"Brier score          {self.brier_score:.4f}  summed over the classes, 0 to 2",
                f"intervals: percentiles of a bootstrap, {bootstrap.RESAMPLES} resamples of the "
                "images whatever their class",
                self.report.table(),
            ]
        )

    def _figures_without_duplicates(self) -> list[str]:
        without = self.without_duplicates
        if without is None:
            return []
        low, high = without.intervals["accuracy"]
        return [
            f"without the {self.report.images - without.report.images} images that are "
            f"{self.images.learned_from} images too: accuracy {without.report.in_brief()}, 95 % "
            f"interval {low:.4f} to {high:.4f}"
        ]

    def write_table(self, path: str | Path) -> None:
        """Writes each image's prediction as CSV, see `cfmrfn.inference`."""
        names = self.class_names
        with open_table(path) as file:
            table = PredictionTable(file, names)
            rows = zip(
                self.images.samples,
                self.probabilities.tolist(),
                self.labels,
                self.is_read,
                [None] * len(self.labels) if self.is_duplicate is None else self.is_duplicate,
                strict=True,
            )
            for sample, row, label, is_read, is_duplicate in rows:
                table.write(sample.path, names[label], row if is_read else None, is_duplicate)

    def write_confusion(self, path: str | Path) -> None:
        """Writes the confusion matrix as CSV: a row per true class, a column per prediction."""
        with open_table(path) as file:
            writer = csv.writer(CsvFile(file))
            writer.writerow(["true \\ predicted", *self.class_names])
            for name, counts in zip(self.class_names, self.report.matrix.tolist(), strict=True):
                writer.writerow([name, *counts])


def evaluate_split(
    network: nn.Module,
    about: checkpoint.About,
    images: Split,
    *,
    flip: bool = False,
    shared_classes: bool = False,
    batch_size: int = 64,
    workers: int | None = None,
    precision: Precision = "float32",
    on_broken: OnBroken = "error",
    world: World | None = None,
    progress: bool = False,
) -> Evaluation:
    """Evaluates a network on a split of a data set.

    Args:
        network, about: as `checkpoint.load_network` returns them.
        images: as `open_split` returns them.
        flip: take the mean of the probabilities of each image and of its mirror image.
        shared_classes: predict only classes that the data set has too; their probabilities are
            scaled to sum to 1.
        batch_size: images at a time.
        workers: processes that decode images. None: one per spare core, at most 8.
        precision: autocast type.
        on_broken: what an image does that cannot be read. "error" ends the evaluation, where it is
            missing before anything is computed. "skip" leaves it out and counts it.
        world: the processes, and the device.
        progress: show a bar on a terminal.

    Raises:
        CheckpointError: the network's output is not finite.
        DataError: an image cannot be read, and `on_broken` is "error"; or none can; or only one
            class is shared, and predictions were to be among the shared ones.
    """
    world = world or World()
    samples = images.samples
    predicted = predicted_classes(about, images, shared_classes)
    if on_broken == "error":
        _require_files(images)
    loader = evaluation_loader(
        samples,
        about,
        batch_size=batch_size,
        world=world,
        workers=workers,
        on_broken="mark",
    )
    own = range(len(samples))[world.rank :: world.size]
    batches = ReadableBatches(
        loader,
        [samples[place] for place in own],
        on_broken,
        progress=progress and world.is_main,
    )
    network = network.to(world.device)
    found = [scores for scores, _ in scored_batches(network, batches, world, precision, flip=flip)]
    # each process fills its rows, and the others add zeros
    table = torch.zeros(len(samples), len(about.class_names), device=world.device)
    is_read = torch.zeros(len(samples), device=world.device)
    left_out = {own[place] for place in batches.unreadable}
    if found:
        read = [place for place in own if place not in left_out]
        table[read] = torch.cat(found)
        is_read[read] = 1
    kept = world.sum(is_read).cpu() > 0
    scores = world.sum(table).cpu().double()
    if not kept.any():
        raise DataError("not one image can be read")
    if not scores.isfinite().all():
        first = int((~scores.isfinite()).any(1).nonzero()[0])
        raise CheckpointError(
            f"the network's output is not finite, for {samples[first].path} first: its training "
            "failed, or the precision is too low for it (--precision float32)"
        )

    log_p = scores[:, predicted].log_softmax(1)
    position = {old: new for new, old in enumerate(predicted)}
    labels = torch.tensor([position[sample.label] for sample in samples])
    names = tuple(about.class_names[index] for index in predicted)
    report = _report(names, log_p[kept].exp().numpy(), labels[kept].numpy())
    log_p[~kept] = torch.nan
    reasons = [reason_of(samples[place]) for place in (~kept).nonzero().flatten().tolist()]
    return Evaluation(
        report,
        about,
        images,
        log_p.exp().numpy(),
        labels.numpy(),
        reasons,
        flip=flip,
        only_shared=shared_classes,
    )


def _report(class_names: tuple[str, ...], probabilities: np.ndarray, labels: np.ndarray) -> Report:
    """From probabilities (images, classes) and labels (images,)."""
    predictions, truth = torch.from_numpy(probabilities.argmax(1)), torch.from_numpy(labels)
    matrix = confusion_matrix(predictions, truth, len(class_names)).numpy()
    # a probability that float64 takes for 0 counts as the least number above it
    of_truth = probabilities[np.arange(len(labels)), labels].clip(np.finfo(np.float64).tiny)
    return Report(class_names, matrix, float(-np.log(of_truth).mean()))


def predicted_classes(about: checkpoint.About, images: Split, shared: bool) -> list[int]:
    """Indices of the checkpoint's classes that predictions are among; all, or those `shared`.

    Raises:
        DataError: only one class is shared.
    """
    if not shared:
        return list(range(len(about.class_names)))
    names = images.shared_classes
    if len(names) < 2:
        raise DataError(
            f"the data set and the checkpoint share class {', '.join(names)} only, and predictions "
            "need two: leave --shared-classes out"
        )
    return [about.class_names.index(name) for name in names]


def _require_files(images: Split) -> None:
    missing = [sample.path for sample in images.samples if not os.path.isfile(sample.path)]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(images.samples)} images of split {images.name} are "
            f"missing, {missing[0]} first; --on-broken skip leaves such images out"
        )


def evaluate_checkpoint(
    path: str | Path | None,
    data: str | Path,
    *,
    layout: str = "auto",
    split: str | None = None,
    boxes: bool = True,
    digits: Sequence[str] | None = None,
    drop_duplicates: bool = False,
    flip: bool = False,
    shared_classes: bool = False,
    batch_size: int = 64,
    workers: int | None = None,
    precision: Precision = "float32",
    on_broken: OnBroken = "error",
    world: World | None = None,
) -> Evaluation:
    """Evaluates a checkpoint, or a run folder's best one, on a split of the data set at `data`.

    `path` may be any name of `cfmrfn.trained`; None is the network that comes with the package.
    Classes are matched by name, so a network trained on one set can be tried on another.
    `drop_duplicates` is `Split.without_duplicates`. `layout`, `split`,
    `boxes` and `digits` are those of `cfmrfn.inference.open_split`, the other arguments
    those of `evaluate_split`.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be used.
        DataError: the data set cannot be opened, or has no such split; or as `evaluate_split`.
    """
    network, about = trained.load(trained.find(path))
    images = open_split(data, layout, split, about, boxes=boxes, digits=digits)
    return evaluate_split(
        network,
        about,
        images.without_duplicates() if drop_duplicates else images,
        flip=flip,
        shared_classes=shared_classes,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        on_broken=on_broken,
        world=world,
    )
