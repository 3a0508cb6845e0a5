"""What a network looks at: attention by place, its rollout, receptive fields, class evidence.

Places are the tokens of the map: row by row, index row * columns + column. Streams are named
"expression" and "landmark"; those in use stand in the order of `Description.attention`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from cfmrfn.checkpoint import About
from cfmrfn.models import CFMRFN, Description
from cfmrfn.models.cfmrfn import KERNEL_SIZE
from cfmrfn.models.fusion import FusionLayer, StreamBlock, TokenMixing, window_mask
from cfmrfn.models.options import token_grid

NOT_REACHED = -1


@dataclass(frozen=True)
class HeadGroup:
    """The heads that share a window.

    Attributes:
        dilation: of their window, in tokens; None: they attend to all tokens.
        heads: their indices, from 0.
    """

    dilation: int | None
    heads: tuple[int, ...]

    @property
    def span(self) -> int | None:
        """Side of their window in tokens; None: the whole map."""
        return None if self.dilation is None else (KERNEL_SIZE - 1) * self.dilation + 1


def head_groups(network: CFMRFN) -> list[HeadGroup]:
    """The groups of heads that share a dilation, by dilation; one group with global attention."""
    if network.head_dilations is None:
        block = cast(StreamBlock, cast(FusionLayer, network.layers[0]).blocks[0])
        return [HeadGroup(None, tuple(range(block.attention.num_heads)))]
    members: dict[int, list[int]] = {}
    for head, dilation in enumerate(network.head_dilations):
        members.setdefault(dilation, []).append(head)
    return [HeadGroup(dilation, tuple(members[dilation])) for dilation in sorted(members)]


def window_of(group: HeadGroup, grid: tuple[int, int]) -> Tensor:
    """Whether each place is in the window of each query: (tokens, tokens), bool, query by key."""
    tokens = grid[0] * grid[1]
    if group.dilation is None:
        return torch.ones(tokens, tokens, dtype=torch.bool)
    dilation = (group.dilation, group.dilation)
    return window_mask(*grid, (KERNEL_SIZE, KERNEL_SIZE), [dilation])[0]


def receptive_field(groups: Sequence[HeadGroup], grid: tuple[int, int], depth: int) -> Tensor:
    """The number of layers after which each token depends on each place, by attention alone.

    A token keeps itself (the residual) and adds what the windows of `groups` hold, layer after
    layer. With cross fusion the streams take turns to query, but always at the same place, so the
    places are the same in both. Windows decide this, not weights. What is left out: token mixing,
    where a network has it, can bring any place to any other within one layer; and the backbones
    give each token more of the image than its own patch.

    Args:
        groups: whose windows count: one group for itself, or all.
        grid: (rows, columns) of the tokens.
        depth: encoder layers.

    Returns:
        (tokens, tokens), int64, query by place: 0 the token itself, 1 to `depth`, or `NOT_REACHED`.
    """
    window = torch.stack([window_of(group, grid) for group in groups]).any(0)
    reached = torch.eye(len(window), dtype=torch.bool)
    layers = torch.where(reached, 0, NOT_REACHED)
    for layer in range(1, depth + 1):
        grown = reached | (window.float() @ reached.float() > 0)
        layers[grown & ~reached] = layer
        reached = grown
    return layers


def stream_tokens(description: Description) -> dict[str, Tensor]:
    """The streams in use, in the order of `Description.attention`, and their final tokens."""
    tokens = {"expression": description.image_tokens, "landmark": description.landmark_tokens}
    return {name: found for name, found in tokens.items() if found is not None}


def attention_by_place(
    attention: Tensor, grid: tuple[int, int], token: tuple[int, int] | None = None
) -> Tensor:
    """The weight that places are given.

    Args:
        attention: (..., tokens, tokens), from query to key.
        grid: (rows, columns) of the tokens.
        token: row and column of one query. None: the mean over the queries whose window holds the
            place, so that places near the border, which are in fewer windows, compare with others.

    Returns:
        (..., rows, columns)
    """
    if token is None:
        weights = attention.sum(-2) / (attention > 0).sum(-2).clamp(min=1)
    else:
        weights = attention[..., token[0] * grid[1] + token[1], :]
    return weights.unflatten(-1, grid)


def token_shares(layer: FusionLayer, attention: Tensor, grid: tuple[int, int]) -> Tensor:
    """What each token is made of after one layer, as shares of the tokens that enter it.

    Args:
        layer: of the encoder.
        attention: (batch, streams, heads, tokens, tokens), its weights.
        grid: (rows, columns) of the tokens.

    Returns:
        (batch, streams * tokens, streams * tokens), from the token after the layer to the tokens
        before it, stream after stream. Rows sum to 1.
    """
    mean = attention.mean(2)  # (batch, streams, tokens, tokens)
    kept = mean + torch.eye(mean.shape[-1]).to(mean)
    kept = kept / kept.sum(-1, keepdim=True)
    attended = torch.stack([torch.block_diag(*streams) for streams in kept])
    mixing = mixing_shares(layer, grid)
    return attended if mixing is None else mixing.to(attended) @ attended


@torch.no_grad()
def mixing_shares(layer: FusionLayer, grid: tuple[int, int]) -> Tensor | None:
    """Shares of the tokens in each mixed token, (streams * tokens, streams * tokens).

    They are the sizes of the mixing's weights, whatever their sign, in each row to the sum 1. None
    where the layer does not mix.
    """
    if not layer.mixing:
        return None
    mixings = cast(Iterable[TokenMixing], layer.mixing)
    weights = [mixing.weights_for(grid)[0].abs() for mixing in mixings]
    shares = torch.block_diag(*weights)
    return shares / shares.sum(-1, keepdim=True)


def attention_rollout(network: CFMRFN, attention: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attention rollout over the layers (Abnar and Zuidema 2020), for two streams.

    The tokens of both streams are one row of sources. In layer l a token of stream s becomes

        x_s,i + sum_j A_s,ij v(x_s,j),    A_s the mean of the heads' weights,

    so it is taken to be made of itself in the share 1 / (1 + sum_j A_s,ij) and of the tokens j of
    its own stream in the shares A_s,ij / (1 + sum_j A_s,ij). Where no window is beyond the map this
    is the paper's 0.5 I + 0.5 A. Weight that falls on the zero padding brings nothing, since a
    padded value is zero: it is no source, and leaves the token with more of itself. The other
    stream's query decides the weights but gives no content, so these shares, B_l, stay within a
    stream. Token mixing, a linear map across the tokens of both streams, follows as M_l, the sizes
    of its weights with rows scaled to 1 (the identity without mixing). The rollout is

        M_L B_L ... M_1 B_1.

    Limits: it follows the positions, not the content. Values, projections, norms and the MLP are
    taken to be alike for all tokens; heads count equally; signs in token mixing are lost; what a
    stream owes the other by its queries does not appear; and what enters the encoder has already
    seen more of the image than its patch. It shows where information can have come from and in what
    proportion the weights passed it on, and not what the class depends on: see `class_evidence`.

    Args:
        network: whose token mixing counts.
        attention: (batch, depth, streams, heads, tokens, tokens), as of `Description`.
        grid: (rows, columns) of the tokens.

    Returns:
        (batch, streams * tokens, streams * tokens), from the token after the last layer to the
        tokens that entered the first. Rows sum to 1.
    """
    total: Tensor | None = None
    for index, layer in enumerate(network.layers):
        shares = token_shares(cast(FusionLayer, layer), attention[:, index], grid)
        total = shares if total is None else shares @ total
    assert total is not None
    return total


