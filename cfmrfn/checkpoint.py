"""Checkpoints: whole or absent on disk, read without unpickling code, complete in meaning.

A checkpoint is a dictionary of tensors and plain values::

    format     version of this layout
    model      weights to evaluate (the moving average, where there is one)
    about      class_names, color, mean, std, image_size, config, epoch, chosen_on, versions, ...
    training   what resuming needs; only in `last.pt`
"""

from __future__ import annotations

import os
import platform
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

import sdwa
from cfmrfn.config import Config, from_mapping
from cfmrfn.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cfmrfn.errors import CheckpointError, ConfigError
from cfmrfn.models import CFMRFN

FORMAT = 1


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write `checkpoint`; at every moment `path` is the old file or the new one, complete.

    Raises `CheckpointError` where it cannot be written, a full disk for one.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **checkpoint}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch.save covers a failed write by errors about its own place in the file
        reason: BaseException = error
        while reason.__context__ is not None:
            reason = reason.__context__
        kept = "; the checkpoint before it is intact" if path.exists() else ""
        raise CheckpointError(f"cannot write {path}: {reason}{kept}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Raises `CheckpointError`."""
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with warnings.catch_warnings():
            # of foreign files' pickle protocol, beside the error below
            warnings.simplefilter("ignore")
            checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error type of its own
        raise CheckpointError(f"{path} is damaged, or no checkpoint of cfmrfn") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of cfmrfn in format {FORMAT}")
    return checkpoint


def describe(config: Config, class_names: tuple[str, ...]) -> dict[str, Any]:
    """What weights need to be used rightly elsewhere: the constant part of `about`."""
    return {
        "class_names": list(class_names),
        "color": config.images.color,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "image_size": config.images.image_size,
        "config": config.flat(),
        "versions": {
            "python": platform.python_version(),
            "sdwa": sdwa.__version__,
            "timm": timm.__version__,
            "torch": str(torch.__version__),  # a subclass of str, which weights_only refuses
            "torchvision": str(torchvision.__version__),
        },
    }


def build_network(config: Config, num_classes: int) -> CFMRFN:
    """The network of a configuration, with random weights."""
    network = config.network
    presets = timm.list_models("cfmrfn_*")
    if network.model not in presets:
        raise ConfigError(f"model must be one of {', '.join(presets)}; got {network.model!r}")
    try:
        built: CFMRFN = timm.create_model(
            network.model,
            num_classes=num_classes,
            img_size=config.images.image_size,
            **network.overrides(),
        )
        return built
    except ValueError as error:
        raise ConfigError(f"cannot build {network.model}: {error}") from error


def load_network(path: Path) -> tuple[CFMRFN, dict[str, Any]]:
    """The network of a checkpoint, in evaluation mode, and what the checkpoint says about it."""
    checkpoint = load(path)
    try:
        about = checkpoint["about"]
        config = from_mapping(about["config"], str(path))
        network = build_network(config, len(about["class_names"]))
        network.load_state_dict(checkpoint["model"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} lacks a part: {' '.join(str(error).split())}") from error
    return network.eval(), about


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
