"""The operator as a layer, and the paper's allocation of dilations to heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sdwa import reference
from sdwa.arguments import (
    as_dilation,
    as_kernel_size,
    as_scale,
    check_count,
    check_padding_mode,
    check_share,
    make_problem,
)
from sdwa.autocast import autocast_tensors
from sdwa.dilateformer import layer_weights
from sdwa.dispatch import named
from sdwa.functional import sliding_dilated_window_attention
from sdwa.problem import MAX_HEAD_DIM, Dilation, Size


def head_dilations(
    num_heads: int, standard_ratio: float, dilations: Sequence[int]
) -> tuple[int, ...]:
    """The paper's allocation of dilations to heads (section 2.3).

    `standard_ratio * num_heads` heads have dilation 1; the others are shared equally among
    `dilations`, in order.

    Args:
        num_heads: number of heads H.
        standard_ratio: share of heads at dilation 1, from 0 to 1.
        dilations: the dilations of the other heads.

    Raises:
        ValueError: a number out of range, or shares that are not whole numbers of heads.
        TypeError: an argument of the wrong type.

    Example:
        >>> head_dilations(8, 1 / 4, (2, 3))
        (1, 1, 2, 2, 2, 3, 3, 3)
    """
    check_count("num_heads", num_heads)
    check_share("standard_ratio", standard_ratio)
    if not isinstance(dilations, Sequence) or isinstance(dilations, (str, bytes)):
        raise TypeError(f"dilations must be a sequence of ints, got {dilations!r}")
    for n, dilation in enumerate(dilations):
        check_count(f"dilations[{n}]", dilation)
    standard = round(standard_ratio * num_heads)
    if abs(standard - standard_ratio * num_heads) > 1e-6:
        raise ValueError(
            f"standard_ratio must give a whole number of heads: {standard_ratio} of {num_heads} "
            f"heads is {standard_ratio * num_heads:g}"
        )
    dilated = num_heads - standard
    if dilated == 0:
        return (1,) * num_heads
    if not dilations or dilated % len(dilations):
        raise ValueError(
            f"dilations must share {dilated} heads equally, got {len(dilations)} dilations "
            f"{tuple(dilations)}"
        )
    share = dilated // len(dilations)
    return (1,) * standard + tuple(d for d in dilations for _ in range(share))


def deal_dilation(dilation: Dilation, num_heads: int) -> tuple[tuple[int, int], ...]:
    """(dilation_h, dilation_w) of each head, from one, one per head, or one per group of heads.

    A shorter list is dealt to consecutive groups of heads, as equal as possible, later groups
    taking the remainder: 8 heads and (1, 2, 3) give 1, 1, 2, 2, 2, 3, 3, 3.
    """
    if isinstance(dilation, Sequence) and 0 < len(dilation) < num_heads:
        groups = len(dilation)
        small, larger = divmod(num_heads, groups)
        sizes = [small + (group >= groups - larger) for group in range(groups)]
        dilation = [d for d, size in zip(dilation, sizes, strict=True) for _ in range(size)]
    return as_dilation(dilation, num_heads)


class SlidingDilatedWindowAttention(nn.Module):
    """Multi-head sliding dilated window attention of a map, to itself or to another.

    Query, key and value projections, the operator, and an output projection. Key and value come
    from one packed projection that the kernels read in place.

    Args:
        dim: channels of the input and the output; a multiple of num_heads.
        num_heads: number of heads, of `dim / num_heads` channels each.
        kernel_size: taps along each side of the window, odd; or (kernel_h, kernel_w).
        dilation: one for all heads, one per head, or a shorter list dealt to consecutive groups of
            heads, as equal as possible, later groups taking the remainder: 8 heads and (1, 2, 3)
            give (1, 1, 2, 2, 2, 3, 3, 3), the paper's best allocation (Table 4).
        qkv_bias: query, key and value projections have a bias.
        q_proj: project the query; False: the input's channels are the query (the paper's parameter
            count leaves no room for a projection).
        context_dim: channels of the context that key and value come from; None: dim.
        scale: factor of the scores; None: `head_dim ** -0.5`.
        relative_bias: learn a bias for each tap of each head, zero at first.
        attn_drop: dropout of the attention weights, in training. The fused kernels keep no weights,
            so a training step with attn_drop > 0 runs the reference implementation.
        proj_drop: dropout of the output.
        padding_mode: "zeros" or "masked", see `sdwa.sliding_dilated_window_attention`.
        backend: "cuda", "triton", "cpu" or "reference"; None: the best that fits.

    Raises:
        ValueError, TypeError: an argument that is not legal; the message names it.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        kernel_size: Size = 3,
        dilation: Dilation = (1, 2, 3),
        *,
        qkv_bias: bool = True,
        q_proj: bool = True,
        context_dim: int | None = None,
        scale: float | None = None,
        relative_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        padding_mode: str = "zeros",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("num_heads", num_heads)
        if dim % num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads, got {dim} and {num_heads} heads"
            )
        if dim // num_heads > MAX_HEAD_DIM:
            raise ValueError(
                f"dim must leave a head at most {MAX_HEAD_DIM} channels, got {dim} and "
                f"{num_heads} heads"
            )
        if context_dim is not None:
            check_count("context_dim", context_dim)
        check_share("attn_drop", attn_drop)
        check_share("proj_drop", proj_drop)
        check_padding_mode(padding_mode)
        if backend is not None:
            named(backend)
        if attn_drop and backend not in (None, "reference"):
            raise ValueError(
                f'attn_drop={attn_drop} needs backend=None or "reference", got {backend!r}: '
                "the fused kernels keep no attention weights to drop"
            )
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.context_dim = dim if context_dim is None else context_dim
        self.kernel_size = as_kernel_size(kernel_size)
        self.dilation = deal_dilation(dilation, num_heads)
        self.scale = as_scale(scale, self.head_dim)
        self.padding_mode = padding_mode
        self.backend = backend
        self.q = nn.Linear(dim, dim, bias=qkv_bias) if q_proj else nn.Identity()
        self.kv = nn.Linear(self.context_dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop = attn_drop
        self.proj_drop = nn.Dropout(proj_drop)
        self.relative_bias = (
            nn.Parameter(torch.zeros(num_heads, *self.kernel_size)) if relative_bias else None
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Attention of x to context, or to itself.

        Args:
            x: (batch, height, width, dim), the map that asks.
            context: (batch, height, width, context_dim), the map that is looked at; None: x.

        Returns:
            (batch, height, width, dim).

        Raises:
            TypeError: a map that is not a tensor.
            ValueError: a map of another shape, or no context where context_dim is not dim.
        """
        batch, height, width = _map_size("x", x, self.dim)
        if context is None:
            if self.context_dim != self.dim:
                raise ValueError(
                    f"x must be (batch, height, width, {self.context_dim}) to be its own context, "
                    f"got shape {tuple(x.shape)}: give a context of {self.context_dim} channels"
                )
            context = x
        elif (size := _map_size("context", context, self.context_dim)) != (batch, height, width):
            raise ValueError(
                f"context must have the batch, height and width of x, {(batch, height, width)}: "
                f"got shape {(*size, self.context_dim)}"
            )
        packed = self.kv(context).view(batch, height, width, 2, self.num_heads, self.head_dim)
        query = self.q(x)
        if query.stride(3) != 1:  # not projected, and a view of a channels-first map
            query = query.contiguous()
        query = query.view(batch, height, width, self.num_heads, self.head_dim)
        attended = self._attend(query, *packed.unbind(3))
        out: Tensor = self.proj(attended.view(batch, height, width, self.dim))
        if self.training and self.proj_drop.p:
            out = self.proj_drop(out)
        return out

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.training and self.attn_drop:
            query, key, value = autocast_tensors(query, key, value)
            problem = make_problem(
                query,
                key,
                value,
                self.kernel_size,
                self.dilation,
                self.relative_bias,
                self.scale,
                self.padding_mode,
            )
            return reference.attention(
                problem, query, key, value, self.relative_bias, dropout=self.attn_drop
            )[0]
        return sliding_dilated_window_attention(
            query,
            key,
            value,
            self.kernel_size,
            self.dilation,
            bias=self.relative_bias,
            scale=self.scale,
            padding_mode=self.padding_mode,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        steps = tuple(h if h == w else (h, w) for h, w in self.dilation)
        return (
            f"{self.dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, "
            f"dilation={steps}, padding_mode={self.padding_mode!r}"
        )

    @classmethod
    def from_dilateformer(
        cls,
        state_dict: Mapping[str, Tensor],
        num_heads: int,
        kernel_size: Size = 3,
        dilation: Dilation = (1, 2, 3),
        *,
        prefix: str = "",
        scale: float | None = None,
        backend: str | None = None,
    ) -> SlidingDilatedWindowAttention:
        """The layer with the weights of DilateFormer's `MultiDilatelocalAttention`.

        There `qkv` is a 1 x 1 convolution whose channels are query, key, value, each with its heads
        in order, and the heads are shared equally among the dilations.

        Args:
            state_dict: holds `qkv.weight`, maybe `qkv.bias`, `proj.weight` and `proj.bias`; further
                keys that do not start with prefix are left alone.
            num_heads: number of heads in all.
            kernel_size: taps along each side of the window.
            dilation: one per group of heads; num_heads must be a multiple of their number.
            prefix: of the layer's keys, such as "blocks.0.attn.".
            scale: factor of the scores; None: `head_dim ** -0.5`.
            backend: as for the layer.

        Raises:
            ValueError: keys are missing or unexpected, shapes do not fit, or the heads cannot be
                shared equally.
            TypeError: num_heads is not an int.
        """
        weights = layer_weights(state_dict, prefix)
        check_count("num_heads", num_heads)
        groups = len(dilation) if isinstance(dilation, Sequence) else 1
        if groups == 0 or num_heads % groups:
            raise ValueError(
                f"num_heads must be a multiple of the number of dilations, got {num_heads} heads "
                f"and dilations {dilation!r}"
            )
        attention = cls(
            weights["q.weight"].shape[0],
            num_heads,
            kernel_size,
            dilation,
            qkv_bias="q.bias" in weights,
            scale=scale,
            backend=backend,
        )
        attention.load_state_dict(weights)
        return attention


def _map_size(name: str, x: Tensor, channels: int) -> tuple[int, int, int]:
    """(batch, height, width) of the argument `name`, a channels-last map.

    Raises:
        TypeError, ValueError: it is not one of so many channels.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    shape = x.shape
    if len(shape) != 4 or shape[3] != channels:
        raise ValueError(
            f"{name} must be (batch, height, width, {channels}), got shape {tuple(shape)}"
        )
    return shape[0], shape[1], shape[2]
