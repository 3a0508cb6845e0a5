"""Optimizer, learning rate and moving average, from an `OptimConfig`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Set
from typing import Any

import torch
from pytorch_optimizer import SAM
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cfmrfn.checks import is_number
from cfmrfn.config import OptimConfig
from cfmrfn.errors import brief

BASE_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def build_optimizer(network: nn.Module, optim: OptimConfig) -> Optimizer:
    """The base optimizer, inside `pytorch_optimizer.SAM` where `rho` is not 0.

    That SAM shares its state with the base optimizer, so its state resumes exactly.
    """
    groups = parameter_groups(network, optim.lr, optim.weight_decay, optim.layer_decay)
    base = BASE_OPTIMIZERS[optim.optimizer]
    optimizer: Optimizer = SAM(groups, base, rho=optim.rho) if optim.rho else base(groups)
    return optimizer


def parameter_groups(
    network: nn.Module, lr: float, weight_decay: float = 0.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Trained parameters, grouped by learning rate and weight decay.

    Biases and norms (one dimension) have no weight decay, nor has what `network.no_weight_decay()`
    names, where there is such a method. A layer of `network.image_backbone`
    that is k layers below the backbone's end learns at `lr * layer_decay ** k`.
    """
    depth = _backbone_depths(network)
    spared: Set[str] = getattr(network, "no_weight_decay", set)()
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 and name not in spared else 0.0
            groups[layer_decay ** depth.get(name, 0), decay].append(parameter)
    return [
        {"params": parameters, "lr": lr * scale, "peak_lr": lr * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def _backbone_depths(network: nn.Module) -> dict[str, int]:
    """Layers between a parameter of the expression backbone and the backbone's end, from 1."""
    layers: dict[tuple[str, ...], list[str]] = {}
    for name, _ in network.named_parameters():
        if name.startswith("image_backbone."):
            parts = name.split(".")
            # a block of a sequence ("body.7") is a layer, and so is any other child
            layer = tuple(parts[: 3 if parts[1] == "body" else 2])
            layers.setdefault(layer, []).append(name)
    return {
        name: len(layers) - index for index, names in enumerate(layers.values()) for name in names
    }


def learning_rate_factor(optim: OptimConfig, epoch: float) -> float:
    """Factor of the peak learning rate at `epoch`, which counts parts of epochs too.

    The exponential schedule moves at whole epochs, as in POSTER; warm-up and cosine move each step.
    """
    if epoch < optim.warmup_epochs:
        return epoch / optim.warmup_epochs
    if optim.schedule == "exponential":
        return optim.decay ** math.floor(epoch - optim.warmup_epochs)
    if optim.schedule == "cosine":
        progress = (epoch - optim.warmup_epochs) / max(optim.epochs - optim.warmup_epochs, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return 1.0


def load_optimizer_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Loads what `state_dict()` of such an optimizer gave.

    Averages and learning rates are taken from it; what else its groups hold, the configuration
    says.

    Raises:
        ValueError: a value cannot be such.
    """
    own: dict[str, Any] = optimizer.state_dict()
    groups = own["param_groups"]
    if len(saved["param_groups"]) != len(groups):
        raise ValueError(f"optimizer needs {len(groups)} groups of parameters")
    for group, found in zip(groups, saved["param_groups"], strict=True):
        if found["weight_decay"] != group["weight_decay"]:
            raise ValueError(
                "in optimizer other parameters decay, as positions did in former versions: go on "
                "with the version that began the run, or start a new one with --init"
            )
        if found["params"] != group["params"]:
            raise ValueError(f"a group of optimizer needs {len(group['params'])} parameters")
        if not (is_number(found["lr"]) and found["lr"] >= 0):
            raise ValueError(
                f"lr of optimizer must be a number from 0 on, got {brief(found['lr'])}"
            )
        group["lr"] = found["lr"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, state in saved["state"].items():
        _check_averages(state, parameters[index])
    optimizer.load_state_dict({**own, "state": saved["state"]})


def _check_averages(state: dict[str, Any], parameter: torch.Tensor) -> None:
    """Of a parameter, as Adam and AdamW keep them."""
    shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    if set(state) != set(shapes):
        raise ValueError(f"state of optimizer needs {', '.join(shapes)}, got {brief(list(state))}")
    for name, shape in shapes.items():
        value = state[name]
        if not (isinstance(value, torch.Tensor) and value.shape == shape):
            raise ValueError(f"{name} of optimizer must have shape {tuple(shape)}")
        if value.layout != torch.strided or not value.is_floating_point():
            raise ValueError(f"{name} of optimizer must be dense and of floats")
    if not 0 <= state["step"] < math.inf:
        raise ValueError(f"step of optimizer must be a number from 0 on, got {state['step']}")


def load_ema_state(ema: AveragedModel, saved: dict[str, Any]) -> None:
    """Loads what `state_dict()` of such an average gave; raises ValueError where it cannot be."""
    if saved["n_averaged"] < 0:
        raise ValueError(f"n_averaged of ema must be 0 or more, got {saved['n_averaged']}")
    ema.load_state_dict(saved)


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Sets every group to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]


def build_ema(network: nn.Module, decay: float, warmup: bool = False) -> AveragedModel:
    """Moving average of weights and batch statistics.

    With `warmup` the decay after n steps is `1 - (1 + n) ** (-2/3)`, at most `decay`, as in timm:
    the random weights of the start are then soon forgotten.
    """
    if not warmup:
        return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def average(averages: Any, values: Any, steps: Any) -> None:
        grown = 1 - (1 + int(steps)) ** (-2 / 3)
        get_ema_multi_avg_fn(min(decay, grown))(averages, values, steps)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)
