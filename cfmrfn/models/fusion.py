"""The cross-fusion encoder layer (section 2 of the paper, eqs. 1-17).

Token maps are channels-last, (batch, height, width, dim), one per stream: expression and landmarks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from sdwa import sliding_dilated_window_attention

KERNEL_SIZE = 3  # the paper's window; dilation r makes its reach 2 r + 1
NORM_EPS = 1e-6


class StreamAttention(nn.Module):
    """Attention within one stream's tokens, asked by the other's (eqs. 1-13).

    Args:
        dim: channels of both streams.
        num_heads: heads; they divide dim.
        dilation: of each head's 3 x 3 window; None: every head sees all tokens (eqs. 4, 5).
        q_proj: project the query, the W_q of eq. 1.
        padding_mode: what a tap off the map is, "zeros" or "masked"; windows only.
        backend: as for `sdwa.sliding_dilated_window_attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dilation: Sequence[int] | None,
        *,
        q_proj: bool = False,
        padding_mode: str = "zeros",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dilation = dilation if dilation is None else tuple(dilation)
        self.padding_mode = padding_mode
        self.backend = backend
        self.q = nn.Linear(dim, dim) if q_proj else nn.Identity()
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def _heads(self, tokens: Tensor, query_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """query, key, value (batch, height, width, heads, head_dim); key and value are views."""
        key, value = self.kv(tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(3)
        query = self.q(query_tokens).unflatten(-1, (self.num_heads, -1))
        # Under autocast the projections come out in half precision, and layer norm in float32.
        return query.to(key.dtype), key, value

    def forward(self, tokens: Tensor, query_tokens: Tensor) -> Tensor:
        """tokens, query_tokens, result: (batch, height, width, dim)"""
        query, key, value = self._heads(tokens, query_tokens)
        if self.dilation is None:
            q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (query, key, value))
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            out = out.unflatten(1, query.shape[1:3])
        else:
            out = sliding_dilated_window_attention(
                query,
                key,
                value,
                KERNEL_SIZE,
                self.dilation,
                padding_mode=self.padding_mode,
                backend=self.backend,
            )
        return self.proj(out.flatten(-2))

    def attention_map(self, tokens: Tensor, query_tokens: Tensor) -> Tensor:
        """What each token attends to, computed in the open, for figures and analysis.

        Returns:
            (batch, heads, height * width, height * width), from query to key. A row sums to less
            than one where part of its window is off the map and padded with zeros.
        """
        query, key, _ = self._heads(tokens, query_tokens)
        query, key = (t.float().flatten(1, 2).transpose(1, 2) for t in (query, key))
        scores = query @ key.mT * query.shape[-1] ** -0.5
        if self.dilation is None:
            return scores.softmax(-1)
        window = window_mask(tokens.shape[1], tokens.shape[2], self.dilation).to(scores.device)
        off_map = KERNEL_SIZE**2 - window.sum(-1, keepdim=True)  # (heads, tokens, 1)
        if self.padding_mode == "masked":
            off_map = torch.zeros_like(off_map)
        # All padded taps of a window have score 0: together one column of score log(their number).
        padding = off_map.log().expand(scores.shape[0], -1, -1, -1)
        scores = scores.masked_fill(~window, -torch.inf)
        return torch.cat([scores, padding], -1).softmax(-1)[..., :-1]


def window_mask(height: int, width: int, dilation: Sequence[int]) -> Tensor:
    """(heads, height * width, height * width): is this key in the window of this query?"""
    reach = KERNEL_SIZE // 2
    step = torch.tensor(dilation).view(-1, 1, 1)

    def along(size: int) -> Tensor:
        offset = torch.arange(size) - torch.arange(size).unsqueeze(1)
        return (offset % step == 0) & (offset.abs() <= reach * step)  # (heads, size, size)

    rows, columns = along(height), along(width)
    both = rows[:, :, None, :, None] & columns[:, None, :, None, :]
    return both.flatten(3, 4).flatten(1, 2)


class StreamBlock(nn.Module):
    """One stream's half of a layer: attention and MLP, each with a residual (eqs. 14-17).

    The stream's own norm is applied to its tokens and to those that query it.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        attention: StreamAttention,
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
        """tokens, query_tokens, result: (batch, height, width, dim)"""
        attended = self.attention(self.norm1(tokens), self.norm1(query_tokens))
        tokens = tokens + self.drop_path(attended)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))

    def attention_map(self, tokens: Tensor, query_tokens: Tensor) -> Tensor:
        """(batch, heads, height * width, height * width), see `StreamAttention.attention_map`."""
        return self.attention.attention_map(self.norm1(tokens), self.norm1(query_tokens))


class TokenMixing(nn.Module):
    """A 1 x 1 convolution whose channels are the tokens of all its streams.

    It is in the paper's parameter counts, not in its equations. It starts as the identity: a random
    mixture would scatter the tokens, and the next layer's windows would hold no places.

    On a map of another size it keeps a token and adds the learned difference from the identity,
    interpolated to and from the map that the weights belong to.

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

    def _weights(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
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
        """As many (batch, height, width, dim) as came in."""
        batch, height, width, _ = streams[0].shape
        weight, bias = self._weights((height, width))
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
        """One (batch, height, width, dim) a stream -> the same"""
        streams = [block(tokens, query) for block, tokens, query in self._with_queries(streams)]
        for mixing in self.mixing:
            # Rotates the list: each mixing takes from the front, its results go to the back.
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
