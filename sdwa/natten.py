"""Neighborhood attention under the names of NATTEN 0.17.5, on the kernels of this package.

NATTEN dropped relative position biases, its split operators and its CPU kernels after 0.17.5;
models that need them run on this module. `install()` makes `import natten` find it.

The fused functions (`na1d`, `na2d`) and layers run `sdwa.sliding_dilated_window_attention` with
shifted windows, on any of its backends. The split functions (`natten2dqkrpb`, `natten2dav` and the
like) hold all attention weights, as their users ask for, and are plain PyTorch.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from sdwa import natten_settings
from sdwa.arguments import check_count
from sdwa.natten_windows import CAUSAL_BIAS, Flags, Sizes, Windows, check_scale, drops

NATTEN_VERSION = "0.17.5"
_SUBMODULES = ("functional", "na1d", "na2d", "natten1d", "natten2d")

# Arguments that functions and layers of NATTEN 0.20 and later have beside 0.17.5's and `stride`.
_LATER = frozenset(
    {
        "attention_kwargs",
        "backend",
        "backward_kv_splits",
        "backward_kv_tile_shape",
        "backward_q_tile_shape",
        "backward_use_pt_reduction",
        "embed_dim",
        "kernel_schedule",
        "kv_tile_shape",
        "q_tile_shape",
        "return_lse",
        "run_persistent_kernel",
        "torch_compile",
        "try_fuse_additional_kv",
    }
)

P = ParamSpec("P")
R = TypeVar("R")

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "install",
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na1d_qk_with_bias",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na2d_qk_with_bias",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
]


def install() -> ModuleType:
    """Makes `import natten` and `from natten.functional import ...` find this module.

    Call it before anything imports natten. Nothing is written to disk: it holds for this process.

    Returns:
        The module `natten`.

    Raises:
        RuntimeError: another natten has been imported.
    """
    with _INSTALLING:
        return _install()


_INSTALLING = threading.Lock()


def _install() -> ModuleType:
    known = sys.modules.get("natten")
    if known is not None and getattr(known, "__sdwa__", False):
        return known
    if known is not None:
        raise RuntimeError(
            f"natten is imported already, from {getattr(known, '__file__', 'somewhere else')}: "
            "call sdwa.natten.install() before anything imports it"
        )
    package = ModuleType("natten", __doc__)
    attention = [ModuleType(f"natten.{name}", __doc__) for name in _SUBMODULES]
    for module in (package, *attention):
        vars(module).update({name: globals()[name] for name in __all__})
    context = natten_settings.context()
    vars(package).update(
        {name: value for name, value in vars(context).items() if not name.startswith("_")},
        __sdwa__=True,
        __version__=NATTEN_VERSION,
        __path__=[],
    )
    for module in (package, *attention, context, natten_settings.flops()):
        module.__spec__ = ModuleSpec(module.__name__, None, origin=__file__)
        module.__file__ = __file__
        sys.modules[module.__name__] = module
        if module is not package:
            # `natten.na2d` stays the function, as in later versions: imports find the module.
            vars(package).setdefault(module.__name__.rpartition(".")[2], module)
    sys.meta_path.append(_Metadata())
    return package


class _Distribution(Distribution):
    """The metadata of an installed NATTEN, for those who ask which version there is."""

    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: natten\nVersion: {NATTEN_VERSION}\n"

    def locate_file(self, path: Any) -> Any:
        return Path(__file__).parent / path


class _Metadata(DistributionFinder):
    """Finds it, where no other one is."""

    def find_spec(self, *_: Any, **__: Any) -> None:
        return None

    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008
    ) -> list[Distribution]:
        return [_Distribution()] if (context.name or "").lower() == "natten" else []


def _names_later_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which names arguments of NATTEN 0.20 and later that it does not have."""
    legal = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: P.args, **named: P.kwargs) -> R:
        later = [name for name in named if name in _LATER]
        if later:
            raise TypeError(
                f"arguments must be among {', '.join(legal)}, as in NATTEN {NATTEN_VERSION}; got "
                f"{', '.join(later)}, of NATTEN 0.20 and later"
            )
        return function(*args, **named)

    return checked


