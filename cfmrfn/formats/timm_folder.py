"""A network as a folder that timm opens, with `timm.create_model("local-dir:FOLDER")`.

::

    config.json         timm's description of the network and of its images; under `cfmrfn`, what
                        `cfmrfn.checkpoint.About` holds
    model.safetensors   the weights
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from cfmrfn import tensor_files
from cfmrfn.checkpoint import About, build_network, fitting
from cfmrfn.errors import CheckpointError
from cfmrfn.models import CFMRFN
from cfmrfn.pretrained import CONFIG, WEIGHTS

DTYPES = {"float32": torch.float32, "float16": torch.float16}


def write(
    folder: Path,
    network: CFMRFN,
    about: About,
    dtype: str = "float32",
    described: Mapping[str, str] | None = None,
) -> None:
    """Writes both files into a folder that exists.

    Args:
        folder: path of it.
        network: what is written.
        about: what is said of it.
        dtype: a name in `DTYPES`, see `in_dtype`.
        described: `description` and `license` of timm's description of the weights.
    """
    tensors = in_dtype(network.state_dict(), dtype)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
    text = json.dumps(config(network, about, described), indent=1)
    (folder / CONFIG).write_text(text + "\n", "utf-8")


def in_dtype(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Weights with their matrices, which are nearly all of their bytes, in another dtype.

    Biases, norms and batch statistics, of which some are too small or too large for float16, stay
    as they are.
    """
    return {
        name: tensor.to(DTYPES[dtype]) if tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }


def config(
    network: CFMRFN, about: About, described: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What `config.json` holds; the arguments are those of `write`."""
    chosen = about.config.network
    size = about.image_size
    return {
        "architecture": chosen.preset,
        "num_classes": len(about.class_names),
        "num_features": network.num_features,
        "label_names": list(about.class_names),
        "model_args": {"img_size": size, **_plain(chosen.overrides())},
        "pretrained_cfg": {
            "num_classes": len(about.class_names),
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "pool_size": [size // 32, size // 32],
            "crop_pct": 1.0,
            "crop_mode": "squash",  # sides are resized each for itself, and nothing is cut off
            "interpolation": "bilinear",
            "mean": list(about.mean),
            "std": list(about.std),
            "first_conv": "image_backbone.input_layer.0",
            "classifier": "head",
            **(described or {}),
        },
        "cfmrfn": about.to_dict(),
    }


def is_one(folder: Path) -> bool:
    """Whether a folder has both files."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def about(folder: Path) -> About:
    """What the folder says of the network in it; raises as `load`."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict) or "cfmrfn" not in values:
        raise CheckpointError(f"{path} is not of a network that python -m cfmrfn.export wrote")
    return About.from_dict(values["cfmrfn"], path)


def load(folder: Path) -> tuple[CFMRFN, About]:
    """The network in a folder, in evaluation mode and float32, and what the folder says of it.

    Raises:
        CheckpointError: a file cannot be read, or they are of another network.
        ConfigError: the configuration in it is not legal.
    """
    said = about(folder)
    network = build_network(said.config, len(said.class_names))
    weights = tensor_files.read(folder / WEIGHTS)
    with fitting(f"{folder / WEIGHTS} does not fit {CONFIG}"):
        network.load_state_dict(weights)
    return network.eval(), said


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
