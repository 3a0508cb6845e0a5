"""Weights that come with the package, one folder per network, named as its preset.

::

    cfmrfn_tiny/config.json, model.safetensors   a trained network, as `cfmrfn.timm_folder` has it
    cfmrfn_tiny/README.md                        its card
    landmarks/cfmrfn_tiny.safetensors            a landmark backbone, for the stream that is frozen
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def network(preset: str) -> Path | None:
    """The folder of the trained network of a preset; None: none comes with the package."""
    folder = FOLDER / preset
    return folder if (folder / "model.safetensors").is_file() else None


def landmarks(preset: str) -> Path | None:
    """The weights of a preset's landmark backbone; None: none come with the package."""
    preset = {"cfmrfn_equations": "cfmrfn_base"}.get(preset, preset)  # they have the same
    path = FOLDER / "landmarks" / f"{preset}.safetensors"
    return path if path.is_file() else None
