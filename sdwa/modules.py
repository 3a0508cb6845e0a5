"""The operator as a layer, and the paper's allocation of dilations to heads."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from sdwa import reference
from sdwa.arguments import (
    as_causal,
    as_dilation,
    as_kernel_size,
    as_line_causal,
    as_line_dilation,
    as_line_kernel_size,
    as_scale,
    check_count,
    check_dense,
    check_flag,
    check_key_mask,
    check_padding_mode,
    check_share,
    is_number,
    make_problem,
)
from sdwa.autocast import autocast_tensors
from sdwa.dilateformer import layer_weights
from sdwa.dispatch import named
from sdwa.functional import refuse_dtensors, sliding_dilated_window_attention
from sdwa.problem import DTYPES, MAX_HEAD_DIM, Causal, Dilation, Size, dtype_names
from sdwa.torch_private import any_autocast, is_observed, trace_paused

PAPER_DILATION = (1, 2, 3)  # dealt to groups of heads, see Table 4


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
    num_heads = int(num_heads)
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
    return (1,) * standard + tuple(int(d) for d in dilations for _ in range(share))


def deal_dilation(
    dilation: Dilation,
    num_heads: int,
    as_pairs: Callable[[Dilation, int], tuple[tuple[int, int], ...]] = as_dilation,
) -> tuple[tuple[int, int], ...]:
    """(dilation_h, dilation_w) of each head, from one, one per head, or one per group of heads.

    A shorter list is dealt to consecutive groups of heads, as equal as possible, later groups
    taking the remainder: 8 heads and (1, 2, 3) give 1, 1, 2, 2, 2, 3, 3, 3. as_pairs reads an
    entry for each of so many heads.
    """
    if not isinstance(dilation, Sequence) or isinstance(dilation, (str, bytes)):
        return as_pairs(dilation, num_heads)
    groups = len(dilation)
    if not 1 <= groups <= num_heads:
        raise ValueError(
            f"dilation must have an entry per head, or fewer to share: got {groups} entries "
            f"{tuple(dilation)!r} for {num_heads} heads"
        )
    small, larger = divmod(num_heads, groups)
    sizes = [small + (group >= groups - larger) for group in range(groups)]
    pairs = as_pairs(dilation, groups)
    return tuple(pair for pair, size in zip(pairs, sizes, strict=True) for _ in range(size))


class SlidingDilatedWindowAttention(nn.Module):
    """Multi-head sliding dilated window attention of a map, to itself or to another.

    Query, key and value projections, the operator, and an output projection. Key and value come
    from one packed projection that the kernels read in place.

    Args:
        dim: channels of the input and the output; a multiple of num_heads.
        num_heads: number of heads, of `dim / num_heads` channels each.
        kernel_size: taps along each side of the window, or (kernel_h, kernel_w); odd, but with
            "shifted". One entry, (kernel,), makes a layer for sequences, (batch, length, dim);
            its dilations and is_causal are those of one axis as well.
        dilation: one for all heads, one per head, or a shorter list dealt to consecutive groups of
            heads, as equal as possible, later groups taking the remainder: 8 heads and (1, 2, 3)
            give (1, 1, 2, 2, 2, 3, 3, 3), the paper's best allocation (Table 4). None: (1, 2, 3),
            or as many of them as there are heads.
        qkv_bias: query, key and value projections have a bias.
        q_proj: project the query; False: the input's channels are the query (the paper's parameter
            count leaves no room for a projection).
        context_dim: channels of the context that key and value come from; None: dim.
        scale: factor of the scores, a number; None: `head_dim ** -0.5`. One that is learned is for
            `sdwa.sliding_dilated_window_attention`.
        relative_bias: learn a bias for each head, zero at first: for each tap, (num_heads,
            kernel_h, kernel_w), or, with "shifted", for each distance in taps, (num_heads,
            2 * kernel_h - 1, 2 * kernel_w - 1); in a layer for sequences without the height.
        attn_drop: dropout of the attention weights, in training. The fused kernels keep no weights,
            so a training step with attn_drop > 0 runs the reference implementation, slower and with
            far more memory: on one core of a CPU 2.5 times the time and 3.4 times the memory for
            50 maps of 7 x 7 x 512; 36 times the time and 7.5 times the memory for 4 maps of
            56 x 56 x 128 with a window of 7 x 7.
            A warning says so once, unless backend is "reference".
        proj_drop: dropout of the output.
        padding_mode: "zeros", "masked" or "shifted", see `sdwa.sliding_dilated_window_attention`.
        is_causal: leave out the taps after the query, along both axes or as (height, width) says;
            see there too.
        backend: "cuda", "triton", "cpu" or "reference"; None: the best that fits.
        device, dtype: of the parameters, as for PyTorch's layers.

    Raises:
        ValueError, TypeError: an argument that is not legal; the message names it.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        kernel_size: Size = 3,
        dilation: Dilation | None = None,
        *,
        qkv_bias: bool = True,
        q_proj: bool = True,
        context_dim: int | None = None,
        scale: float | None = None,
        relative_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        padding_mode: str = "zeros",
        is_causal: Causal = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
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
        if scale is not None and not is_number(scale):  # the function takes tensors as well
            raise TypeError(f"scale must be a number or None, got {type(scale).__name__}")
        check_flag("qkv_bias", qkv_bias)
        check_flag("q_proj", q_proj)
        check_flag("relative_bias", relative_bias)
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
        # NumPy's numbers become Python's, which torch.compile and torch.fx take as constants.
        self.dim = dim = int(dim)
        self.num_heads = num_heads = int(num_heads)
        self.head_dim = dim // num_heads
        self.context_dim = dim if context_dim is None else int(context_dim)
        shifted = padding_mode == "shifted"
        self.is_line = isinstance(kernel_size, Sequence) and len(kernel_size) == 1
        if dilation is None:
            dilation = PAPER_DILATION[:num_heads]
        if self.is_line:
            self.kernel_size = as_line_kernel_size(kernel_size, shifted)
            self.dilation = deal_dilation(dilation, num_heads, as_line_dilation)
            self.is_causal = as_line_causal(is_causal)
        else:
            self.kernel_size = as_kernel_size(kernel_size, shifted)
            self.dilation = deal_dilation(dilation, num_heads)
            self.is_causal = as_causal(is_causal)
        self.scale = as_scale(scale, self.head_dim)
        self.padding_mode = padding_mode
        self.backend = backend
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **factory) if q_proj else nn.Identity()
        self.kv = nn.Linear(self.context_dim, 2 * dim, bias=qkv_bias, **factory)
        self.proj = nn.Linear(dim, dim, **factory)
        self.attn_drop = float(attn_drop)
        self.proj_drop = nn.Dropout(float(proj_drop))
        sizes = [2 * size - 1 if shifted else size for size in self.kernel_size]
        self.relative_bias = (
            nn.Parameter(torch.zeros(num_heads, *sizes[self.is_line :], **factory))
            if relative_bias
            else None
        )

    def reset_parameters(self) -> None:
        """Draws the projections anew and sets relative_bias to zero, as the constructor does.

        For a layer made on the device "meta", once `to_empty` has given it memory.
        """
        for projection in (self.q, self.kv, self.proj):
            if isinstance(projection, nn.Linear):
                projection.reset_parameters()
        if self.relative_bias is not None:
            nn.init.zeros_(self.relative_bias)

    def forward(
        self, x: Tensor, context: Tensor | None = None, key_mask: Tensor | None = None
    ) -> Tensor:
        """Attention of x to context, or to itself.

        Args:
            x: (batch, height, width, dim), the map that asks; (batch, length, dim) in a layer for
                sequences, and the others without the height likewise.
            context: (batch, height, width, context_dim), the map that is looked at; None: x.
            key_mask: (batch, height, width) bool of the map that is looked at; a pixel where it is
                False, such as the padding of a smaller image, is not attended to; with
                padding_mode="masked" an image in a padded batch then comes out as alone. None: all
                are attended to.

        Returns:
            (batch, height, width, dim), as x.

        Raises:
            TypeError: a map that is no dense tensor of a floating dtype, a context of another dtype
                than x, or a key_mask that is not bool.
            ValueError: a map or key_mask of another shape, or no context where context_dim is not
                dim.
            BackendError: as `sdwa.sliding_dilated_window_attention`.
        """
        context = _checked_context(x, context, self.dim, self.context_dim, self.is_line)
        if self.is_line:
            x, context, key_mask = _as_maps(x, context, key_mask)
        batch, height, width, _ = x.shape
        packed = self.kv(context).view(batch, height, width, 2, self.num_heads, self.head_dim)
        key, value = packed.unbind(3)
        query = unit_stride(self.q(x)).view(batch, height, width, self.num_heads, self.head_dim)
        bias: Tensor | None = self.relative_bias
        if bias is not None and self.is_line:
            bias = bias.unsqueeze(1)
        if self.training and self.attn_drop:
            if self.backend is None and not is_compiling():  # warnings cannot be compiled
                _warn_of_attn_drop()
            attended = attend_with_dropout(
                query,
                key,
                value,
                self.kernel_size,
                self.dilation,
                bias,
                self.scale,
                self.padding_mode,
                key_mask,
                self.is_causal,
                self.attn_drop,
            )
        else:
            attended = sliding_dilated_window_attention(
                query,
                key,
                value,
                self.kernel_size,
                self.dilation,
                bias=bias,
                scale=self.scale,
                padding_mode=self.padding_mode,
                key_mask=key_mask,
                is_causal=self.is_causal,
                backend=self.backend,
            )
        out: Tensor = self.proj(attended.view(batch, height, width, self.dim))
        drop = self.proj_drop
        # To call a module that does nothing takes time that counts on a small map.
        if type(drop) is not nn.Dropout or drop.p or is_compiling() or is_observed(drop):
            out = drop(out)
        return out.squeeze(1) if self.is_line else out

    def extra_repr(self) -> str:
        steps = tuple(w if h == w or self.is_line else (h, w) for h, w in self.dilation)
        causal = any(self.is_causal) and (self.is_line or self.is_causal)
        return (
            f"{self.dim}, num_heads={self.num_heads}, "
            f"kernel_size={self.kernel_size[self.is_line :]}, dilation={steps}, "
            f"padding_mode={self.padding_mode!r}" + (f", is_causal={causal}" if causal else "")
        )

    @classmethod
    def from_dilateformer(
        cls,
        state_dict: Mapping[str, Tensor],
        num_heads: int,
        kernel_size: Size = 3,
        dilation: Dilation = PAPER_DILATION,
        *,
        prefix: str = "",
        scale: float | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
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
            device, dtype: of the layer's parameters; None: those of qkv.weight.

        Raises:
            ValueError: keys are missing or unexpected, shapes do not fit, or the heads cannot be
                shared equally.
            TypeError: num_heads is not an int, state_dict no mapping of tensors, or prefix no str.
        """
        weights = layer_weights(state_dict, prefix)
        check_count("num_heads", num_heads)
        groups = len(dilation) if isinstance(dilation, Sequence) else 1
        if groups == 0 or num_heads % groups:
            raise ValueError(
                f"num_heads must be a multiple of the number of dilations, got {num_heads} heads "
                f"and dilations {dilation!r}"
            )
        weight = weights["q.weight"]
        attention = cls(
            weight.shape[0],
            num_heads,
            kernel_size,
            dilation,
            qkv_bias="q.bias" in weights,
            scale=scale,
            backend=backend,
            device=weight.device if device is None else device,
            dtype=weight.dtype if dtype is None else dtype,
        )
        attention.load_state_dict(weights)
        return attention


# `torch.fx` records a wrapped function as one step: what these ask of a tensor, its proxies do not
# know.


@torch.fx.wrap
def _checked_context(
    x: Tensor, context: Tensor | None, dim: int, context_dim: int, is_line: bool
) -> Tensor:
    """The map or sequence that key and value come from: the context, or x where it is None.

    Raises:
        TypeError, ValueError: as the layer's forward.
    """
    if torch.jit.is_tracing():  # type: ignore[no-untyped-call]
        with trace_paused():
            return _checked_context(x, context, dim, context_dim, is_line)
    _check_map("x", x, dim, is_line)
    if context is None:
        if context_dim != dim:
            raise ValueError(
                f"x must be ({_axes(is_line)}, {context_dim}) to be its own context, "
                f"got shape {tuple(x.shape)}: give a context of {context_dim} channels"
            )
        return x
    _check_map("context", context, context_dim, is_line)
    # The first comparison is quicker, and mostly enough.
    if context.shape != x.shape and context.shape[:-1] != x.shape[:-1]:
        axes = "batch and length" if is_line else "batch, height and width"
        raise ValueError(
            f"context must have the {axes} of x, {tuple(x.shape[:-1])}: "
            f"got shape {tuple(context.shape)}"
        )
    if context.dtype != x.dtype and not any_autocast():
        raise TypeError(f"context must have the dtype of x, {x.dtype}, got {context.dtype}")
    return context


@torch.fx.wrap
def _as_maps(
    x: Tensor, context: Tensor, key_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sequences, (batch, length, channels), and their key_mask as maps of one row.

    Raises:
        TypeError, ValueError: key_mask is something else.
    """
    if key_mask is not None:
        with trace_paused():
            check_key_mask(key_mask, x.shape[:2], x.device)
        key_mask = key_mask.unsqueeze(1)
    return x.unsqueeze(1), context.unsqueeze(1), key_mask


@torch.fx.wrap
def unit_stride(x: Tensor) -> Tensor:
    """A map as the kernels take it: it may be a view of a channels-first one."""
    return x if x.stride(3) == 1 else x.contiguous()


@torch.fx.wrap
def attend_with_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size,
    dilation: Dilation,
    bias: Tensor | None,
    scale: float,
    padding_mode: str,
    key_mask: Tensor | None,
    is_causal: Causal,
    dropout: float,
) -> Tensor:
    """out of the reference, with that share of the attention weights dropped."""
    refuse_dtensors("attention weights are dropped", query, key, value, bias, key_mask)
    query, key, value = autocast_tensors(query, key, value)
    with trace_paused():
        problem = make_problem(
            *(query, key, value, kernel_size, dilation, bias, scale, padding_mode),
            *(key_mask, is_causal),
        )
        bias_parts = [] if bias is None else problem.bias_parts(bias.shape)
    for part in bias_parts:
        bias = bias.narrow(*part)  # type: ignore[union-attr]
    return reference.attention(problem, query, key, value, bias, key_mask, dropout)[0]