# Fused


@_names_later_arguments
def na1d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    is_causal: Flags = False,
    rpb: Tensor | None = None,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    xformers_kwargs: dict[str, Any] | None = None,
    *,
    stride: Sizes = 1,
) -> Tensor:
    """Fused neighborhood attention of sequences.

    Args:
        query, key, value: (batch, length, heads, head_dim).
        kernel_size, dilation, is_causal: of the window; ints and a bool, or one of each in a tuple.
            A dilation of None is 1.
        rpb: (heads, 2 * kernel_size - 1), the relative position bias.
        scale: of the scores; None or 0: `head_dim ** -0.5`, as NATTEN has it.
        additional_keys, additional_values: (batch, tokens, heads, head_dim); every query attends to
            these as well.
        xformers_kwargs: not used.
        stride: of NATTEN 0.20 and later, which has it before dilation; 1 alone.

    Returns:
        (batch, length, heads, head_dim)

    Raises:
        TypeError: an argument of NATTEN 0.20 and later, among others.
        ValueError: a window larger than the sequence, among others.
        NotImplementedError: a causal window with a bias.
    """
    windows = Windows.of(1, kernel_size, dilation, is_causal, stride)
    return windows.attend(query, key, value, rpb, scale, additional_keys, additional_values)


@_names_later_arguments
def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    is_causal: Flags = False,
    rpb: Tensor | None = None,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    xformers_kwargs: dict[str, Any] | None = None,
    *,
    stride: Sizes = 1,
) -> Tensor:
    """Fused neighborhood attention of maps, as `na1d` of sequences.

    Args:
        query, key, value: (batch, height, width, heads, head_dim).
        rpb: (heads, 2 * kernel_h - 1, 2 * kernel_w - 1).
        Others: as for `na1d`, or two of each.

    Returns:
        (batch, height, width, heads, head_dim)

    Raises:
        TypeError, ValueError, NotImplementedError: as `na1d`.
    """
    windows = Windows.of(2, kernel_size, dilation, is_causal, stride)
    return windows.attend(query, key, value, rpb, scale, additional_keys, additional_values)


# Split: heads first, (batch, heads, [height,] length, head_dim), weights (..., taps)


def na1d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    additional_keys: Tensor | None = None,
    is_causal: Flags = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Scores of sequences, not scaled.

    Args:
        query, key: (batch, heads, length, head_dim).
        additional_keys: (batch, heads, tokens, head_dim), whose scores follow those of the taps.
        Others: as for `na1d`.

    Returns:
        (batch, heads, length, kernel_size [+ tokens]); those of a causal window that are before the
        first key are -inf, and come last.

    Raises:
        ValueError, NotImplementedError: as `na1d`.
    """
    windows = Windows.of(1, kernel_size, dilation, is_causal)
    return windows.scores(query, key, rpb, additional_keys)


def na1d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    additional_values: Tensor | None = None,
    is_causal: Flags = False,
) -> Tensor:
    """Values of sequences, weighted.

    Args:
        attn: (batch, heads, length, kernel_size [+ tokens]).
        value: (batch, heads, length, head_dim).
        additional_values: (batch, heads, tokens, head_dim).
        Others: as for `na1d`.

    Returns:
        (batch, heads, length, head_dim)

    Raises:
        ValueError: as `na1d`.
    """
    windows = Windows.of(1, kernel_size, dilation, is_causal)
    return windows.weighted(attn, value, additional_values)


def na2d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    additional_keys: Tensor | None = None,
    is_causal: Flags = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Scores of maps, (batch, heads, height, width, taps): as `na1d_qk`."""
    windows = Windows.of(2, kernel_size, dilation, is_causal)
    return windows.scores(query, key, rpb, additional_keys)


def na2d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    additional_values: Tensor | None = None,
    is_causal: Flags = False,
) -> Tensor:
    """Values of maps, weighted: as `na1d_av`."""
    windows = Windows.of(2, kernel_size, dilation, is_causal)
    return windows.weighted(attn, value, additional_values)


