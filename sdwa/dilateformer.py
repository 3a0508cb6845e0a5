"""Weights of DilateFormer's attention, `MultiDilatelocalAttention`, as those of our layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def layer_weights(state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A state dict for `sdwa.SlidingDilatedWindowAttention`.

    Args:
        state_dict, prefix: as of `SlidingDilatedWindowAttention.from_dilateformer`.

    Raises:
        TypeError: state_dict is no mapping of tensors, or prefix no str.
        ValueError: keys are missing or unexpected, or shapes do not fit.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, got {type(prefix).__name__}")
    layer = {
        key.removeprefix(prefix): tensor
        for key, tensor in state_dict.items()
        if key.startswith(prefix)
    }
    legal = {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    missing = sorted(legal - {"qkv.bias"} - layer.keys())
    unexpected = sorted(layer.keys() - legal)
    if missing or unexpected:
        raise ValueError(
            f"state_dict must hold qkv.weight, proj.weight, proj.bias and maybe qkv.bias under "
            f"prefix {prefix!r}: missing {missing}, unexpected {unexpected}"
        )
    for name, tensor in layer.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"state_dict must hold tensors, got {type(tensor).__name__} for {prefix}{name}"
            )
    weight = layer["qkv.weight"].flatten(1)  # (3 * dim, dim, 1, 1) -> (3 * dim, dim)
    dim = weight.shape[1]
    shapes = {"proj.weight": (dim, dim), "proj.bias": (dim,), "qkv.bias": (3 * dim,)}
    for name, tensor in (layer | {"qkv.weight": weight}).items():
        legal_shape = shapes.get(name, (3 * dim, dim))
        if tuple(tensor.shape) != legal_shape:
            raise ValueError(
                f"state_dict must hold {prefix}{name} of shape {legal_shape} beside a "
                f"qkv.weight of (3 * dim, dim, 1, 1), got {tuple(layer[name].shape)}"
            )
    weights = {
        "q.weight": weight[:dim],
        "kv.weight": weight[dim:],
        "proj.weight": layer["proj.weight"],
        "proj.bias": layer["proj.bias"],
    }
    if "qkv.bias" in layer:
        weights |= {"q.bias": layer["qkv.bias"][:dim], "kv.bias": layer["qkv.bias"][dim:]}
    return weights