@cache
def _warn_of_attn_drop() -> None:
    """Says once per process what attn_drop costs."""
    warnings.warn(
        "attn_drop > 0: in training the attention runs the reference implementation, as the fused "
        "kernels keep no weights to drop. It is slower and takes far more memory. proj_drop runs "
        'the kernels; backend="reference" makes this warning go away.',
        UserWarning,
        stacklevel=2,
    )


def _check_map(name: str, x: Tensor, channels: int, is_line: bool) -> None:
    """Raises TypeError or ValueError where the argument `name` is not a map of so many channels.

    is_line: not a sequence of them.
    """
    check_dense(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name} must be {dtype_names(DTYPES)}, got {x.dtype}")
    shape = x.shape
    dims = 3 if is_line else 4
    if len(shape) != dims or shape[-1] != channels:
        hint = ""
        if is_line and len(shape) == 4:
            hint = ": a layer for maps has a kernel_size of one number, or two entries"
        elif not is_line and len(shape) == 3:
            hint = ": a layer for sequences has a kernel_size of one entry"
        raise ValueError(
            f"{name} must be ({_axes(is_line)}, {channels}), got shape {tuple(shape)}{hint}"
        )


def _axes(is_line: bool) -> str:
    return "batch, length" if is_line else "batch, height, width"
