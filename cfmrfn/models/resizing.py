"""Weights of a network for images of one size, for a network for images of another."""

from __future__ import annotations

import math

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from cfmrfn.models.fusion import TokenMixing


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
            resized = resample_abs_pos_embed(position.flatten(0, 1)[None], new, grid, 0)
            tensors["position"] = resized[0].unflatten(0, new)
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
