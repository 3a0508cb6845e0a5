"""The network for use elsewhere: the same results in operators that every runtime knows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cfmrfn.models.cfmrfn import CFMRFN
from cfmrfn.models.fusion import StreamAttention, TokenMixing, window_mask
from cfmrfn.models.ir50 import IRBlock
from cfmrfn.models.mobilefacenet import NATIVE_SIZE, ConvUnit
from cfmrfn.models.options import token_grid

# What is added to the score of a key that a query must not see. Its exponential is 0 in every
# floating type, and it is finite in half precision, which some runtimes choose by themselves.
LEFT_OUT = -65504.0


class PlainNetwork(nn.Module):
    """A trained network rewritten for inference; its weights are copies.

    Written otherwise, because it is quicker in onnxruntime and simpler everywhere:

    - windows are a product of all queries and all keys, with what lies outside the window masked:
      on the few tokens that a face has, cheaper than to gather windows.
    - batch norms are part of the convolutions before them. One that stands before a convolution
      stays: the convolution's zero padding comes after it.
    - halving an image takes the mean of 2 x 2 pixels, and reducing it to the landmark backbone's
      size is a product with two matrices.
    - with `plain_prelu`, PReLU is (1 - slope) relu(x) + slope x: onnxruntime's own is slow, and
      keeps convolutions from their quickest memory layout.

    Args:
        network: in any mode; stays as it is.
        image_size: side of the images that it is for.
        plain_prelu: whether PReLU is written as above.
    """

    reduction: Tensor  # (landmark backbone's side, image_size)
    mean: Tensor
    std: Tensor

    def __init__(self, network: CFMRFN, image_size: int, *, plain_prelu: bool) -> None:
        super().__init__()
        network = copy.deepcopy(network).eval().requires_grad_(False)
        self.has_landmarks = (
            network.landmark_backbone is not None and network.landmark_backbone.is_trained
        )
        if network.image_backbone is not None:
            network.image_backbone.output_layer = nn.Sequential()  # the stored one never runs
        prelu = PlainPReLU if plain_prelu else _as_it_is
        _replace(
            network,
            {
                StreamAttention: partial(
                    MaskedAttention, grid=token_grid((image_size, image_size)), masks={}
                ),
                TokenMixing: PlainMixing,
                IRBlock: PlainBlock,
                ConvUnit: lambda unit: nn.Sequential(
                    fuse_conv_bn_eval(unit.conv, unit.bn), unit.prelu
                ),
            },
        )
        _replace(network, {nn.Sequential: _fold_norms})
        _replace(network, {nn.PReLU: prelu})
        self.network = network
        self.image_size = image_size
        if self.has_landmarks:
            self.register_buffer("reduction", _antialiased(image_size, NATIVE_SIZE))
            mean, std = torch.tensor([IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD])
            self.register_buffer("mean", mean.view(3, 1, 1))
            self.register_buffer("std", std.view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, and landmarks where their stream is trained.

        Args:
            images: (batch, 3, image_size, image_size), as the network takes them.

        Returns:
            (batch, num_classes), or it and (batch, 68, 2), x and y in pixels.
        """
        network = self.network
        half = network.luma(F.avg_pool2d(images, 2))
        streams = []
        if network.image_backbone is not None:
            streams.append(network.to_tokens(network.image_backbone(half)))
        if network.landmark_backbone is not None:
            features = network.landmark_backbone.forward_features(half)
            streams.append(features.permute(0, 2, 3, 1))
        logits: Tensor = network.forward_head(network.encode(streams))
        if not self.has_landmarks:
            return logits
        assert network.landmark_backbone is not None
        face = network.luma(self.reduction @ images @ self.reduction.T)
        face = face * self.std + self.mean
        return logits, network.landmark_backbone(face) * self.image_size


class FromPixels(nn.Module):
    """A plain network with normalisation and softmax inside.

    Args:
        network: what follows the normalisation.
        mean, std: per channel in the network's order.
        color: "RGB" or "BGR", the order that the network sees.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: PlainNetwork, mean: Sequence[float], std: Sequence[float], color: str
    ) -> None:
        super().__init__()
        self.network = network
        self.reverse = color == "BGR"
        std_of_pixels = 255 * torch.tensor(std).view(3, 1, 1)
        self.register_buffer("scale", 1 / std_of_pixels)
        self.register_buffer("shift", -255 * torch.tensor(mean).view(3, 1, 1) / std_of_pixels)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Probabilities, and landmarks where their stream is trained.

        Args:
            images: (batch, height, width, 3), RGB, uint8.

        Returns:
            (batch, num_classes), or it and (batch, 68, 2), x and y in pixels.
        """
        pixels = images.permute(0, 3, 1, 2).float()
        if self.reverse:
            pixels = pixels.flip(1)
        results = self.network(pixels * self.scale + self.shift)
        if isinstance(results, Tensor):
            return results.softmax(1)
        return results[0].softmax(1), results[1]


