"""Checkpoints: whole or absent on disk, read without unpickling code, complete in meaning.

A checkpoint is a dictionary of tensors and plain values::

    format     version of this layout
    model      weights to evaluate (the moving average, where there is one)
    about      what the weights need to be used rightly, see `About`
    training   what resuming needs; only in `last.pt`
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

import sdwa
from cfmrfn import tensor_files
from cfmrfn.config import Config, from_mapping
from cfmrfn.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cfmrfn.errors import CheckpointError, ConfigError, argument, brief, first_of
from cfmrfn.faces import Framing, is_framing
from cfmrfn.models import CFMRFN
from cfmrfn.whole_files import whole

FORMAT = 1


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes `checkpoint`; at every moment `path` is the old file or the new one, complete.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full.
    """
    try:
        with whole(path) as partial, open(partial, "wb") as file:
            torch.save({"format": FORMAT, **checkpoint}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # torch.save hides a failed write behind errors about its own position in the file
        reason: BaseException = error
        while reason.__context__ is not None:
            reason = reason.__context__
        why = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
        kept = "the checkpoint before it is intact" if path.exists() else "there is none before it"
        raise CheckpointError(
            f"cannot write {path}: {why}; {kept}. Once files can be written there, go on with "
            f"--resume {argument(path.parent)}"
        ) from error
    _sync_folder(path.parent)


def load(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Args:
        path: of the file, or of a run folder, whose `best.pt` is read.

    Raises:
        CheckpointError: there is none, it is damaged, or it is something else.
    """
    path = file_of(path)
    checkpoint = tensor_files.read(path)
    if not isinstance(checkpoint, dict) or "format" not in checkpoint:
        kind = " (safetensors)" if tensor_files.is_safetensors(path) else ""
        raise CheckpointError(
            f"{path} is no checkpoint of cfmrfn, but {_contents(checkpoint)}{kind}; here a file is "
            "needed that cfmrfn.train wrote, which knows its classes and its network"
        )
    if type(checkpoint["format"]) is not int or checkpoint["format"] != FORMAT:
        raise CheckpointError(
            f"{path} is a checkpoint in format {brief(checkpoint['format'])}, and this version of "
            f"cfmrfn reads format {FORMAT}; use the version that wrote it"
        )
    return checkpoint


def file_of(path: str | Path) -> Path:
    """The checkpoint at `path`, which may be a run folder: then its `best.pt`.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        folder, path = path, path / "best.pt"
        if not path.is_file():
            raise CheckpointError(
                f"there is no best.pt in {folder}; a run writes it after its first epoch"
            )
    elif not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    return path


def _contents(content: Any) -> str:
    """What a foreign file holds, in words."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    tensors = sum(isinstance(value, torch.Tensor) for value in content.values())
    if tensors == len(content):
        return f"weights alone, {tensors} tensors"
    return f"a dictionary of {', '.join(first_of(list(map(brief, content)), 4))}"


@dataclass(frozen=True)
class About:
    """What a checkpoint says of itself: all that its weights need to be used rightly elsewhere.

    Attributes:
        class_names: expressions, in the order of the logits.
        color: "RGB" or "BGR", the channel order that the network sees.
        mean, std: of the normalisation, by position of the channel.
        image_size: side of the square network input, in pixels.
        config: the configuration of the run, with the network's name and options.
        versions: of Python and of the packages that wrote the checkpoint.
        epoch: epochs trained.
        chosen_on: split that chose the epoch, "val" or "test"; None: it is the last.
        framing: of the faces in the training images, see `cfmrfn.faces.Framing`; None: unknown.
        layout: that the training images were read as, see `cfmrfn.data.LAYOUTS`; None: unknown.
    """

    class_names: tuple[str, ...]
    color: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    config: Config
    versions: dict[str, str]
    epoch: int = 0
    chosen_on: str | None = None
    framing: Framing | None = None
    layout: str | None = None

    @classmethod
    def of_run(
        cls,
        config: Config,
        class_names: tuple[str, ...],
        framing: Framing | None = None,
        layout: str | None = None,
    ) -> About:
        """Of a run that has not trained yet."""
        return cls(
            class_names=class_names,
            color=config.images.color,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            image_size=config.images.image_size,
            config=config,
            versions=versions(),
            framing=framing,
            layout=layout,
        )

    @property
    def is_drawn(self) -> bool:
        """Whether it learned from drawn faces; older files know only what was asked for."""
        images = self.config.images
        return images.data is None or "drawn" in (self.layout, images.layout)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in the file."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        framing = None if self.framing is None else [list(point) for point in self.framing]
        return {**plain, "config": self.config.flat(), "framing": framing}

    @classmethod
    def from_dict(cls, values: Any, source: Path) -> About:
        """From what `to_dict` gave; `source` is named in errors.

        Raises:
            CheckpointError: a value is missing or not legal.
            ConfigError: the configuration in it is not legal.
        """
        if not isinstance(values, dict):
            raise CheckpointError(
                f"{source} was not written by cfmrfn.train: 'about' is {brief(values)}"
            )
        values = {"framing": None, "layout": None, **values}  # older files have none
        for name, (is_legal, legal) in LEGAL_ABOUT.items():
            if name not in values:
                raise CheckpointError(f"{source} lacks a part: '{name}' of 'about'")
            if not is_legal(values[name]):
                raise CheckpointError(
                    f"{source} was not written by cfmrfn.train: '{name}' of 'about' must be "
                    f"{legal}, got {brief(values[name])}"
                )
        fields: dict[str, Any] = {
            name: tuple(values[name]) if isinstance(values[name], list) else values[name]
            for name in LEGAL_ABOUT
        }
        if fields["framing"] is not None:
            fields["framing"] = tuple((float(x), float(y)) for x, y in fields["framing"])
        return cls(**{**fields, "config": from_mapping(fields["config"], str(source))})


def versions() -> dict[str, str]:
    """Of Python, and of the packages that results depend on."""
    return {
        "python": platform.python_version(),
        "sdwa": sdwa.__version__,
        "timm": timm.__version__,
        "torch": str(torch.__version__),  # of a subclass of str, which weights_only refuses
        "torchvision": str(torchvision.__version__),
    }


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(text, str) for entry in value.items() for text in entry
    )


def _are_three_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(number, float | int) for number in value)
    )


# Name in `about` -> whether a value is legal, and what is.
LEGAL_ABOUT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "class_names": (_are_names, "a list of names"),
    "color": (lambda value: value in ("RGB", "BGR"), "RGB or BGR"),
    "mean": (_are_three_numbers, "three numbers"),
    "std": (_are_three_numbers, "three numbers"),
    "image_size": (lambda value: isinstance(value, int), "an integer"),
    "config": (lambda value: isinstance(value, dict), "a dictionary"),
    "versions": (_are_texts, "a dictionary of texts"),
    "epoch": (lambda value: isinstance(value, int), "an integer"),
    "chosen_on": (lambda value: value in ("val", "test", None), "val, test or None"),
    "framing": (lambda value: value is None or is_framing(value), "five points, or None"),
    "layout": (lambda value: value is None or isinstance(value, str), "a name, or None"),
}


def build_network(config: Config, num_classes: int) -> CFMRFN:
    """The network of a configuration, with random weights.

    Raises:
        ConfigError: there is no such preset, or it does not take these options.
    """
    network = config.network
    presets = timm.list_models("cfmrfn_*")
    if network.preset not in presets:
        raise ConfigError(f"model must be one of {', '.join(presets)}; got {network.preset!r}")
    try:
        built: CFMRFN = timm.create_model(
            network.preset,
            num_classes=num_classes,
            img_size=config.images.image_size,
            **network.overrides(),
        )
        # as convolutions run
        return built.to(memory_format=torch.channels_last)
    except ValueError as error:
        raise ConfigError(f"cannot build {network.preset}: {error}") from error


def digest_of(network: nn.Module) -> str:
    """SHA-256 of a network's weights and statistics, whatever file they are in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_network(path: str | Path) -> tuple[CFMRFN, About]:
    """The network of a checkpoint, in evaluation mode, and what the checkpoint says of itself.

    Args:
        path: of the file, or of a run folder, whose `best.pt` is read.

    Raises:
        CheckpointError: the file cannot be read, or lacks a part.
        ConfigError: its configuration is not legal.
    """
    path = file_of(path)
    checkpoint = load(path)
    about = About.from_dict(part(checkpoint, "about", path), path)
    network = build_network(about.config, len(about.class_names))
    with fitting(f"{path} does not fit its own network"):
        network.load_state_dict(part(checkpoint, "model", path))
    return network.eval(), about


@contextlib.contextmanager
def fitting(otherwise: str) -> Iterator[None]:
    """Within it, values of a file are used that may be anything.

    Raises:
        CheckpointError: they are not what is needed; its text begins with `otherwise`.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # PyTorch's own, and Python's for values of other types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{otherwise}: {reason[:500]}") from error


def load_training(path: str | Path) -> tuple[dict[str, Any], About]:
    """What resuming needs, from a `last.pt`; and what it says of itself.

    Raises:
        CheckpointError: the file cannot be read, or is no `last.pt`.
    """
    path = Path(path)
    saved = load(path)
    training = part(saved, "training", path)
    if not isinstance(training, dict):
        raise CheckpointError(f"{path}: 'training' must be a dictionary, got {brief(training)}")
    return training, About.from_dict(part(saved, "about", path), path)


def part(checkpoint: dict[str, Any], name: str, path: Path) -> Any:
    """`checkpoint[name]`; raises CheckpointError where there is none."""
    if name not in checkpoint:
        raise CheckpointError(f"{path} lacks a part: '{name}'")
    return checkpoint[name]


def _sync_folder(folder: Path) -> None:
    """Makes a renaming in `folder` last through a power cut, where the file system can.

    CIFS, vboxsf and Windows cannot; the file is whole under its name all the same.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
