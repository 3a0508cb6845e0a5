"""The network's presets in timm's registry."""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from torch import Tensor, nn

from cfmrfn.models.cfmrfn import CFMRFN
from cfmrfn.models.options import why_of_another
from cfmrfn.models.resizing import resize_maps
from cfmrfn.pretrained import config as pretrained_config


def _config(preset: str) -> dict[str, Any]:
    """timm's description of a preset, and of its weights where they come with the package."""
    if (described := pretrained_config(preset)) is not None:
        described_weights: dict[str, Any] = described["pretrained_cfg"]
        return described_weights
    return {
        "num_classes": 7,
        "input_size": (3, 224, 224),
        "fixed_input_size": False,
        "pool_size": (7, 7),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "image_backbone.input_layer.0",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs(
    {preset: _config(preset) for preset in ("cfmrfn_base", "cfmrfn_equations", "cfmrfn_tiny")}
)


def _create(variant: str, preset: dict[str, Any], pretrained: bool, options: Any) -> CFMRFN:
    """The network of a preset; without `img_size`, for images of the size that timm is told of.

    With the weights that come with the package it has the options that they were trained with.
    """
    cfg = resolve_pretrained_cfg(
        variant, options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay")
    )
    if options.pop("features_only", False):
        raise ValueError(
            "features_only has no meaning: two streams query each other, and no backbone's maps "
            "alone are its features; see `forward_features`, and `describe` for what is inside"
        )
    preset = {"img_size": tuple(cfg.input_size[1:]), **preset}
    described = pretrained_config(variant) if pretrained else None
    if described is not None and cfg.file == described["pretrained_cfg"]["file"]:
        preset |= described["model_args"]
    return build_model_with_cfg(
        CFMRFN, variant, pretrained, pretrained_filter_fn=_fitted, **{**preset, **options}
    )


def _fitted(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights as timm read them, for the token map of the network that it loads them into.

    Raises:
        RuntimeError: they are of a network with other options than timm can adapt them to.
    """
    if why := why_of_another(tensors, model, adapted=("num_classes", "img_size")):
        raise RuntimeError(why)
    resize_maps(tensors, model)
    return tensors


@register_model
def cfmrfn_base(pretrained: bool = False, **options: Any) -> CFMRFN:
    """The network of the paper's tables."""
    return _create("cfmrfn_base", {}, pretrained, options)


@register_model
def cfmrfn_equations(pretrained: bool = False, **options: Any) -> CFMRFN:
    """The network of the paper's equations: queries are projected, tokens are not mixed."""
    return _create("cfmrfn_equations", {"q_proj": True, "token_mixing": False}, pretrained, options)


@register_model
def cfmrfn_tiny(pretrained: bool = False, **options: Any) -> CFMRFN:
    """The same network, small enough to train on two CPU cores in minutes."""
    preset = {
        "embed_dim": 96,
        "depth": 2,
        "image_widths": (32, 64, 112),
        "image_blocks": (1, 2, 2),
        "image_early_stride": True,
        "stored_embedding": False,
        "landmark_width": 16,
        "landmark_blocks": (1, 1, 1),
    }
    return _create("cfmrfn_tiny", preset, pretrained, options)
