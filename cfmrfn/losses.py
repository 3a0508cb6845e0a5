"""The training loss of section 3.2: cross-entropy plus label-smoothing cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# One of the values that Cui et al. try; the fewer images beyond 1 / (1 - beta), the more it is like
# the inverse frequency.
EFFECTIVE_BETA = 0.999


def class_weights(choice: str | tuple[float, ...], counts: Tensor) -> Tensor:
    """Weights of the classes in the loss, scaled so that their mean over the images is 1.

    So `lr` and the other terms keep their meaning, and only ratios of given numbers matter.

    Args:
        choice: "balanced": 1 / n of a class with n images (King and Zeng 2001), which is
            `N / (classes * n)` once scaled. "effective": 1 / E, with the effective number of images
            `E = (1 - beta ** n) / (1 - beta)` (Cui et al., CVPR 2019, eq. 2), beta = 0.999; the
            paper scales to a sum of `classes`. Or one number per class.
        counts: (classes,), images of each class, above 0; of votes, their sums. Where images are
            drawn unequally often, how often.

    Returns:
        (classes,), float64.

    Raises:
        ValueError: the numbers given are not as many as the classes, or a class has no image.
    """
    counts = counts.double()
    if not counts.all():
        raise ValueError("class weights need an image of every class to train on")
    if choice == "balanced":
        weights = 1 / counts
    elif choice == "effective":
        weights = (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA**counts)
    else:
        weights = torch.tensor(choice, dtype=torch.float64)
        if len(weights) != len(counts):
            raise ValueError(f"{len(weights)} class weights for {len(counts)} classes")
    return weights * counts.sum() / (weights * counts).sum()


class ExpressionLoss(nn.Module):
    """`ce_weight * CE + smooth_weight * CE with label smoothing`, over the number of images.

    POSTER's weights, which the paper follows, are 1 and 2 with a smoothing of 0.2.

    With `class_weights` w, CE of an image with targets t (the votes, the smoothed label, or 1 for
    its class) and probabilities p is `-sum_c w_c t_c log p_c`, as in `F.cross_entropy`. The sum
    over the batch is divided by its images and not, as there for labels, by the sum of their
    weights: so the mean of micro-batches or of processes is that of the whole batch, for labels
    and votes alike.
    """

    def __init__(
        self,
        ce_weight: float = 1.0,
        smooth_weight: float = 2.0,
        label_smoothing: float = 0.2,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.smooth_weight = smooth_weight
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (batch, classes); targets (batch,) labels or (batch, classes) votes -> ()"""
        weights = None if self.class_weights is None else self.class_weights.to(logits)

        def mean(label_smoothing: float) -> Tensor:
            loss = F.cross_entropy(
                logits, targets, weights, label_smoothing=label_smoothing, reduction="sum"
            )
            return loss / len(logits)

        return self.ce_weight * mean(0.0) + self.smooth_weight * mean(self.label_smoothing)
