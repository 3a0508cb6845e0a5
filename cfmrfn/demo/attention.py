"""Maps of a network's attention on faces, for the page to choose from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cfmrfn.analysis.explanation import (
    attention_by_place,
    attention_rollout,
    head_groups,
    rollout_by_place,
    stream_tokens,
)
from cfmrfn.classifier import Classifier, NetworkClassifier
from cfmrfn.models.options import token_grid


class AttentionMaps:
    """Attention in every layer by groups of heads, and its rollout, by stream.

    Args:
        classifier: whose network is looked into.

    Attributes:
        layers: the number of encoder layers.
        streams: names of the streams whose tokens are places on the face.
        heads: names of the groups: all heads, and those of each dilation where they differ.
    """

    def __init__(self, classifier: NetworkClassifier) -> None:
        self._network = network = classifier.network
        self._device = classifier.device
        self.layers = len(network.layers)
        # the tokens of "poster_view" are groups of channels and lie nowhere on the face
        on_face = {
            "expression": network.image_backbone is not None and network.tokens != "poster_view",
            "landmark": network.landmark_backbone is not None,
        }
        self.streams = [name for name, shown in on_face.items() if shown]
        groups = head_groups(network)
        self._groups = {"all": [head for group in groups for head in group.heads]}
        if len(groups) > 1:
            self._groups |= {f"dilation {group.dilation}": [*group.heads] for group in groups}
        self.heads = list(self._groups)

    @classmethod
    def of(cls, classifier: Classifier) -> AttentionMaps | None:
        """None for a classifier that cannot be looked into, or attends to no places."""
        if not isinstance(classifier, NetworkClassifier):
            return None
        maps = cls(classifier)
        return maps if maps.streams else None

    def about(self) -> dict[str, Any]:
        """What there is to choose from, as JSON has it."""
        return {"layers": self.layers, "streams": self.streams, "heads": self.heads}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[dict[str, Any]]:
        """The maps of each face, as JSON has them.

        Args:
            images: (batch, 3, size, size), as the network takes them.

        Returns:
            For each face "layers", lists of the shape (layers, streams, groups of heads, rows,
            columns), and "rollout", (streams, rows, columns).
        """
        seen = self._network.describe(images.to(self._device))
        grid = token_grid(images.shape[-2:])
        in_use = list(stream_tokens(seen))
        shown = [in_use.index(name) for name in self.streams]
        attention = seen.attention[:, :, shown]
        by_group = torch.stack(
            [attention[:, :, :, heads].mean(3) for heads in self._groups.values()], 3
        )
        layers = attention_by_place(by_group, grid)
        rollout = rollout_by_place(attention_rollout(self._network, seen.attention, grid), grid)
        rollout = rollout.mean(1)[:, shown]
        return [
            {"layers": _rounded(of_layers), "rollout": _rounded(of_rollout)}
            for of_layers, of_rollout in zip(layers, rollout, strict=True)
        ]


def _rounded(maps: Tensor) -> list[Any]:
    plain: list[Any] = maps.double().cpu().numpy().round(6).tolist()
    return plain
