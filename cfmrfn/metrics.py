"""What is reported on a split, all from one confusion matrix."""

from __future__ import annotations

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
    cross-entropy. A class without images has no accuracy (nan) and is left out of the means.
    """

    class_names: tuple[str, ...]
    matrix: np.ndarray
    loss: float

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
    def mean_class_accuracy(self) -> float:
        """Mean of the per-class accuracies."""
        return float(np.nanmean(self.per_class))

    @property
    def macro_f1(self) -> float:
        """Mean over the classes of the harmonic mean of precision and recall."""
        row, column = self.matrix.sum(1), self.matrix.sum(0)
        f1 = 2 * np.diag(self.matrix) / np.maximum(row + column, 1)
        return float(f1[row > 0].mean())

    def summary(self) -> dict[str, float]:
        """The scalars that are logged each epoch."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "mean_class_accuracy": self.mean_class_accuracy,
            "macro_f1": self.macro_f1,
        }

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        per_class = zip(self.class_names, self.per_class, strict=True)
        return {
            "images": self.images,
            **self.summary(),
            "per_class": {name: None if np.isnan(value) else value for name, value in per_class},
            "confusion_matrix": self.matrix.tolist(),
        }

    def __str__(self) -> str:
        width = max(map(len, self.class_names))
        lines = [
            f"images               {self.images}",
            f"overall accuracy     {self.accuracy:.4f}",
            f"mean class accuracy  {self.mean_class_accuracy:.4f}",
            f"macro F1             {self.macro_f1:.4f}",
        ]
        counts = self.matrix.sum(1)
        for name, value, count in zip(self.class_names, self.per_class, counts, strict=True):
            lines.append(f"  {name:{width}}  {value:.4f}  of {count}")
        return "\n".join(lines)