class MaskedAttention(nn.Module):
    """The attention of a stream, all tokens by all tokens under a mask.

    With "zeros" padding one more key and value, both zero, stand for all taps beyond the border of
    a window: together they count as often as there are of them.

    Args:
        attention: whose weights are taken.
        grid: (height, width) of the token map.
        masks: of other layers, by what they depend on; equal ones are shared.
    """

    def __init__(
        self, attention: StreamAttention, *, grid: tuple[int, int], masks: dict[Any, Tensor]
    ) -> None:
        super().__init__()
        self.q, self.kv, self.proj = attention.q, attention.kv, attention.proj
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.scale = attention.scale
        self.pads = attention.padding_mode == "zeros"
        self.tokens = math.prod(grid)
        key = (attention.kernel_size, attention.dilation, attention.padding_mode)
        if key not in masks:
            window = window_mask(*grid, attention.kernel_size, attention.dilation)
            mask = torch.zeros(window.shape).masked_fill(~window, LEFT_OUT)
            if self.pads:
                beyond = math.prod(attention.kernel_size) - window.sum(-1, keepdim=True)
                mask = torch.cat([mask, beyond.log().clamp(min=LEFT_OUT)], -1)
            masks[key] = mask
        self.register_buffer("mask", masks[key])  # (heads, tokens, tokens [+ 1])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """See `StreamAttention`; (batch, height, width, dim) each."""
        query = (self.q(x) * self.scale).reshape(-1, self.tokens, self.num_heads, self.head_dim)
        packed = self.kv(context).flatten(1, 2)
        if self.pads:
            packed = F.pad(packed, (0, 0, 0, 1))
        packed = packed.unflatten(-1, (2, self.num_heads, self.head_dim))
        key, value = packed[:, :, 0], packed[:, :, 1]  # (batch, tokens [+ 1], heads, head_dim)
        scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) + self.mask
        out = scores.softmax(-1) @ value.transpose(1, 2)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class PlainMixing(nn.Module):
    """`TokenMixing` on maps of the size that it is made for."""

    def __init__(self, mixing: TokenMixing) -> None:
        super().__init__()
        self.num_streams = mixing.num_streams
        self.height, self.width = mixing.grid
        self.weight, self.bias = mixing.weight, mixing.bias

    def forward(self, streams: Sequence[Tensor]) -> Sequence[Tensor]:
        """See `TokenMixing`."""
        tokens = torch.cat([stream.flatten(1, 2) for stream in streams], 1)
        mixed = self.weight @ tokens + self.bias.unsqueeze(1)
        return [
            part.unflatten(1, (self.height, self.width))
            for part in mixed.chunk(self.num_streams, 1)
        ]


class PlainBlock(nn.Module):
    """`IRBlock`, its shortcut's stride in the convolution."""

    def __init__(self, block: IRBlock) -> None:
        super().__init__()
        self.res_layer = block.res_layer
        self.shortcut: nn.Module = nn.Identity()
        if isinstance(block.shortcut_layer, nn.Sequential):
            convolution: Any = block.shortcut_layer[0]
            convolution.stride = (block.stride, block.stride)
            self.shortcut = block.shortcut_layer
        elif block.stride > 1:
            self.shortcut = nn.MaxPool2d(1, block.stride)

    def forward(self, x: Tensor) -> Tensor:
        """See `IRBlock`."""
        return self.res_layer(x) + self.shortcut(x)


class PlainPReLU(nn.Module):
    """(1 - slope) relu(x) + slope x, with a slope per channel of a map."""

    slope: Tensor
    rest: Tensor

    def __init__(self, prelu: nn.PReLU) -> None:
        super().__init__()
        slope = prelu.weight.view(-1, 1, 1)
        self.register_buffer("slope", slope)
        self.register_buffer("rest", 1 - slope)

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.PReLU`."""
        return x.relu() * self.rest + x * self.slope


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


def _fold_norms(layers: nn.Sequential) -> nn.Sequential:
    """The same with each batch norm that follows a convolution as part of it."""
    folded: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d) and folded and isinstance(folded[-1], nn.Conv2d):
            folded[-1] = fuse_conv_bn_eval(folded[-1], layer)
        else:
            folded.append(layer)
    return nn.Sequential(*folded)


def _replace(module: nn.Module, by_type: dict[type, Callable[[Any], nn.Module]]) -> None:
    """Replaces the modules of these types within `module`; what is inside one comes first."""
    for name, child in module.named_children():
        _replace(child, by_type)
        if type(child) in by_type:
            setattr(module, name, by_type[type(child)](child))


def _antialiased(source: int, target: int) -> Tensor:
    """Antialiased bilinear interpolation of one side, a matrix (target, source)."""
    unit = torch.eye(source)[None, None]
    return F.interpolate(unit, size=(target, source), mode="bilinear", antialias=True)[0, 0]
