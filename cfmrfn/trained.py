"""Trained networks of PyTorch by what users name them with, whatever wrote them.

A name is a checkpoint (`best.pt`, `last.pt`); a run folder, whose `best.pt` is taken; a folder that
`cfmrfn.export` wrote as safetensors, or the `model.safetensors` in it; or `pretrained`, the network
that comes with the package. A file or folder called `pretrained` is `./pretrained`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cfmrfn import checkpoint, errors, pretrained
from cfmrfn.checkpoint import About
from cfmrfn.data.files import IMAGE_SUFFIXES, find_images, why_no_image
from cfmrfn.data.reading import HEIC_SUFFIXES
from cfmrfn.errors import ConfigError
from cfmrfn.formats import timm_folder
from cfmrfn.models import CFMRFN

Name = str | os.PathLike[str]


def find(name: Name | None = None, preset: str = pretrained.PRESET) -> Path:
    """The file with the weights of a network.

    Args:
        name: see the module. None: the network that comes with the package.
        preset: of that network.

    Raises:
        CheckpointError: there is none at that path.
        ConfigError: none of that preset comes with the package, or the name is no path.
    """
    if name is None or is_of_package(name):
        folder = pretrained.network(preset)
        if folder is None:
            raise ConfigError(
                f"no weights of {preset} come with the package; give a checkpoint: python -m "
                "cfmrfn.train makes one"
            )
        return folder / pretrained.WEIGHTS
    path = path_of(name)
    if path.is_dir() and not (path / "best.pt").is_file() and timm_folder.is_one(path):
        return path / pretrained.WEIGHTS
    return checkpoint.file_of(path)


def path_of(name: Name) -> Path:
    """A name as a path.

    Raises:
        ConfigError: it is neither text nor a path, it is empty, or an address on a network.
    """
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise ConfigError(f"a checkpoint must be given by its path, got {errors.brief(name)}")
    refuse_address(name)
    return Path(name)


def refuse_address(name: Name) -> None:
    """Checks that a name is not an address on a network.

    Raises:
        ConfigError: it is.
    """
    if "://" in os.fspath(name) and not os.path.exists(name):
        raise ConfigError(f"{name} is an address: download it, and name the file")


def load(file: Path) -> tuple[CFMRFN, About]:
    """The network whose weights are in a file that `find` gave, and what is said of it there.

    Raises:
        CheckpointError: the file cannot be read, or lacks a part.
        ConfigError: its configuration is not legal.
    """
    return timm_folder.load(file.parent) if is_exported(file) else checkpoint.load_network(file)


def about(file: Path) -> About:
    """What `load` gives beside the network; raises the same."""
    if is_exported(file):
        return timm_folder.about(file.parent)
    return About.from_dict(checkpoint.part(checkpoint.load(file), "about", file), file)


def is_exported(file: Path) -> bool:
    """Whether it is the `model.safetensors` of a folder that `cfmrfn.export` wrote."""
    return file.name == pretrained.WEIGHTS and timm_folder.is_one(file.parent)


def is_of_package(name: Name | None) -> bool:
    """Whether a name is that of the network that comes with the package."""
    return name is None or name == pretrained.NAME


def announce(name: Name | None) -> None:
    """Says on stderr which weights are used, if they are those that come with the package.

    Raises:
        ConfigError: none come with it.
    """
    if not is_of_package(name):
        return
    folder = find(name).parent
    described = (pretrained.config(folder.name) or {})["pretrained_cfg"]
    what = f", {described['description']}" if "description" in described else ""
    text = f"{folder.name} that comes with the package{what}; its card: {folder / 'README.md'}"
    print(errors.printable(text), file=sys.stderr)


def split_names(names: Sequence[str], also: Sequence[str] = ()) -> tuple[str | None, Sequence[str]]:
    """The network among the names of a command line, and the names of pictures after it.

    The network is the first, unless that is a picture, or a folder with pictures and without a
    network; then it is None. So a first name that is nothing at all is a network that cannot be
    found, and never a picture that is passed over.

    Args:
        names: a network or none, then files and folders.
        also: suffixes, in lower case, of files that are taken beside pictures.

    Raises:
        ConfigError: as for `check_names`, or the first is a folder with neither of them.
    """
    check_names(names)
    if names and not _is_picture(names[0], also):
        if os.path.isdir(names[0]) and not _is_of_network(names[0]):
            raise ConfigError(f"folder {names[0]} has neither a network nor pictures")
        return names[0], names[1:]
    return None, names


def check_names(names: Sequence[str]) -> None:
    """Checks a network or none, then pictures and videos.

    Raises:
        ConfigError: a name is an address on a network or a pipe, or one after the first is a
            network.
    """
    for place, name in enumerate(names):
        refuse_address(name)
        if name == "-" or (not place and Path(name).is_fifo()):
            raise ConfigError(
                f"pictures must be files: save what {name} gives in one, and name that"
            )
        if place and _is_of_network(name):
            raise ConfigError(f"{name} is a network: name it before the pictures, and only one")


# What a run or an export leaves in its folder.
_OF_NETWORKS = ("best.pt", "last.pt", "config.yaml", pretrained.WEIGHTS, "model.onnx", "model.pt2")
_SUFFIXES_OF_NETWORKS = (".pt", ".pth", ".safetensors", ".onnx", ".pt2")


def _is_of_network(name: str) -> bool:
    """Whether it is the file of a network, or a folder that a run or an export has left."""
    if os.path.isdir(name):
        return any(os.path.exists(os.path.join(name, file)) for file in _OF_NETWORKS)
    return os.path.splitext(name)[1].lower() in _SUFFIXES_OF_NETWORKS


def _is_picture(name: str, also: Sequence[str]) -> bool:
    if name == pretrained.NAME:
        return False
    if os.path.isdir(name):
        return not _is_of_network(name) and bool(find_images(name, also).paths)
    if os.path.splitext(name)[1].lower() in (*IMAGE_SUFFIXES, *HEIC_SUFFIXES, *also):
        return True
    return os.path.isfile(name) and why_no_image(name) is None
