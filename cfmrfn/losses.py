"""The training loss of section 3.2: cross-entropy plus label-smoothing cross-entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ExpressionLoss(nn.Module):
    """`ce_weight * CE + smooth_weight * CE with label smoothing`, the mean over the batch.

    POSTER's weights, which the paper follows, are 1 and 2 with a smoothing of 0.2.
    """

    def __init__(
        self, ce_weight: float = 1.0, smooth_weight: float = 2.0, label_smoothing: float = 0.2
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.smooth_weight = smooth_weight
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (batch, classes); targets (batch,) labels or (batch, classes) votes -> ()"""
        smooth = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        return self.ce_weight * F.cross_entropy(logits, targets) + self.smooth_weight * smooth
