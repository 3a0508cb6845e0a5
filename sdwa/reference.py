"""Sliding dilated window attention in plain PyTorch: pad, unfold, softmax.

This file defines what the operator means. It runs on any device, in any floating dtype, can be
differentiated any number of times, and imports no kernel. Every other backend is tested against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from sdwa.autocast import autocast_off
from sdwa.problem import AttentionProblem, accumulation_dtype


def attention(
    problem: AttentionProblem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    key_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention of each query pixel to the window of dilated taps around it.

    Args:
        problem: kernel size, dilation of each head, scale and padding mode.
        query, key, value: (batch, height, width, heads, head_dim).
        bias: (heads, kernel_h, kernel_w), added to the scores, or None.
        key_mask: (batch, height, width) bool, or None; a key where it is False is left out.
        dropout: probability to drop an attention weight.

    Returns:
        out: (batch, height, width, heads, head_dim) in the dtype of query.
        lse: (batch, height, width, heads), the natural log of the sum of the exponentials of the
            scores, in the accumulation type: float32, or float64 where query is.

        A window whose every tap is left out, or has a bias of -inf, gives out 0 and lse -inf.
    """
    accumulate = accumulation_dtype(query.dtype)
    outs, lses = [], []
    with autocast_off(query.device):  # it would round the scores
        for heads, dilation in heads_by_dilation(problem):
            weights, lse = softmax(scores(problem, query, key, bias, key_mask, heads, dilation))
            if dropout:
                weights = torch.nn.functional.dropout(weights, dropout)
            v = unfold(value[..., heads, :].to(accumulate), problem.kernel_size, dilation)
            outs.append((weights.unsqueeze(-2) @ v).squeeze(-2))
            lses.append(lse)
        return torch.cat(outs, dim=3).to(query.dtype), torch.cat(lses, dim=3)


def attention_weights(
    problem: AttentionProblem,
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    key_mask: Tensor | None,
) -> Tensor:
    """What each query gives to each tap of its window.

    Args:
        problem, query, key, bias, key_mask: as for `attention`.

    Returns:
        (batch, height, width, heads, kernel_h, kernel_w) in the accumulation type.
    """
    with autocast_off(query.device):
        weights = [
            softmax(scores(problem, query, key, bias, key_mask, heads, dilation))[0]
            for heads, dilation in heads_by_dilation(problem)
        ]
    together = torch.cat(weights, dim=3)
    return together.view(*together.shape[:-1], *problem.kernel_size)


def heads_by_dilation(problem: AttentionProblem) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Neighbouring heads of one dilation, and it."""
    end = 0
    for dilation, group in groupby(problem.dilation):
        heads = slice(end, end + len(list(group)))
        end = heads.stop
        yield heads, dilation


def scores(
    problem: AttentionProblem,
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    key_mask: Tensor | None,
    heads: slice,
    dilation: tuple[int, int],
) -> Tensor:
    """Scores of those heads, (batch, height, width, heads, taps); -inf for what is left out."""
    accumulate = accumulation_dtype(query.dtype)
    q = query[..., heads, :].to(accumulate)
    k = unfold(key[..., heads, :].to(accumulate), problem.kernel_size, dilation)
    # (batch, height, width, heads, 1, head_dim) x (..., head_dim, taps) -> (..., heads, taps)
    result = (q.unsqueeze(-2) @ k.transpose(-2, -1)).squeeze(-2) * problem.scale
    if bias is not None:
        result = result + bias[heads].flatten(1).to(accumulate)
    # Beyond the border `unfold` gives 0. So with "masked" it takes what is kept, of which there is
    # none there, and with "zeros" what is left out.
    kept = torch.ones_like(key[:1, :, :, 0, 0]) if key_mask is None else key_mask
    if problem.masked:
        windows = unfold(kept[..., None, None].to(accumulate), problem.kernel_size, dilation)
        result = result.masked_fill(windows.squeeze(-1) == 0, float("-inf"))
    elif key_mask is not None:
        left_out = ~key_mask[..., None, None]
        windows = unfold(left_out.to(accumulate), problem.kernel_size, dilation)
        result = result.masked_fill(windows.squeeze(-1) != 0, float("-inf"))
    return result


def softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of the last dimension, and the log of its sum of exponentials.

    Where every score is -inf they are 0 and -inf, and no gradient goes back.
    """
    nothing = scores.amax(-1, keepdim=True) == float("-inf")
    scores = scores.masked_fill(nothing, 0.0)
    weights = scores.softmax(-1).masked_fill(nothing, 0.0)
    return weights, scores.logsumexp(-1).masked_fill(nothing.squeeze(-1), float("-inf"))


def unfold(x: Tensor, kernel_size: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """The window of every pixel, zero beyond the border, exactly as `torch.nn.Unfold` cuts it.

    Args:
        x: (batch, height, width, heads, head_dim).

    Returns:
        (batch, height, width, heads, taps, head_dim), taps in row-major order of the window.
    """
    batch, height, width, heads, head_dim = x.shape
    taps = kernel_size[0] * kernel_size[1]
    # torch.jit.trace warns where a size is compared.
    if not torch.jit.is_tracing() and batch == 0:  # type: ignore[no-untyped-call]
        return x.unsqueeze(-2).expand(-1, -1, -1, -1, taps, -1)
    channels_first = x.permute(0, 3, 4, 1, 2).reshape(batch, heads * head_dim, height, width)
    windows = torch.nn.functional.unfold(
        channels_first,
        kernel_size,
        dilation=dilation,
        padding=(dilation[0] * (kernel_size[0] // 2), dilation[1] * (kernel_size[1] // 2)),
    )  # (batch, heads * head_dim * taps, height * width)
    windows = windows.view(batch, heads, head_dim, taps, height, width)
    return windows.permute(0, 4, 5, 1, 3, 2)
