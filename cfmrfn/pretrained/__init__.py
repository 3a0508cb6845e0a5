"""Weights that come with the package, one folder per network, named as its preset.

::

    cfmrfn_tiny/config.json, model.safetensors   a trained network, see `cfmrfn.formats.timm_folder`
    cfmrfn_tiny/README.md                        its card
    landmarks/cfmrfn_tiny.safetensors            a landmark backbone, for the stream that is frozen
    landmarks/README.md                          the card of all of these
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

NAME = "pretrained"  # what stands for the network that comes with the package, where a path may
PRESET = "cfmrfn_tiny"  # of that network, where none is named

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def network(preset: str) -> Path | None:
    """The folder of the trained network of a preset; None: none comes with the package."""
    folder = FOLDER / preset
    return folder if (folder / WEIGHTS).is_file() else None


def config(preset: str) -> dict[str, Any] | None:
    """What `config.json` there holds; None: none comes with the package.

    Its `pretrained_cfg` is as timm makes it of that file: it also has the names of the classes, and
    in which `file` the weights are.
    """
    folder = network(preset)
    if folder is None:
        return None
    values: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
    values["pretrained_cfg"] |= {
        "label_names": values["label_names"],
        "file": str(folder / WEIGHTS),
    }
    return values


def landmarks(preset: str) -> Path | None:
    """The weights of a preset's landmark backbone; None: none come with the package."""
    preset = {"cfmrfn_equations": "cfmrfn_base"}.get(preset, preset)  # they have the same
    path = FOLDER / "landmarks" / f"{preset}.safetensors"
    return path if path.is_file() else None
