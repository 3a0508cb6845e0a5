"""The cross-fusion encoder layer (section 2 of the paper, eqs. 1-17).

Token maps are channels-last, (batch, height, width, dim), one per stream: expression and landmarks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from sdwa import SlidingDilatedWindowAttention

NORM_EPS = 1e-6


class StreamAttention(SlidingDilatedWindowAttention):
    """Windows of one stream's tokens, queried by the other's (eqs. 1-13).

    The layer of `sdwa`, with a method that returns its attention weights, for figures.
    """

    def attention_map(self, x: Tensor, context: Tensor) -> Tensor:
        """What each token attends to, for figures and analysis.

        Args:
            x: (batch, height, width, dim), the tokens that query.
            context: (batch, height, width, dim), the tokens that are attended to.

        Returns:
            (batch, heads, height * width, height * width), from query to key. A row sums to less
            than one where part of its window is off the map and padded with zeros.
        """
        key, _ = self.kv(context).chunk(2, -1)
        scores = _scores(self.q(x), key, self.num_heads)
        window = window_mask(x.shape[1], x.shape[2], self.kernel_size, self.dilation)
        window = window.to(scores.device)
        off_map = math.prod(self.kernel_size) - window.sum(-1, keepdim=True)  # (heads, tokens, 1)
        if self.padding_mode == "masked":
            off_map = torch.zeros_like(off_map)
        # All padded taps of a window have score 0: together one column of score log(their number).
        padding = off_map.log().expand(scores.shape[0], -1, -1, -1)
        scores = scores.masked_fill(~window, -torch.inf)
        return torch.cat([scores, padding], -1).softmax(-1)[..., :-1]


class GlobalAttention(nn.Module):
    """Attention to all of one stream's tokens, queried by the other's (eqs. 4 and 5).

    It has the parameters of `StreamAttention`, under the same names.

    Args:
        dim: channels of both streams.
        num_heads: heads; they divide dim.
        q_proj: project the query, the W_q of eq. 1.
    """

    def __init__(self, dim: int, num_heads: int, *, q_proj: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim) if q_proj else nn.Identity()
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attention of x to context.

        Args:
            x: (batch, height, width, dim), the tokens that query.
            context: (batch, height, width, dim), the tokens that are attended to.

        Returns:
            (batch, height, width, dim)
        """
        key, value = (_by_head(t, self.num_heads) for t in self.kv(context).chunk(2, -1))
        # Under autocast the projections come out in half precision, and layer norm in float32.
        query = _by_head(self.q(x), self.num_heads).to(key.dtype)
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return self.proj(out.flatten(2).unflatten(1, x.shape[1:3]))

    def attention_map(self, x: Tensor, context: Tensor) -> Tensor:
        """(batch, heads, height * width, height * width), see `StreamAttention.attention_map`."""
        key, _ = self.kv(context).chunk(2, -1)
        return _scores(self.q(x), key, self.num_heads).softmax(-1)


def window_mask(
    height: int,
    width: int,
    kernel_size: tuple[int, int],
    dilation: Sequence[tuple[int, int]],
) -> Tensor:
    """Whether each key is in the window of each query.

    Args:
        height, width: of the token map.
        kernel_size: taps along each side of the window.
        dilation: (dilation_h, dilation_w) of each head.

    Returns:
        (heads, height * width, height * width), bool, from query to key.
    """

    def along(size: int, taps: int, dilation: Sequence[int]) -> Tensor:
        step = torch.tensor(dilation).view(-1, 1, 1)
        offset = torch.arange(size) - torch.arange(size).unsqueeze(1)
        return (offset % step == 0) & (offset.abs() <= taps // 2 * step)  # (heads, size, size)

    rows = along(height, kernel_size[0], [step for step, _ in dilation])
    columns = along(width, kernel_size[1], [step for _, step in dilation])
    both = rows[:, :, None, :, None] & columns[:, None, :, None, :]
    return both.flatten(3, 4).flatten(1, 2)


def _scores(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """Scaled scores of every query and every key, in float32 or float64.

    Args:
        query, key: (batch, height, width, dim).
        num_heads: heads; they divide dim.

    Returns:
        (batch, heads, height * width, height * width)
    """
    query, key = (_by_head(t.to(at_least_float32(t.dtype)), num_heads) for t in (query, key))
    return query @ key.mT * query.shape[-1] ** -0.5


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision; float64 stays."""
    return torch.promote_types(dtype, torch.float32)


def _by_head(tokens: Tensor, num_heads: int) -> Tensor:
    """(batch, height, width, dim) -> (batch, heads, height * width, head_dim)"""
    return tokens.flatten(1, 2).unflatten(-1, (num_heads, -1)).transpose(1, 2)


class StreamBlock(nn.Module):
    """One stream's half of a layer: attention and MLP, each with a residual (eqs. 14-17).

    The stream's own norm is applied to its tokens and to those that query it.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        attention: StreamAttention | GlobalAttention,
        *,
        pre_norm: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS) if pre_norm else nn.Identity()
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, tokens: Tensor, query_tokens: Tensor) -> Tensor:
        """One stream through its half of the layer.

        Args:
            tokens: (batch, height, width, dim), of this stream.
            query_tokens: (batch, height, width, dim), the tokens that query them.

        Returns:
            (batch, height, width, dim)
        """
        context = self.norm1(tokens)
        attended = self.attention(self.norm1(query_tokens), context)
        tokens = tokens + self.drop_path(attended)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))

    def attention_map(self, tokens: Tensor, query_tokens: Tensor) -> Tensor:
        """(batch, heads, height * width, height * width), see `StreamAttention.attention_map`."""
        return self.attention.attention_map(self.norm1(query_tokens), self.norm1(tokens))


