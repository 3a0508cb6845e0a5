"""A network as an ONNX file, which says by itself how it is used.

Inputs and outputs; the batch is of any size, the rest is fixed::

    images          (batch, 3, size, size), float32, normalised; or, where the file takes pixels,
                    (batch, size, size, 3), uint8, RGB
    logits          (batch, classes), float32; of a file that takes pixels `probabilities`
    landmarks       (batch, 68, 2), x and y in pixels; only where the landmark stream is trained

The metadata has one entry, `cfmrfn`, JSON::

    format          version of this layout
    about           what `cfmrfn.checkpoint.About` holds
    takes           "normalised" or "pixels"
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfmrfn import tensor_files
from cfmrfn.checkpoint import About
from cfmrfn.errors import CheckpointError, ConfigError
from cfmrfn.models.plain import FromPixels, PlainNetwork

FORMAT = 1
SUFFIX = ".onnx"
OPSETS = (18, 19, 20)  # of onnxruntime from 1.14, 1.16, 1.17 on
KEY = "cfmrfn"

# Larger models do not fit one file of ONNX: their weights lie beside it, in NAME.onnx.data.
MOST_BYTES = 2**31 - 2**24


def require_packages(*names: str) -> None:
    """Checks that packages are installed.

    Raises:
        ConfigError: one is not.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX needs the package {', '.join(missing)}: pip install 'sdwa[export]'"
        )


def metadata(about: About, network: nn.Module) -> str:
    """The entry of the metadata for an exported network, in ASCII."""
    takes = "pixels" if isinstance(network, FromPixels) else "normalised"
    return json.dumps({"format": FORMAT, "about": about.to_dict(), "takes": takes})


def output_names(network: PlainNetwork | FromPixels) -> list[str]:
    """Of the outputs of an exported network."""
    plain = network.network if isinstance(network, FromPixels) else network
    assert isinstance(plain, PlainNetwork)
    first = "probabilities" if isinstance(network, FromPixels) else "logits"
    return [first, "landmarks"] if plain.has_landmarks else [first]


