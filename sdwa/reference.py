"""Sliding dilated window attention in plain PyTorch: cut windows out, softmax.

This file defines what the operator means. It runs on any device, in any floating dtype, can be
differentiated any number of times, and imports no kernel. Every other backend is tested against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sdwa.autocast import autocast_off
from sdwa.problem import AttentionProblem, WindowAxis, accumulation_dtype


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
        bias: of the shape `problem.bias_shape`, added to the scores, or None: by tap, or by the
            distance from query to key where the windows are shifted.
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
            v = windows(problem, value[..., heads, :].to(accumulate), dilation)
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
    """What each query gives to each tap of its window; 0 to those after a causal query.

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
    sizes = [axis.size for axis in problem.axes]
    together = together.view(*together.shape[:-1], *sizes)
    if sizes == list(problem.kernel_size):
        return together
    after = [full - size for full, size in zip(problem.kernel_size, sizes, strict=True)]
    return torch.nn.functional.pad(together, (0, after[1], 0, after[0]))


def heads_by_dilation(problem: AttentionProblem) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Neighbouring heads of one dilation, and it."""
    dilations = problem.dilation
    first = 0
    for end in range(1, len(dilations) + 1):
        if end == len(dilations) or dilations[end] != dilations[first]:
            yield slice(first, end), dilations[first]
            first = end


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
    k = windows(problem, key[..., heads, :].to(accumulate), dilation)
    # (batch, height, width, heads, 1, head_dim) x (..., head_dim, taps) -> (..., heads, taps)
    result = (q.unsqueeze(-2) @ k.transpose(-2, -1)).squeeze(-2) * problem.scale
    if bias is not None:
        of_heads = bias[heads].to(accumulate)
        if problem.shifted:
            of_heads = by_query(problem, of_heads, query.shape[1:3], dilation)
        result = result + of_heads.flatten(-2)
    # Beyond the border `windows` gives 0. So with "masked" it takes what is kept, of which there is
    # none there, and with "zeros" what is left out.
    kept = torch.ones_like(key[:1, :, :, 0, 0]) if key_mask is None else key_mask
    if problem.masked:
        kept = windows(problem, kept[..., None, None].to(accumulate), dilation)
        result = result.masked_fill(kept.squeeze(-1) == 0, float("-inf"))
    elif key_mask is not None:
        left_out = windows(problem, (~key_mask[..., None, None]).to(accumulate), dilation)
        result = result.masked_fill(left_out.squeeze(-1) != 0, float("-inf"))
    return result


def softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of the last dimension, and the log of its sum of exponentials.

    Where every score is -inf they are 0 and -inf, and no gradient goes back.
    """
    nothing = scores.amax(-1, keepdim=True) == float("-inf")
    scores = scores.masked_fill(nothing, 0.0)
    weights = scores.softmax(-1).masked_fill(nothing, 0.0)
    return weights, scores.logsumexp(-1).masked_fill(nothing.squeeze(-1), float("-inf"))


def windows(problem: AttentionProblem, x: Tensor, dilation: tuple[int, int]) -> Tensor:
    """The window of every pixel, zero beyond the border.

    Args:
        x: (batch, height, width, heads, head_dim).

    Returns:
        (batch, height, width, heads, taps, head_dim), taps in row-major order of the window.
    """
    if all(axis.is_plain for axis in problem.axes):
        return unfold(x, problem.kernel_size, dilation)
    for dim, axis, step in zip((1, 3), problem.axes, dilation, strict=True):
        length = x.shape[dim]
        coordinate, _ = taps_along(axis, length, step, x.device)
        on_map = (coordinate >= 0) & (coordinate < length)
        taps = x.index_select(dim, coordinate.clamp(0, length - 1).flatten())
        taps = taps.view(*x.shape[:dim], *coordinate.shape, *x.shape[dim + 1 :])
        x = torch.where(on_map.view(*coordinate.shape, *(1,) * (taps.dim() - dim - 2)), taps, 0)
    # (batch, height, kernel_h, width, kernel_w, heads, head_dim)
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)


def by_query(
    problem: AttentionProblem, bias: Tensor, map_size: Sequence[int], dilation: tuple[int, int]
) -> Tensor:
    """The bias of each tap of each query, from that of each distance.

    Args:
        bias: (heads, 2 kernel_h - 1, 2 kernel_w - 1).

    Returns:
        (height, width, heads, kernel_h, kernel_w).
    """
    for dim, axis, length, step, size in zip(
        (1, 3), problem.axes, map_size, dilation, problem.kernel_size, strict=True
    ):
        _, distance = taps_along(axis, length, step, bias.device)
        of_taps = bias.index_select(dim, (distance + size - 1).flatten())
        bias = of_taps.view(*bias.shape[:dim], *distance.shape, *bias.shape[dim + 1 :])
    return bias.permute(1, 3, 0, 2, 4)  # from (heads, height, kernel_h, width, kernel_w)


def taps_along(
    axis: WindowAxis, length: int, dilation: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which coordinate each tap of each pixel has along an axis, and how many taps away that is.

    Pixels of equal coordinate modulo the dilation form a phase, on which the window is dense.

    Returns:
        coordinate: int64 (length, taps); it may lie off the axis.
        distance: int64 (length, taps), in taps, from the pixel to there.
    """
    pixel = torch.arange(length, device=device)
    place = pixel // dilation  # in its phase
    start = place - axis.before
    if axis.shifted:
        phase_length = (length - pixel % dilation + dilation - 1) // dilation
        start = torch.minimum(start, phase_length - axis.size).clamp(min=0)
    distance = (start - place).unsqueeze(1) + torch.arange(axis.size, device=device)
    return pixel.unsqueeze(1) + distance * dilation, distance


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