class TokenMixing(nn.Module):
    """A 1 x 1 convolution whose channels are the tokens of all its streams.

    It is in the paper's parameter counts, not in its equations. It starts as the identity: a random
    mixture would spread every token over the map, and the next layer's windows would not hold
    neighbours.

    On a map of another size, the learned difference from the identity is interpolated to that size,
    and the identity is added again.

    Args:
        num_streams: streams mixed together.
        grid: (height, width) of the token maps.
    """

    def __init__(self, num_streams: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.num_streams = num_streams
        tokens = num_streams * grid[0] * grid[1]
        self.weight = nn.Parameter(torch.eye(tokens))
        self.bias = nn.Parameter(torch.zeros(tokens))

    def weights_for(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Weight (tokens, tokens) and bias (tokens,) for maps of (height, width) `grid`."""
        if grid == self.grid:
            return self.weight, self.bias
        up = self._interpolation(self.grid, grid)
        down = self._interpolation(grid, self.grid)
        eye = torch.eye(len(self.bias)).to(self.weight)
        difference = up @ (self.weight - eye) @ down
        return torch.eye(len(difference)).to(difference) + difference, up @ self.bias

    def _interpolation(self, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
        """Bilinear interpolation of all streams' maps, a matrix (target, source tokens)."""
        unit_maps = torch.eye(source[0] * source[1]).unflatten(1, (1, *source))
        matrix = F.interpolate(unit_maps, size=target, mode="bilinear").flatten(1).T
        return torch.block_diag(*[matrix] * self.num_streams).to(self.weight)

    def forward(self, streams: Sequence[Tensor]) -> Sequence[Tensor]:
        """Mixes the tokens of all streams.

        Args:
            streams: `num_streams` maps (batch, height, width, dim).

        Returns:
            As many, of the same shape.
        """
        batch, height, width, _ = streams[0].shape
        weight, bias = self.weights_for((height, width))
        tokens = torch.cat([stream.flatten(1, 2) for stream in streams], 1)
        mixed = torch.baddbmm(bias.unsqueeze(1), weight.expand(batch, -1, -1), tokens)
        return mixed.unflatten(1, (self.num_streams, height, width)).unbind(1)


class FusionLayer(nn.Module):
    """One encoder layer over one or two streams.

    Args:
        blocks: one per stream.
        cross_fusion: the streams query each other (eqs. 4, 5) and their tokens are mixed together;
            otherwise they share nothing.
        mixing_grid: (height, width) of the maps that token mixing is made for; None: no mixing.
    """

    def __init__(
        self,
        blocks: Sequence[StreamBlock],
        *,
        cross_fusion: bool = True,
        mixing_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.cross_fusion = cross_fusion
        self.mixed_together = len(blocks) if cross_fusion else 1
        self.mixing = nn.ModuleList()
        if mixing_grid is not None:
            for _ in range(0, len(blocks), self.mixed_together):
                self.mixing.append(TokenMixing(self.mixed_together, mixing_grid))

    def _with_queries(self, streams: Sequence[Tensor]) -> list[tuple[StreamBlock, Tensor, Tensor]]:
        blocks = cast(Iterable[StreamBlock], self.blocks)
        queries = streams[::-1] if self.cross_fusion else streams
        return list(zip(blocks, streams, queries, strict=True))

    def forward(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """All streams through the layer.

        Args:
            streams: one (batch, height, width, dim) per stream.

        Returns:
            As many, of the same shape.
        """
        streams = [block(tokens, query) for block, tokens, query in self._with_queries(streams)]
        for mixing in self.mixing:
            # Each mixing takes streams from the front of the list and puts its results at the back.
            group, rest = streams[: self.mixed_together], streams[self.mixed_together :]
            streams = [*rest, *mixing(group)]
        return streams

    def attention_maps(self, streams: Sequence[Tensor]) -> Tensor:
        """(batch, streams, heads, height * width, height * width)"""
        maps = [
            block.attention_map(tokens, query)
            for block, tokens, query in self._with_queries(streams)
        ]
        return torch.stack(maps, 1)
