"""The cross-fusion multi-level receptive field network."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cfmrfn.checks import is_number
from cfmrfn.models.fusion import (
    NORM_EPS,
    FusionLayer,
    GlobalAttention,
    StreamAttention,
    StreamBlock,
    at_least_float32,
)
from cfmrfn.models.ir50 import IRBackbone
from cfmrfn.models.mobilefacenet import NATIVE_SIZE, MobileFaceNet
from cfmrfn.models.options import (
    PADDING_MODES,
    STREAMS,
    TOKENS,
    check_choice,
    check_three,
    check_whole,
    choose_dilations,
    image_sides,
    token_grid,
    why_of_another,
)
from cfmrfn.models.resizing import resized_positions

LUMA = (0.299, 0.587, 0.114)  # what red, green and blue add to it, ITU-R BT.601

KERNEL_SIZE = 3  # the paper's window; dilation r makes its reach 2 r + 1

# What `CFMRFN.freeze` takes -> the children that are frozen. The classifier always trains.
FREEZABLE = {
    "expression-backbone": ("image_backbone",),
    "encoder": ("layers", "norm"),
    "all-but-head": ("image_backbone", "image_embed", "position", "layers", "norm", "gate"),
}


class Description(NamedTuple):
    """What `CFMRFN.describe` sees in a batch of images; None where a stream is switched off.

    Attributes:
        logits: (batch, num_classes).
        pooled: (batch, embed_dim), what the classifier reads.
        landmarks: (batch, 68, 2), x and y in pixels of the input image.
        image_tokens, landmark_tokens: (batch, height, width, embed_dim), after the encoder.
        attention: (batch, depth, streams, heads, height * width, height * width), query by key. The
            streams are those in use, expression first: keys are the stream's own tokens, queries,
            with cross fusion, the other's.
    """

    logits: Tensor
    pooled: Tensor
    landmarks: Tensor | None
    image_tokens: Tensor | None
    landmark_tokens: Tensor | None
    attention: Tensor


class Luma(nn.Module):
    """Images as if they were grey: each channel the weighted sum of all, ITU-R BT.601's luma.

    Both images are normalised by the mean and standard deviation of ImageNet, whose channels
    differ, so that the three channels of a grey image do too. A grey image stays as it is.

    Its weights are part of a state dict, though nothing learns them: they tell that the others are
    of a network that saw nothing but grey.
    """

    weights: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor([IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD])
        parts = torch.tensor(LUMA)
        constants = {"weights": parts * std, "scale": 1 / std, "shift": (parts @ mean - mean) / std}
        for name, values in constants.items():
            self.register_buffer(name, values.view(3, 1, 1), persistent=name == "weights")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width), the same"""
        return (x * self.weights).sum(1, keepdim=True) * self.scale + self.shift

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        # Former versions saved none; those of another value would be another function.
        state_dict[f"{prefix}weights"] = self.weights
        super()._load_from_state_dict(state_dict, prefix, *others)


