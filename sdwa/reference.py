"""Sliding dilated window attention in plain PyTorch: pad, unfold, softmax.

This file defines what the operator means. It runs on any device, in any floating dtype, can be
differentiated any number of times, and imports no kernel. Every other backend is tested against it.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from sdwa.autocast import autocasts
from sdwa.problem import AttentionProblem, accumulation_dtype


def attention(
    problem: AttentionProblem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention of each query pixel to the window of dilated taps around it.

    Args:
        problem: kernel size, dilation of each head, scale and padding mode.
        query, key, value: (batch, height, width, heads, head_dim).
        bias: (heads, kernel_h, kernel_w), added to the scores, or None.
        dropout: probability to drop an attention weight.

    Returns:
        out: (batch, height, width, heads, head_dim) in the dtype of query.
        lse: (batch, height, width, heads), the natural log of the sum of the exponentials of the
            scores, in the accumulation type: float32, or float64 where query is.
    """
    if autocasts(query.device):  # it would round the scores
        with torch.autocast(query.device.type, enabled=False):
            return attention(problem, query, key, value, bias, dropout)
    accumulate = accumulation_dtype(query.dtype)
    outs, lses = [], []
    end = 0
    for dilation, group in groupby(problem.dilation):
        heads = slice(end, end + len(list(group)))
        end = heads.stop
        q = query[..., heads, :].to(accumulate)
        k = unfold(key[..., heads, :].to(accumulate), problem.kernel_size, dilation)
        v = unfold(value[..., heads, :].to(accumulate), problem.kernel_size, dilation)
        # (batch, height, width, heads, 1, head_dim) x (..., head_dim, taps) -> (..., heads, taps)
        scores = (q.unsqueeze(-2) @ k.transpose(-2, -1)).squeeze(-2) * problem.scale
        if bias is not None:
            scores = scores + bias[heads].flatten(1).to(accumulate)
        if problem.masked:
            on_map = unfold(
                torch.ones_like(key[:1, :, :, :1, :1], dtype=accumulate),
                problem.kernel_size,
                dilation,
            ).squeeze(-1)  # (1, height, width, 1, taps)
            scores = scores.masked_fill(on_map == 0, float("-inf"))
        weights = torch.nn.functional.dropout(scores.softmax(-1), dropout)
        outs.append((weights.unsqueeze(-2) @ v).squeeze(-2))
        lses.append(scores.logsumexp(-1))
    return torch.cat(outs, dim=3).to(query.dtype), torch.cat(lses, dim=3)


def unfold(x: Tensor, kernel_size: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """The window of every pixel, zero beyond the border, exactly as `torch.nn.Unfold` cuts it.

    Args:
        x: (batch, height, width, heads, head_dim).

    Returns:
        (batch, height, width, heads, taps, head_dim), taps in row-major order of the window.
    """
    batch, height, width, heads, head_dim = x.shape
    taps = kernel_size[0] * kernel_size[1]
    if batch == 0:
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
