"""The weights that a new run starts from: which, and into the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable
from typing import Literal

from cfmrfn import pretrained
from cfmrfn.checkpoint import About, build_network
from cfmrfn.config import Config, NetworkConfig
from cfmrfn.errors import ConfigError
from cfmrfn.models import CFMRFN
from cfmrfn.models.cfmrfn import FREEZABLE
from cfmrfn.weights import public_weights


def with_network_of_init(config: Config) -> Config:
    """The configuration with what it leaves open of the network as in the file to start from.

    So the network of a checkpoint needs no options, and those that are given win over it.

    Raises:
        CheckpointError, ConfigError: as for `public_weights.read_source`.
    """
    network = config.network
    if network.init is not None:
        source = public_weights.read_source(network.init, network.model)
        network = network.completed_by(source.network or NetworkConfig(gray=source.is_gray))
    return dataclasses.replace(config, network=dataclasses.replace(network, model=network.preset))


def with_chosen_landmarks(config: Config) -> Config:
    """The configuration of a new run with the weights of the landmark backbone named.

    They stay None where the file to start from has them, and without a landmark stream. In the
    configurations of former runs None is that, too, or random weights.

    Raises:
        ConfigError: random weights are asked for, but the file to start from has others.
        CheckpointError: as for `public_weights.read_source`.
    """
    network = config.network
    if network.streams == "expression":
        return config
    if (
        network.init is not None
        and "landmark backbone" in public_weights.read_source(network.init).parts
    ):
        if network.landmarks == "random":
            raise ConfigError(
                f"landmarks random contradicts --init {network.init}, which has a landmark "
                "backbone: leave one out"
            )
        return config
    if network.landmarks is not None:
        return config
    chosen: Literal["package", "random"]
    chosen = "random" if pretrained.landmarks(network.preset) is None else "package"
    return dataclasses.replace(config, network=dataclasses.replace(network, landmarks=chosen))


def load(model: CFMRFN, config: Config, about: About) -> list[str]:
    """Loads the weights that a new run starts from, and tells of them.

    Args:
        model: that is trained.
        config: of the run, completed by `with_network_of_init` and `with_chosen_landmarks`.
        about: the run.

    Returns:
        Lines for the log.

    Raises:
        CheckpointError, ConfigError: there are none, they do not fit, or what is frozen has none.
    """
    lines = []
    network = config.network
    known = set() if network.ir50 is None else {"expression backbone"}
    if network.init is not None:
        try:
            source = public_weights.read_source(network.init, network.model)
            known |= source.parts
            lines.append(str(public_weights.load_init(model, source, about)))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot start from {network.init}: {error}") from error
    lines += _load_backbones(model, network)
    if network.landmarks == "package":
        lines[-1] = "landmark backbone: weights that come with the package, learnt from drawn faces"
    _check_frozen(model, config.optim.freeze, known)
    backbone = model.landmark_backbone
    if model.image_backbone is not None and "expression backbone" not in known:
        lines.append("random weights in the expression backbone")
    if backbone is not None and not backbone.is_trained:
        lines.append("random weights in the landmark backbone, which is not trained")
    return lines


def check_backbones(config: Config) -> None:
    """Checks the files of backbones that options name, before data are drawn or opened.

    Raises:
        CheckpointError, ConfigError: as for `load`.
    """
    network = config.network
    if network.ir50 is not None or network.landmarks not in (None, "package", "random"):
        _load_backbones(build_network(config, 2), network)


def _load_backbones(model: CFMRFN, network: NetworkConfig) -> list[str]:
    """Loads the weights that `ir50` and `landmarks` name, and tells of them; raises as `load`."""
    landmarks = network.landmarks
    if landmarks == "package":
        landmarks = pretrained.landmarks(network.preset)
        if landmarks is None:
            raise ConfigError(
                f"no landmark backbone for {network.preset} comes with the package: leave "
                "--landmarks out, or make weights by python -m cfmrfn.landmarks train"
            )
    elif landmarks == "random":
        landmarks = None
    paths = {"expression": network.ir50, "landmark": landmarks}
    loaders = {"expression": public_weights.load_ir50, "landmark": public_weights.load_landmarks}
    lines = []
    for name, path in paths.items():
        if path is not None:
            try:
                lines.append(str(loaders[name](model, path)))
            except (OSError, ValueError) as error:
                raise ConfigError(f"cannot load the {name} backbone: {error}") from error
    return lines


def _check_frozen(model: CFMRFN, frozen: Iterable[str], known: Container[str]) -> None:
    """Checks that what will not be trained has weights to keep.

    Args:
        model: that is trained.
        frozen: as `CFMRFN.freeze` takes it.
        known: those of `public_weights.PARTS` whose weights were loaded.

    Raises:
        ConfigError: a part to freeze would stay random.
    """
    own = dict(model.named_parameters())
    for choice in frozen:
        random = [
            part
            for part, prefix in public_weights.PARTS.items()
            if prefix.rstrip(".") in FREEZABLE[choice]
            and public_weights.has_part(prefix, own)
            and part not in known
        ]
        if random:
            source = "--init or --ir50" if random == ["expression backbone"] else "--init"
            raise ConfigError(
                f"freeze {choice} would keep random weights in the {' and the '.join(random)}: "
                f"give others with {source}, or leave --freeze out"
            )