class CFMRFN(nn.Module):
    """Facial expressions from an image stream and a frozen landmark stream that query each other.

    Input: (batch, 3, height, width), normalised by the mean and standard deviation of ImageNet;
    height and width multiples of 32, by default 224. Both backbones see it at half that size.

    The landmark backbone is never trained: it has no gradients and stays in eval mode.

    Convolutions run channels-last; `to(memory_format=torch.channels_last)` saves them the way of
    their weights there, up to a tenth of the time of one image on a CPU.

    Args:
        num_classes: size of the logits; 0: pooled features instead.
        img_size: side, or (height, width), of the images that positions and token mixing are made
            for. Other sizes work: both are interpolated.
        in_chans: must be 3; it is here because timm passes it.
        gray: see only how light images are, `Luma`. For a network that learnt from grey images
            and is used on photographs.
        embed_dim, depth, num_heads, mlp_ratio: of the encoder.
        tokens: how the image backbone's map becomes tokens. "spatial": 2 x 2 pixels each.
            "poster_view": the map's memory cut into equal pieces, as POSTER does; such tokens are
            groups of channels that lie nowhere on the face.
        attention: "dilated": 3 x 3 windows with a dilation per head. "window": all at dilation 1.
            "global": all tokens.
        head_dilations: dilation of each head; None: the paper's best allocation, a quarter of the
            heads at 1 and the others shared by 2 and 3.
        padding_mode: what a tap off the map is, "zeros" or "masked".
        q_proj: project the queries, eq. 1. The paper's parameter counts say that it did not.
        token_mixing: a 1 x 1 convolution across tokens ends each layer. It is in the counts only.
        cross_fusion: the streams query each other; otherwise two separate encoders, summed.
        streams: "both", or only "expression" or "landmark", which then queries itself.
        pre_norm: layer norm before attention; eq. 14 shows none.
        drop_path_rate: stochastic depth of the last layer; it grows linearly from 0 at the first.
        drop_rate: dropout of the pooled features, before the classifier.
        global_pool: must be "avg"; it is here because timm's users pass it.
        backend: of sdwa; None: the best that fits.
        image_widths, image_blocks: channels and blocks of the image backbone's three stages.
        image_early_stride: halve the map in that backbone's stem, before its first stage.
        stored_embedding: hold the never used embedding layer of the public IR-50 checkpoint.
        landmark_width, landmark_blocks: of the landmark backbone.

    Attributes:
        head_dilations: dilation of each head; None with global attention.

    Raises:
        ValueError: an option that is not legal, or two that contradict each other.
    """

    def __init__(
        self,
        num_classes: int = 7,
        img_size: int | tuple[int, int] = 224,
        *,
        in_chans: int = 3,
        gray: bool = False,
        embed_dim: int = 512,
        depth: int = 6,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        tokens: str = "spatial",
        attention: str = "dilated",
        head_dilations: Sequence[int] | None = None,
        padding_mode: str = "zeros",
        q_proj: bool = False,
        token_mixing: bool = True,
        cross_fusion: bool = True,
        streams: str = "both",
        pre_norm: bool = True,
        drop_path_rate: float = 0.1,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        backend: str | None = None,
        image_widths: Sequence[int] = (64, 128, 256),
        image_blocks: Sequence[int] = (3, 4, 14),
        image_early_stride: bool = False,
        stored_embedding: bool = True,
        landmark_width: int = 64,
        landmark_blocks: Sequence[int] = (4, 6, 2),
    ) -> None:
        super().__init__()
        check_choice("tokens", tokens, TOKENS)
        check_choice("streams", streams, STREAMS)
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        if in_chans != 3:
            raise ValueError(f"in_chans must be 3, got {in_chans}")
        check_whole("num_classes", num_classes, 0)
        for name, number in (("embed_dim", embed_dim), ("depth", depth), ("num_heads", num_heads)):
            check_whole(name, number, 1)
        if embed_dim % num_heads:
            raise ValueError(
                f"num_heads must divide embed_dim, got {num_heads} heads for {embed_dim} channels"
            )
        if not (is_number(mlp_ratio) and mlp_ratio > 0):
            raise ValueError(f"mlp_ratio must be a number above 0, got {mlp_ratio!r}")
        for name, rate in (("drop_path_rate", drop_path_rate), ("drop_rate", drop_rate)):
            if not (is_number(rate) and 0 <= rate <= 1):
                raise ValueError(f"{name} must be 0 to 1, got {rate!r}")
        check_choice("global_pool", global_pool, ("avg",))
        check_three("image_widths", image_widths, 1)
        check_three("image_blocks", image_blocks, 1)
        check_whole("landmark_width", landmark_width, 1)
        check_three("landmark_blocks", landmark_blocks, 0)
        self.head_dilations = choose_dilations(attention, head_dilations, num_heads)
        grid = token_grid(image_sides(img_size))

        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.tokens = tokens
        self.attention = attention
        self.luma: nn.Module = Luma() if gray else nn.Identity()
        self._frozen = {"landmark_backbone"}
        self.image_backbone: IRBackbone | None = None
        self.landmark_backbone: MobileFaceNet | None = None
        if streams != "landmark":
            self.image_backbone = IRBackbone(
                image_widths,
                image_blocks,
                early_stride=image_early_stride,
                embedding=stored_embedding,
            )
            self.image_embed = nn.Linear(4 * self.image_backbone.out_channels, embed_dim)
            self.position = nn.Parameter(torch.empty(*grid, embed_dim))
        if streams != "expression":
            self.landmark_backbone = MobileFaceNet(landmark_width, landmark_blocks, embed_dim)
            self.landmark_backbone.requires_grad_(False)

        def make_attention() -> StreamAttention | GlobalAttention:
            if self.head_dilations is None:
                return GlobalAttention(embed_dim, num_heads, q_proj=q_proj)
            return StreamAttention(
                embed_dim,
                num_heads,
                KERNEL_SIZE,
                self.head_dilations,
                q_proj=q_proj,
                padding_mode=padding_mode,
                backend=backend,
            )

        def make_layer(index: int) -> FusionLayer:
            blocks = [
                StreamBlock(
                    embed_dim,
                    mlp_ratio,
                    make_attention(),
                    pre_norm=pre_norm,
                    drop_path=drop_path_rate * index / max(depth - 1, 1),
                )
                for _ in range(2 if streams == "both" else 1)
            ]
            return FusionLayer(
                blocks, cross_fusion=cross_fusion, mixing_grid=grid if token_mixing else None
            )

        self.layers = nn.ModuleList(make_layer(index) for index in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.gate = nn.Sequential(
            nn.Linear(embed_dim, embed_dim),
            nn.ReLU(),
            nn.Linear(embed_dim, embed_dim),
            nn.Sigmoid(),
        )
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.grad_checkpointing = False

        self._initialise()
        # DistributedDataParallel waits for a gradient of every parameter that is not listed here.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_parameters() if is_never_run(name)
        ]
        self.train()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and "backbone" not in name:
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.image_backbone is not None:
            nn.init.trunc_normal_(self.position, std=0.02)

    def train(self, mode: bool = True) -> CFMRFN:
        """As in any module, but the landmark backbone and what is frozen stay in eval mode."""
        super().train(mode)
        for name, child in self.named_children():
            if name in self._frozen:
                child.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> CFMRFN:
        """As of any module, but the landmark backbone and what is frozen are never trained."""
        super().requires_grad_(requires_grad)
        for name, child in self.named_children():
            if name in self._frozen:
                child.requires_grad_(False)
        return self

    def freeze(self, parts: Iterable[str]) -> None:
        """Ends the training of parts, for good.

        They have no gradients and stay in eval mode: batch statistics are used as they are, and
        there is no stochastic depth.

        Args:
            parts: "expression-backbone"; "encoder", the layers and the norm after them;
                "all-but-head", which leaves the last linear layer.

        Raises:
            ValueError: there is no such part in this network, or `parts` is no list.
        """
        if isinstance(parts, str) or not isinstance(parts, Iterable):
            raise ValueError(f'freeze must get a list of parts, as in ["encoder"]; got {parts!r}')
        for part in parts:
            check_choice("freeze", part, tuple(FREEZABLE))
            if part == "expression-backbone" and self.image_backbone is None:
                raise ValueError(
                    'there is no expression backbone to freeze with streams="landmark"'
                )
            self._frozen.update(FREEZABLE[part])
        for name, parameter in self.named_parameters():
            if name.partition(".")[0] in self._frozen:
                parameter.requires_grad_(False)
        self.train(self.training)

    # Streams

    def image_tokens(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, height / 32, width / 32, embed_dim)"""
        if self.image_backbone is None:
            raise ValueError('there are no image tokens with streams="landmark"')
        token_grid(x.shape[-2:])
        return self.to_tokens(self.image_backbone(self._half(x)))

    def _half(self, x: Tensor) -> Tensor:
        """What backbones see: half the sides, each the mean of 2 x 2 pixels, channels-last"""
        half = F.interpolate(x, size=(x.shape[2] // 2, x.shape[3] // 2), mode="bilinear")
        # as `contiguous(memory_format=torch.channels_last)`, which vmap does not have
        return cast(Tensor, self.luma(half)).movedim(1, -1).contiguous().movedim(-1, 1)

    def to_tokens(self, features: Tensor) -> Tensor:
        """(batch, channels, 2 height, 2 width) -> (batch, height, width, embed_dim)

        Args:
            features: what the image backbone makes of a batch of half images.
        """
        height, width = features.shape[2] // 2, features.shape[3] // 2
        if self.tokens == "poster_view":
            pieces = features.reshape(features.shape[0], height, width, -1)  # len() is no symbol
        else:
            # (batch, height, 2, width, 2, channels): a view of the channels-last map
            pieces = features.permute(0, 2, 3, 1).unflatten(2, (width, 2)).unflatten(1, (height, 2))
            pieces = pieces.transpose(2, 3).flatten(3)
        return self.image_embed(pieces) + resized_positions(self.position, (height, width))

    @torch.no_grad()
    def landmark_features(self, x: Tensor) -> Tensor | None:
        """The frozen stream's part of the network, to be computed once and used in several passes.

        Returns:
            (batch, embed_dim, height / 32, width / 32); None where the landmark stream is off.
        """
        if self.landmark_backbone is None:
            return None
        token_grid(x.shape[-2:])
        return self.landmark_backbone.forward_features(self._half(x))

    @torch.no_grad()
    def landmarks(self, x: Tensor) -> Tensor | None:
        """(batch, 3, height, width) -> (batch, 68, 2), x and y in pixels of that image.

        The public landmark weights were trained on 112 x 112 images in 0..1: they get such images
        here, whereas the tokens come, as in POSTER, from the network's normalised input.
        None where the landmark stream is off.
        """
        if self.landmark_backbone is None:
            return None
        mean, std = (
            x.new_tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        pixels = self.luma(x) * std + mean
        face = F.interpolate(
            pixels.to(at_least_float32(x.dtype)),  # a CPU antialiases in no less
            size=(NATIVE_SIZE, NATIVE_SIZE),
            mode="bilinear",
            antialias=True,
        ).to(x.dtype)
        return self.landmark_backbone(face) * x.new_tensor([x.shape[-1], x.shape[-2]])

    def _streams(self, x: Tensor, landmark_features: Tensor | None) -> list[Tensor]:
        """The token maps that enter the encoder, (batch, height, width, embed_dim) each."""
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"x must be (batch, 3, height, width), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x must be floats, normalised as ImageNet, got {x.dtype}")
        streams = []
        if self.image_backbone is not None:
            streams.append(self.image_tokens(x))
        if self.landmark_backbone is not None:
            features = self.landmark_features(x) if landmark_features is None else landmark_features
            assert features is not None
            streams.append(features.permute(0, 2, 3, 1))
        elif landmark_features is not None:
            raise ValueError('landmark_features must be None with streams="expression"')
        return streams

    # Classification, with the methods timm's users know

    def forward_features(self, x: Tensor, landmark_features: Tensor | None = None) -> Tensor:
        """Fused token map, eq. 18: (batch, 3, H, W) -> (batch, H / 32, W / 32, embed_dim)"""
        return self.encode(self._streams(x, landmark_features))

    def encode(self, streams: Sequence[Tensor]) -> Tensor:
        """The fused token map of the streams that enter the encoder, all of one shape."""
        for layer in self.layers:
            if self.grad_checkpointing and torch.is_grad_enabled():
                streams = checkpoint(layer, streams, use_reentrant=False)
            else:
                streams = layer(streams)
        return self._fuse(streams)

    def _fuse(self, streams: Sequence[Tensor]) -> Tensor:
        return self.norm(sum(streams[1:], start=streams[0]))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Fused token map -> logits (batch, num_classes), or pooled features (batch, embed_dim)"""
        pooled = x.mean((1, 2))
        pooled = pooled * self.gate(pooled)
        return pooled if pre_logits else self.head(self.head_drop(pooled))

    def forward(self, x: Tensor, landmark_features: Tensor | None = None) -> Tensor:
        """Logits of a batch of images.

        Args:
            x: (batch, 3, height, width).
            landmark_features: what `landmark_features(x)` returned, to save computing it again.

        Returns:
            (batch, num_classes)

        Raises:
            ValueError: x of another shape, or an image size that gives no token grid.
            TypeError: x of integers.
        """
        return self.forward_head(self.forward_features(x, landmark_features))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer for `num_classes` classes; 0: pooled features instead of logits.

        global_pool: None or "avg", which it is.

        Raises:
            ValueError: an argument is not legal.
        """
        check_choice("global_pool", global_pool or "avg", ("avg",))
        check_whole("num_classes", num_classes, 0)
        like = self.position if self.image_backbone is not None else self.norm.weight
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.embed_dim, num_classes).to(like)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Encoder layers are computed again in the backward pass, which takes less memory."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers from input to output for timm's layer-wise learning rates, as regular expressions.

        coarse: the backbone's blocks are one layer.
        """
        return {
            "stem": r"landmark_backbone\.|image_backbone\.(?!body\.)",
            "backbone": r"image_backbone\.body\." + ("" if coarse else r"(\d+)"),
            "tokens": r"image_embed\.|position$",
            # the large number, by timm's convention: of the layer before
            "encoder": [(r"layers\.(\d+)", None), (r"norm\.|gate\.", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that have more than one axis and should not decay."""
        return {"position"} if self.image_backbone is not None else set()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As of every module; weights of a network with `gray` make this one such a network.

        Raises:
            RuntimeError: the weights do not fit; where they are of a network built otherwise, the
                message begins with the options that differ.

        Warns:
            UserWarning: this network becomes one with `gray`.
        """
        if "luma.weights" in state_dict and not isinstance(self.luma, Luma):
            warnings.warn(
                "the weights are of a network with gray=True: this one too sees only how light "
                "images are now; create it with gray=True",
                UserWarning,
                stacklevel=2,
            )
            self.luma = Luma().to(self.norm.weight.device, self.norm.weight.dtype)
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            if why := why_of_another(state_dict, self):
                raise RuntimeError(f"{why}. {error}") from None
            raise

    @torch.no_grad()
    def describe(self, x: Tensor) -> Description:
        """Logits and what led to them, for analysis: slower than `forward`, without gradients."""
        streams = self._streams(x, None)
        attention = []
        for layer in cast(Iterable[FusionLayer], self.layers):
            attention.append(layer.attention_maps(streams))
            streams = layer(streams)
        pooled = self.forward_head(self._fuse(streams), pre_logits=True)
        return Description(
            logits=self.head(pooled),
            pooled=pooled,
            landmarks=self.landmarks(x),
            image_tokens=streams[0] if self.image_backbone is not None else None,
            landmark_tokens=streams[-1] if self.landmark_backbone is not None else None,
            attention=torch.stack(attention, 1),
        )


def is_never_run(name: str) -> bool:
    """Whether a parameter is part of the stored embedding layer, which no forward pass reads."""
    return name.startswith("image_backbone.output_layer.")
