"""A trained network as the tools use it: batches of faces in, probabilities and landmarks out."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cfmrfn import checkpoint, trained
from cfmrfn.formats.onnx_file import SUFFIX, OnnxFile
from cfmrfn.models import CFMRFN
from cfmrfn.pretrained import WEIGHTS
from cfmrfn.process.distributed import World


class Predictions(NamedTuple):
    """What a classifier makes of a batch of faces.

    Attributes:
        probabilities: (batch, classes), float32 on the CPU.
        landmarks: (batch, 68, 2), x and y in pixels of the images, on the CPU; None where the
            network has no trained landmark stream.
    """

    probabilities: Tensor
    landmarks: Tensor | None


class Classifier(Protocol):
    """What `load_classifier` returns.

    Attributes:
        about: what the weights need to be used rightly, and what they are.
    """

    about: checkpoint.About

    def __call__(self, images: Tensor) -> Predictions:
        """Predictions for images (batch, 3, size, size) on the CPU, normalised as `about` says."""


class NetworkClassifier:
    """A network of PyTorch on a device."""

    def __init__(self, network: CFMRFN, about: checkpoint.About, device: torch.device) -> None:
        self.about = about
        self.device = device
        self.network = network.eval().to(device)
        backbone = network.landmark_backbone
        self.has_landmarks = backbone is not None and backbone.is_trained

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Predictions:
        """See `Classifier`."""
        images = images.to(self.device)
        landmarks = self.network.landmarks(images) if self.has_landmarks else None
        return Predictions(
            self.network(images).float().softmax(1).cpu(),
            None if landmarks is None else landmarks.float().cpu(),
        )


class OnnxClassifier:
    """A network in onnxruntime."""

    def __init__(self, file: OnnxFile) -> None:
        self.about = file.about
        self.file = file

    def __call__(self, images: Tensor) -> Predictions:
        """See `Classifier`."""
        return Predictions(*self.file(images))


def load_classifier(name: str | Path | None = None, device: str = "auto") -> Classifier:
    """The classifier of a trained network.

    Args:
        name: a checkpoint; a run folder, whose `best.pt` is taken; or what `cfmrfn.export` wrote as
            ONNX or safetensors, the file or the folder, in which `model.safetensors` comes first.
            None, or "pretrained": the network that comes with the package.
        device: "auto", or what `torch.device` takes; of an ONNX file what onnxruntime has of it.

    Raises:
        CheckpointError, ConfigError: the file cannot be used, or there is no such device.
    """
    if name is not None and not trained.is_of_package(name):
        path = trained.path_of(name)
        others = ("best.pt", WEIGHTS)
        if (path / "model.onnx").is_file() and not any((path / file).is_file() for file in others):
            path = path / "model.onnx"
        if path.suffix.lower() == SUFFIX:
            return OnnxClassifier(OnnxFile(path, device))
    file = trained.find(name)
    world = World(device)
    network, about = trained.load(file)
    return NetworkClassifier(network, about, world.device)