def rollout_by_place(rollout: Tensor, grid: tuple[int, int]) -> Tensor:
    """The shares of the entering tokens in each place of the map that the classifier reads.

    That map is the sum of the streams (eq. 18), so the tokens of a place count equally; and its
    mean over the places is what the classifier takes in, as is that of what is returned here.

    Args:
        rollout: (batch, streams * tokens, streams * tokens), as of `attention_rollout`.
        grid: (rows, columns) of the tokens.

    Returns:
        (batch, tokens, streams, rows, columns), in all 1 for each place of each image.
    """
    by_stream = rollout.unflatten(1, (-1, grid[0] * grid[1]))
    return by_stream.mean(1).unflatten(-1, (-1, *grid))


@torch.no_grad()
def class_evidence(network: CFMRFN, description: Description, classes: Tensor) -> dict[str, Tensor]:
    """What each place of each stream adds to the logit of a class.

    The classifier is linear in the normalised sum of the streams (eq. 18) once its gate and that
    norm's scale are given. So the logit is, exactly, the sum over the streams of the mean over the
    places of what is returned here, plus a part from biases.

    Args:
        network: in evaluation mode.
        description: of a batch of images.
        classes: (batch,), an index for each image.

    Returns:
        Stream -> (batch, rows, columns).
    """
    streams = stream_tokens(description)
    fused = torch.stack(list(streams.values())).sum(0)
    gate = network.gate(network.norm(fused).mean((1, 2)))
    direction = cast(torch.nn.Linear, network.head).weight[classes] * gate * network.norm.weight
    scale = (fused.var(-1, correction=0) + network.norm.eps).sqrt()

    def evidence(tokens: Tensor) -> Tensor:
        centred = tokens - tokens.mean(-1, keepdim=True)
        return torch.einsum("bhwc,bc->bhw", centred, direction) / scale

    return {name: evidence(tokens) for name, tokens in streams.items()}


