"""What is reported on a split: from its confusion matrix, and of its probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def confusion_matrix(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(batch,), (batch,) -> (classes, classes) counts, int64; rows are the true classes."""
    cells = labels * classes + predictions
    return torch.bincount(cells, minlength=classes**2).view(classes, classes)


@dataclass(frozen=True)
class Report:
    """Results on one split.

    `matrix` (classes, classes) counts, rows are the true classes; `loss` is the mean
    cross-entropy, which is the mean negative log likelihood. A class without images has no accuracy
    and no F1 (nan) and is left out of the means. `without_duplicates` are the results on the images
    that are no training images too; None: all are such, or it is not known.
    """

    class_names: tuple[str, ...]
    matrix: np.ndarray
    loss: float
    without_duplicates: Report | None = None

    @property
    def images(self) -> int:
        """Number of images counted."""
        return int(self.matrix.sum())

    @property
    def accuracy(self) -> float:
        """Overall accuracy."""
        return float(np.trace(self.matrix) / self.matrix.sum())

    @property
    def per_class(self) -> np.ndarray:
        """Accuracy (recall) of each class, (classes,)."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.diag(self.matrix) / self.matrix.sum(1))

    @property
    def precision(self) -> np.ndarray:
        """Part of each class's predictions that is right, (classes,); nan: there are none."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.diag(self.matrix) / self.matrix.sum(0))

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall of each class, (classes,)."""
        row, column = self.matrix.sum(1), self.matrix.sum(0)
        f1 = 2 * np.diag(self.matrix) / np.maximum(row + column, 1)
        return np.where(row > 0, f1, np.nan)

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of the per-class accuracies."""
        return float(np.nanmean(self.per_class))

    @property
    def macro_f1(self) -> float:
        """Mean over the classes of the harmonic mean of precision and recall."""
        return float(np.nanmean(self.f1))

    def summary(self) -> dict[str, float]:
        """The scalars that are logged each epoch."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "mean_class_accuracy": self.mean_class_accuracy,
            "macro_f1": self.macro_f1,
        }

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON; None stands for nan."""
        return {
            "images": self.images,
            **self.summary(),
            "per_class": self._by_name(self.per_class),
            "per_class_precision": self._by_name(self.precision),
            "per_class_f1": self._by_name(self.f1),
            "confusion_matrix": self.matrix.tolist(),
        }

    def _by_name(self, values: np.ndarray) -> dict[str, float | None]:
        pairs = zip(self.class_names, values.tolist(), strict=True)
        return {name: None if np.isnan(value) else value for name, value in pairs}

    def __str__(self) -> str:
        return f"{self.figures({})}\n{self.table()}"

    def in_brief(self) -> str:
        """The overall results in a few words."""
        return (
            f"{self.accuracy:.4f} (mean of classes {self.mean_class_accuracy:.4f}, "
            f"macro F1 {self.macro_f1:.4f})"
        )

    def figures(self, notes: Mapping[str, str]) -> str:
        """The overall results, a line each, with `notes` behind those of these names in JSON."""
        labels = {
            "accuracy": "overall accuracy",
            "mean_class_accuracy": "mean class accuracy",
            "macro_f1": "macro F1",
        }
        values = self.summary()
        lines = [f"{'images':19}  {self.images}"]
        for name, label in labels.items():
            lines.append(f"{label:19}  {values[name]:.4f}  {notes.get(name, '')}".rstrip())
        return "\n".join(lines)

    def table(self) -> str:
        """Precision, recall, F1 and number of images of each class, a line each."""
        width = max(map(len, self.class_names))
        lines = [f"  {'':{width}}  precision  recall      F1  images"]
        counts = self.matrix.sum(1)
        columns = zip(
            self.class_names, self.precision, self.per_class, self.f1, counts, strict=True
        )
        for name, precision, recall, f1, count in columns:
            cells = f"{_cell(precision):>9}  {_cell(recall):>6}  {_cell(f1):>6}  {count:6}"
            lines.append(f"  {name:{width}}  {cells}")
        return "\n".join(lines)


def _cell(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}"


@dataclass(frozen=True)
class Calibration:
    """How well the probability of the predicted class, the confidence, tells the accuracy.

    Images are put into `BINS` equal-width bins by confidence, (m - 1) / BINS < confidence <=
    m / BINS (Guo et al. 2017, "On calibration of modern neural networks"). All arrays are (bins,);
    a bin without images has accuracy and confidence nan.

    Attributes:
        counts: images in each bin.
        accuracy: part of them whose prediction is right.
        confidence: its mean over them.
    """

    counts: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray

    BINS = 15

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
        """From probabilities (images, classes) and labels (images,)."""
        confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
        inner = np.linspace(0, 1, cls.BINS + 1)[1:-1]
        place = np.searchsorted(inner, confidence, side="left")
        counts = np.bincount(place, minlength=cls.BINS)
        with np.errstate(invalid="ignore"):
            return cls(
                counts,
                np.bincount(place, correct, cls.BINS) / counts,
                np.bincount(place, confidence, cls.BINS) / counts,
            )

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean over the images of their bin's gap."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.counts * gaps) / self.counts.sum())

    @property
    def mean_accuracy(self) -> float:
        """Over all images."""
        return float(np.nansum(self.counts * self.accuracy) / self.counts.sum())

    @property
    def mean_confidence(self) -> float:
        """Over all images."""
        return float(np.nansum(self.counts * self.confidence) / self.counts.sum())

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON: of each bin its edges, images, accuracy and confidence."""
        bins = zip(self.counts.tolist(), self.accuracy, self.confidence, strict=True)
        return {
            "definition": f"ECE of Guo et al. 2017, {self.BINS} equal-width bins",
            "ece": self.ece,
            "mean_confidence": self.mean_confidence,
            "bins": [
                {
                    "above": place / self.BINS,
                    "up_to": (place + 1) / self.BINS,
                    "images": count,
                    "accuracy": float(accuracy) if count else None,
                    "confidence": float(confidence) if count else None,
                }
                for place, (count, accuracy, confidence) in enumerate(bins)
            ],
        }


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Brier (1950): the squared error of the probabilities, summed over the classes; 0 to 2.

    Args:
        probabilities: (images, classes).
        labels: (images,).
    """
    errors = probabilities - np.eye(probabilities.shape[1])[labels]
    return float(np.square(errors).sum(1).mean())


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """The 95 % interval of a share, `hits` of `images`, by the formula of Wilson (1927).

    It is right for few images too, and has a width where all or none are hits.
    """
    z = 1.959964
    share, z2 = hits / images, z * z / images
    middle = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / images + z2 / images / 4) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)