# The names of older versions, which models import.


def na1d_qk_with_bias(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    additional_keys: Tensor | None = None,
) -> Tensor:
    """`na1d_qk` with a bias."""
    return na1d_qk(query, key, kernel_size, dilation, additional_keys, rpb=bias)


def na2d_qk_with_bias(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    kernel_size: Sizes,
    dilation: Sizes | None = 1,
    additional_keys: Tensor | None = None,
) -> Tensor:
    """`na2d_qk` with a bias."""
    return na2d_qk(query, key, kernel_size, dilation, additional_keys, rpb=bias)


def natten1dqkrpb(
    query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: Sizes, dilation: Sizes | None = 1
) -> Tensor:
    """`na1d_qk` with a bias."""
    return na1d_qk(query, key, kernel_size, dilation, rpb=rpb)


def natten2dqkrpb(
    query: Tensor, key: Tensor, rpb: Tensor | None, kernel_size: Sizes, dilation: Sizes | None = 1
) -> Tensor:
    """`na2d_qk` with a bias."""
    return na2d_qk(query, key, kernel_size, dilation, rpb=rpb)


natten1dqk, natten2dqk = na1d_qk, na2d_qk
natten1dav, natten2dav = na1d_av, na2d_av


# Layers


class _NeighborhoodAttention(nn.Module):
    """What the layers of both dimensions have in common; parameters are named as NATTEN's.

    While attn_drop drops weights, they hold all of them, as the split functions do.
    """

    dims: int

    @_names_later_arguments
    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        is_causal: Flags = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_experimental_ops: bool = False,
        *,
        stride: Sizes = 1,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("num_heads", num_heads)
        check_scale("qk_scale", qk_scale)
        windows = Windows.of(self.dims, kernel_size, dilation, is_causal, stride)
        if any(windows.is_causal) and rel_pos_bias:
            raise NotImplementedError(CAUSAL_BIAS)
        if dim % num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads, got {dim} and {num_heads} heads"
            )
        # NumPy's numbers become Python's, which torch.compile takes as constants.
        dim, num_heads = int(dim), int(num_heads)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = float(qk_scale or self.head_dim**-0.5)
        self.kernel_size = windows.kernel_size
        self.dilation = windows.dilation
        self.is_causal = windows.is_causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.rpb: nn.Parameter | None = None
        if rel_pos_bias:
            sizes = (2 * size - 1 for size in self.kernel_size)
            self.rpb = nn.Parameter(torch.zeros(num_heads, *sizes))
            nn.init.trunc_normal_(self.rpb, std=0.02, mean=0.0, a=-2.0, b=2.0)
        self.attn_drop_rate = attn_drop
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Attention of x to itself.

        Args:
            x: (batch, length, dim), or (batch, height, width, dim).

        Returns:
            The same.

        Raises:
            ValueError: an x of another number of dimensions, or a window larger than it.
        """
        if x.dim() != self.dims + 2:
            raise ValueError(f"x must have {self.dims + 2} dimensions, got shape {tuple(x.shape)}")
        windows = Windows(self.kernel_size, self.dilation, self.is_causal)
        qkv = self.qkv(x).view((*x.shape[:-1], 3, self.num_heads, self.head_dim))
        query, key, value = qkv.unbind(-3)
        if drops(self.attn_drop):
            attended, _ = windows.attend_and_drop(
                query, key, value, self.rpb, self.scale, self.attn_drop
            )
        else:
            attended = windows.attend(query, key, value, self.rpb, self.scale, None, None)
        return self.proj_drop(self.proj(attended.flatten(-2)))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, "
            f"kernel_size={self.kernel_size}, dilation={self.dilation}, "
            f"is_causal={self.is_causal}, has_bias={self.rpb is not None}"
        )


class NeighborhoodAttention1D(_NeighborhoodAttention):
    """Neighborhood attention of sequences, (batch, length, dim)."""

    dims = 1


class NeighborhoodAttention2D(_NeighborhoodAttention):
    """Neighborhood attention of maps, (batch, height, width, dim)."""

    dims = 2
