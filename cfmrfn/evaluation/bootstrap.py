"""Bootstrap intervals (Efron 1979) of accuracies, and of differences between networks.

What is resampled are the images, with replacement and whatever their class: the test images stand
for the population that they were drawn from, proportions of the classes included. An interval is
that between two percentiles of the resampled values. It says how far the result depends on which
images were tested; not how far it depends on the seed of training. At an accuracy of exactly 0 or 1
all resamples agree and the interval has no width, which does not mean that nothing is uncertain.

Two networks that saw the same images are compared on the same resamples (paired), as most of the
chance of which images are hard is then common to both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
SEED = 0
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Between the percentiles of a bootstrap."""

    low: float
    high: float


def resampled_accuracies(
    labels: np.ndarray, correct: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED
) -> Mapping[str, np.ndarray]:
    """Accuracy and mean of the classes of some networks on the same resamples of the images.

    Images of one class that the networks get right and wrong alike are one kind, and exchangeable.
    So how often each kind is drawn decides all, and these numbers are multinomial: drawing them is
    drawing the images, at a cost that does not grow with their number.

    Args:
        labels: (images,), the class of each image.
        correct: (networks, images), whether each network is right.
        resamples: number of them.
        seed: of the draws.

    Returns:
        "accuracy" and "mean_class_accuracy" -> (networks, resamples). A class of which a resample
        has no image is left out of its mean.
    """
    kinds, counts = np.unique(np.vstack([labels, correct]).T, axis=0, return_counts=True)
    images = len(labels)
    draws = np.random.default_rng(seed).multinomial(images, counts / images, size=resamples)
    is_class = kinds[:, :1] == np.unique(labels)  # (kinds, classes)
    is_correct = kinds[:, 1:].T[:, :, None]  # (networks, kinds, 1)
    hits = draws @ (is_class * is_correct)  # (networks, resamples, classes)
    with np.errstate(invalid="ignore"):
        per_class = hits / (draws @ is_class.astype(np.int64))
    return {
        "accuracy": hits.sum(2) / images,
        "mean_class_accuracy": np.nanmean(per_class, axis=2),
    }


def accuracy_intervals(
    labels: np.ndarray, correct: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Interval]:
    """Intervals of a network's accuracies, `labels` and `correct` (images,); see the module."""
    accuracies = resampled_accuracies(labels, correct[None], resamples, seed)
    return {name: _interval(values[0]) for name, values in accuracies.items()}


def difference_intervals(
    labels: np.ndarray,
    correct: np.ndarray,
    correct_of_first: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Interval]:
    """Intervals of how much more accurate a network is than a first one, on the same images.

    The arrays are (images,); see the module.
    """
    both = np.stack([correct, correct_of_first])
    accuracies = resampled_accuracies(labels, both, resamples, seed)
    return {name: _interval(values[0] - values[1]) for name, values in accuracies.items()}


def _interval(values: np.ndarray) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))
