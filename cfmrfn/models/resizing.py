"""Weights of a network for images of one size, for images of another."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cfmrfn.models.fusion import TokenMixing, at_least_float32


def resized_positions(position: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions (height, width, dim) for a token map of `grid`: antialiased bicubic, as in timm.

    Products of matrices, which are exported and compiled for any `grid`.
    """
    if tuple(position.shape[:2]) == grid:
        return position
    wide = position.to(at_least_float32(position.dtype))
    down, across = (
        _bicubic(source, target, wide)
        for source, target in zip(position.shape[:2], grid, strict=True)
    )
    resized = across @ (down @ wide.flatten(1)).unflatten(1, position.shape[1:])
    return resized.to(position.dtype)


def _bicubic(source: int, target: int, like: Tensor) -> Tensor:
    """Antialiased bicubic interpolation of one side, a matrix (target, source)."""
    step = source / target
    middles, others = (
        torch.arange(n, device=like.device, dtype=like.dtype) + 0.5 for n in (target, source)
    )
    # in pixels of the coarser side
    x = (others - middles[:, None] * step).abs() / max(step, 1.0)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


def resize_maps(tensors: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Resizes positions (bicubic) and token mixing in `tensors` to a network's token map.

    Args:
        tensors: of a `CFMRFN` by name; changed in place.
        model: the `CFMRFN` that they are for.

    Returns:
        What was done, for a report.
    """
    notes = []
    grid = None
    if (position := tensors.get("position")) is not None and position.ndim == 3:
        grid = (position.shape[0], position.shape[1])
        own = dict(model.named_parameters()).get("position")
        if own is not None and grid != own.shape[:2]:
            new = (own.shape[0], own.shape[1])
            tensors["position"] = resized_positions(position, new)
            notes.append(
                f"positions resized from {grid[0]} x {grid[1]} to {new[0]} x {new[1]} tokens"
            )
    for name, module in model.named_modules():
        bias = tensors.get(f"{name}.bias")
        if not isinstance(module, TokenMixing) or bias is None:
            continue
        tokens = len(bias) // module.num_streams
        side = math.isqrt(tokens)
        theirs = TokenMixing(module.num_streams, grid or (side, side))
        if theirs.bias.shape == bias.shape and theirs.grid != module.grid:
            with torch.no_grad():
                theirs.weight.copy_(tensors[f"{name}.weight"])
                theirs.bias.copy_(bias)
                weight, bias = theirs.weights_for(module.grid)
            tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return notes