def write(
    path: Path,
    network: PlainNetwork | FromPixels,
    about: About,
    example: Tensor,
    opset: int = OPSETS[0],
) -> None:
    """Writes an ONNX file.

    Args:
        path: of the file.
        network: what is written.
        about: what users of the file are told.
        example: two images as the network takes them.
        opset: version of ONNX's operators.

    Raises:
        ConfigError: a package is missing.
    """
    require_packages("onnx", "onnxscript")
    import onnx

    with _quiet_exporter():
        program: Any = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=output_names(network),
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    model = program.model_proto
    # the exporter notes where the code of each operator lies on this machine
    for commented in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del commented.metadata_props[:]
    for tensor in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        del tensor.metadata_props[:]
    model.producer_name = "cfmrfn"
    model.producer_version = about.versions["sdwa"]
    model.graph.name = about.config.network.preset
    onnx.helper.set_model_props(model, {KEY: metadata(about, network)})
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save_model(
        model,
        os.fspath(path),
        save_as_external_data=size > MOST_BYTES,
        location=f"{path.name}.data",
    )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Within it, what the exporter says of its own deprecations and names is not heard."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class OnnxFile:
    """An ONNX file that `write` made, in onnxruntime, with as many threads as PyTorch has.

    Args:
        path: of the file.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Attributes:
        about: what the file says of the network.

    Raises:
        CheckpointError: it cannot be read, is damaged, or is another network's.
        ConfigError: onnxruntime is missing, or does not know the device.
    """

    def __init__(self, path: str | Path, device: str = "auto") -> None:
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"there is no ONNX file {path}")
        self._source = path.absolute(), device
        require_packages("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # threads that wait actively take the processors from those that decode images
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = _providers(device, onnxruntime.get_available_providers())
        try:
            source = path if tensor_files.has_utf8_name(path) else path.read_bytes()
            self._session = onnxruntime.InferenceSession(source, options, providers=providers)
        except Exception as error:  # of several types, by version
            raise CheckpointError(f"{path} {_why_not(path, error)}") from None
        self.about, self.takes_pixels = _read_metadata(path, self._session)
        _check_interface(path, self._session, self.about, self.takes_pixels)
        self._mean = torch.tensor(self.about.mean).view(3, 1, 1)
        self._std = torch.tensor(self.about.std).view(3, 1, 1)

    def __reduce__(self) -> tuple[type[OnnxFile], tuple[Path, str]]:
        # onnxruntime's sessions cannot be copied, nor sent to another process
        return OnnxFile, self._source

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Probabilities and landmarks.

        Args:
            images: (batch, 3, size, size) on the CPU, normalised as `about` says, whatever the file
                itself takes.

        Returns:
            (batch, classes), and (batch, 68, 2) or None, on the CPU.
        """
        images = images.float()
        if self.takes_pixels:
            pixels = ((images * self._std + self._mean) * 255).round().clamp(0, 255)
            pixels = pixels if self.about.color == "RGB" else pixels.flip(1)
            images = pixels.to(torch.uint8).permute(0, 2, 3, 1)
        first, *landmarks = self.run(images)
        probabilities = first if self.takes_pixels else first.softmax(1)
        return probabilities, landmarks[0] if landmarks else None

    def run(self, images: Tensor) -> list[Tensor]:
        """The file's own outputs, of images as it takes them itself."""
        results = self._session.run(None, {"images": images.contiguous().numpy()})
        return [torch.from_numpy(result) for result in results]


def _providers(device: str, available: list[str]) -> list[Any]:
    """What onnxruntime runs on, in order of preference.

    Raises:
        ConfigError: it does not know the device.
    """
    try:
        kind, index = ("auto", None) if device == "auto" else _parts(torch.device(device))
    except RuntimeError as error:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N; got {device!r}") from error
    has_cuda = "CUDAExecutionProvider" in available
    if kind not in ("auto", "cpu", "cuda") or (kind == "cuda" and not has_cuda):
        raise ConfigError(
            f"device {device} is not one that onnxruntime has here: {', '.join(available)}; take "
            "--device cpu, or for NVIDIA's GPUs install onnxruntime-gpu in place of onnxruntime"
        )
    cuda = [("CUDAExecutionProvider", {"device_id": index or 0})] if has_cuda else []
    return [*(cuda if kind != "cpu" else []), "CPUExecutionProvider"]


def _parts(device: torch.device) -> tuple[str, int | None]:
    return device.type, device.index


def _why_not(path: Path, error: Exception) -> str:
    """Why onnxruntime did not take a file."""
    try:
        instead = tensor_files.what_else(path)
    except OSError as failure:
        return f"cannot be read: {failure.strerror or failure}"
    if instead is None or not instead.startswith("damaged"):
        return f"is no ONNX file, but {instead or 'a file of PyTorch'}"
    reason = " ".join(str(error).split())
    # the versions say so, or name the missing file and no more
    if "external" in reason.lower() or ".onnx.data" in reason:
        return f"has its weights in a file of their own, which is not beside it: {reason}"
    return f"is damaged, or no ONNX file; download or copy it again: {reason}"


def _read_metadata(path: Path, session: Any) -> tuple[About, bool]:
    """What the file says of itself, and whether it takes pixels.

    Raises:
        CheckpointError: it does not say so, or not as this version reads it.
    """
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise CheckpointError(
            f"{path} does not say which classes and which normalisation it has: it was not written "
            "by python -m cfmrfn.export, or its metadata were removed since"
        )
    return read_metadata(path, text)


def read_metadata(path: Path, text: str) -> tuple[About, bool]:
    """What `metadata` wrote, and whether the network takes pixels.

    Raises:
        CheckpointError: it is not that, or of another version.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} has damaged metadata: {error}") from error
    if not isinstance(values, dict) or values.get("takes") not in ("normalised", "pixels"):
        raise CheckpointError(f"{path} has metadata that cfmrfn.export does not write")
    if values.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is in format {values.get('format')!r}, and this version of cfmrfn reads "
            f"format {FORMAT}; use the version that wrote it"
        )
    return About.from_dict(values.get("about"), path), values["takes"] == "pixels"


def _check_interface(path: Path, session: Any, about: About, takes_pixels: bool) -> None:
    """Checks that inputs and outputs are as the metadata say.

    Raises:
        CheckpointError: they are not.
    """
    size = about.image_size
    image = (size, size, 3) if takes_pixels else (3, size, size)
    legal = {
        "images": image,
        "probabilities" if takes_pixels else "logits": (len(about.class_names),),
        "landmarks": (68, 2),
    }
    places = [*session.get_inputs(), *session.get_outputs()]
    names = [place.name for place in places]
    found = {place.name: tuple(place.shape[1:]) for place in places}
    if names != list(legal)[: len(names)] or len(names) < 2 or found.items() - legal.items():
        raise CheckpointError(
            f"{path} has inputs and outputs {found}, and its metadata say {legal}: one of both was "
            "changed after the export"
        )
