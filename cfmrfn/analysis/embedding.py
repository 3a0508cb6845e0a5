"""Images as points by t-SNE of their features (Fig. 6 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfmrfn.data import Sample
from cfmrfn.errors import CheckpointError, ConfigError, DataError
from cfmrfn.models import CFMRFN


@dataclass(frozen=True)
class Embedding:
    """The t-SNE of a split.

    Attributes:
        title: of the data set and the split.
        root: folder of the data set.
        samples: its images.
        predicted: (images,), classes.
        points: (images, 2).
    """

    title: str
    root: str
    samples: Sequence[Sample]
    predicted: np.ndarray
    points: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """(images,), true classes."""
        return np.array([sample.label for sample in self.samples])

    @property
    def summary(self) -> str:
        """Number of images and accuracy."""
        return f"{len(self.samples)} images, accuracy {(self.predicted == self.labels).mean():.1%}"


@torch.inference_mode()
def pooled_features(
    network: CFMRFN, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features (images, embed_dim) and predicted classes (images,).

    Raises:
        DataError: there are no images.
    """
    pooled, predicted = [], []
    for images, _ in batches:
        features = network.forward_features(images.to(network.norm.weight.device))
        pooled.append(network.forward_head(features, pre_logits=True))
        predicted.append(network.get_classifier()(pooled[-1]).argmax(1))
    if not pooled:
        raise DataError("no image of the split can be read")
    return torch.cat(pooled).cpu().numpy(), torch.cat(predicted).cpu().numpy()


def embed(features: np.ndarray, perplexity: float | None, seed: int) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008), from the first two principal components.

    Args:
        features: (images, channels).
        perplexity: neighbours that count, more than 0 and less than the number of images. None: 30,
            or a third of the images where there are fewer than 90.
        seed: of its randomness.

    Returns:
        (images, 2)

    Raises:
        CheckpointError: a feature is not finite.
        ConfigError: the perplexity is not legal, the features of all images are the same, or
            scikit-learn is not installed.
    """
    if len(features) < 2:
        raise ConfigError("t-SNE needs 2 images or more, got 1; give --no-tsne")
    if perplexity is None:
        perplexity = min(30.0, len(features) / 3)
    if not 0 < perplexity < len(features):
        raise ConfigError(
            f"perplexity must be above 0 and below the number of images, {len(features)}; "
            f"got {perplexity:g}"
        )
    tsne = tsne_class()(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    if not np.isfinite(features).all():
        raise CheckpointError(
            "the network's features are not finite, for t-SNE or anything else: its training failed"
        )
    # scikit-learn divides by their spread: where it is zero, or too small or too large for float32,
    # that gives NaN, which end the process in its tree
    centred = features - features.mean(0, dtype=np.float64)
    spread, rounding = np.abs(centred).max(), 1e-6 * np.abs(features).max()
    if spread <= rounding:
        raise ConfigError(
            f"t-SNE needs images that differ, got {len(features)} with the same features; give "
            "--no-tsne"
        )
    return np.asarray(tsne.fit_transform((centred / spread).astype(np.float32)))


def tsne_class() -> Any:
    """Of scikit-learn; raises ConfigError where that is not installed."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ConfigError(
            f"t-SNE needs scikit-learn ({error}): pip install scikit-learn, or give --no-tsne"
        ) from error
    return TSNE