@dataclass(frozen=True)
class FaceExplanation:
    """A face, and what a network makes of it.

    Maps by stream leave out a stream whose tokens are no places on the face ("poster_view").

    Attributes:
        name: of the file, as shown to the user, and which of its faces it is.
        label: true class, where it is known.
        face: (height, width, 3), RGB in 0..1, as the network sees it.
        probabilities: (classes,).
        landmarks: (68, 2), x and y in pixels of the face; None where the network has no trained
            landmark stream.
        attention: by stream, (layers, heads, tokens, tokens), query by key.
        rollout: by stream, (tokens, rows, columns), shares in each place after the encoder.
        evidence: by stream, (rows, columns), for the predicted class.
        logit: of the predicted class.
    """

    name: str
    label: int | None
    face: np.ndarray
    probabilities: np.ndarray
    landmarks: np.ndarray | None
    attention: Mapping[str, np.ndarray]
    rollout: Mapping[str, np.ndarray]
    evidence: Mapping[str, np.ndarray]
    logit: float

    @property
    def predicted(self) -> int:
        """The most probable class."""
        return int(self.probabilities.argmax())


class ChosenFace(NamedTuple):
    """A face to explain: `name` and `label` as in `FaceExplanation`, and its image.

    Attributes:
        image: (3, size, size), as the network takes it.
    """

    name: str
    label: int | None
    image: Tensor


def explain_faces(
    network: CFMRFN, about: About, faces: Sequence[ChosenFace], batch_size: int = 8
) -> list[FaceExplanation]:
    """What the network makes of each face.

    Args:
        network, about: as `checkpoint.load_network` returns them.
        faces: all of one size.
        batch_size: faces at a time.

    Returns:
        One per face, in order.
    """
    explained: list[FaceExplanation] = []
    for first in range(0, len(faces), batch_size):
        explained += _explain(network, about, faces[first : first + batch_size])
    return explained


def _explain(
    network: CFMRFN, about: About, faces: Sequence[ChosenFace]
) -> Iterator[FaceExplanation]:
    images = torch.stack([face.image for face in faces])
    grid = token_grid(images.shape[-2:])
    seen = network.describe(images.to(network.norm.weight.device))
    logits, predicted = seen.logits.max(1)
    rollout = rollout_by_place(attention_rollout(network, seen.attention, grid), grid)
    evidence = class_evidence(network, seen, predicted)
    backbone = network.landmark_backbone
    landmarks = seen.landmarks if backbone is not None and backbone.is_trained else None
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (about.mean, about.std))
    shown = [
        (index, name)
        for index, name in enumerate(evidence)
        if (name, network.tokens) != ("expression", "poster_view")
    ]
    for index, face in enumerate(faces):
        pixels = (face.image * std + mean).clamp(0, 1)
        yield FaceExplanation(
            name=face.name,
            label=face.label,
            face=_array((pixels.flip(0) if about.color == "BGR" else pixels).permute(1, 2, 0)),
            probabilities=_array(seen.logits[index].softmax(0)),
            landmarks=None if landmarks is None else _array(landmarks[index]),
            attention={name: _array(seen.attention[index, :, stream]) for stream, name in shown},
            rollout={name: _array(rollout[index, :, stream]) for stream, name in shown},
            evidence={name: _array(evidence[name][index]) for _, name in shown},
            logit=logits[index].item(),
        )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
