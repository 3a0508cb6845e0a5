"""Write a trained network for use elsewhere: `python -m cfmrfn.export RUN --format onnx`.

In the output folder, which is ready for a model hub::

    model.onnx           onnx: for onnxruntime and other runtimes, see `cfmrfn.formats.onnx_file`
    model.pt2            torch: a program of `torch.export`, in PyTorch's own operators
    config.json          safetensors: a folder that timm opens, see `cfmrfn.formats.timm_folder`
    model.safetensors
    README.md            the model card

Each file is read again and compared with the network in PyTorch before it gets its place: either
all of them appear, or none. What `--overwrite` replaces is taken out before, the card first: a kill
at that moment leaves fewer files, but no card beside weights that are not its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from cfmrfn import checkpoint, errors, trained
from cfmrfn.checkpoint import About
from cfmrfn.config import parse
from cfmrfn.errors import CheckpointError, ConfigError
from cfmrfn.formats import onnx_file, timm_folder
from cfmrfn.formats.model_card import Card, read_evaluation, read_report, set_name, terms
from cfmrfn.models import CFMRFN
from cfmrfn.models.plain import FromPixels, PlainNetwork
from cfmrfn.process import command
from cfmrfn.whole_files import whole_folder

Format = Literal["onnx", "torch", "safetensors"]

# What each format writes; the first one is what is checked.
FILES: dict[str, tuple[str, ...]] = {
    "onnx": ("model.onnx",),
    "torch": ("model.pt2",),
    "safetensors": ("model.safetensors", "config.json"),
}
CARD = "README.md"

# Largest difference from PyTorch that is taken for rounding, of outputs up to 1; of larger ones, as
# a part of the largest.
TOLERANCE = 1e-4
BATCHES = (1, 3)

Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        files: names of the files in it that were written.
        differences: by file, the largest difference from PyTorch, see `largest_difference`.
        rounding: what float16 weights cost, a sentence; None: they are as they were trained.
    """

    folder: Path
    files: Sequence[str]
    differences: dict[str, float]
    rounding: str | None = None


def export(
    path: str | Path,
    formats: Sequence[str] = ("onnx",),
    output: str | Path | None = None,
    *,
    pixels: bool = False,
    opset: int = onnx_file.OPSETS[0],
    card: bool = True,
    overwrite: bool = False,
    weights: str = "float32",
    name: str | None = None,
    results: str | Path | None = None,
) -> Exported:
    """Writes a network in one format or several.

    Args:
        path: a checkpoint, a run folder, whose `best.pt` is taken, a folder that was exported as
            safetensors, or "pretrained", the network that comes with the package.
        formats: of "onnx", "torch" and "safetensors".
        output: folder to write to. None: `export/RUN`.
        pixels: ONNX and torch files take uint8 pixels and give probabilities.
        opset: version of ONNX's operators.
        card: write a model card too.
        overwrite: replace files of an earlier export.
        weights: "float32"; or "float16", of safetensors, which are half as large, and float32 again
            when they are read.
        name: title of the card. None: that of the run.
        results: what `cfmrfn.evaluate` wrote of this network, for the card. None: its run's report.

    Raises:
        CheckpointError: the checkpoint cannot be used, or a file that was written does not do what
            the network does.
        ConfigError: an argument is not legal, a package is missing, or files are in the way.
    """
    formats = [each for each in FILES if each in _checked(formats)]
    _check_options(formats, pixels, opset, card, weights, name, results)
    source = trained.find(path)
    network, about = trained.load(source)
    about = without_paths(about)
    report = read_report(source.parent)
    evaluation = None
    if results is not None:
        evaluation = read_evaluation(Path(results))
    digests = [checkpoint.digest_of(network)]
    rounding = None
    if weights != "float32":
        rounding = _round(network, about, weights)
        digests.append(checkpoint.digest_of(network))
    if evaluation is not None and evaluation["weights"] not in digests:
        raise ConfigError(
            f"results {results} are of other weights, those of {evaluation.get('checkpoint')}; "
            "python -m cfmrfn.evaluate writes results of these"
        )
    is_of_rounded = evaluation is not None and evaluation["weights"] == digests[-1]
    measured_before = "" if is_of_rounded else " The results above were measured before that."
    run = Path(os.path.abspath(source.parent)).name
    run = run if source.stem in ("best", "model") else f"{run}-{source.stem}"
    folder = Path("export") / run if output is None else Path(output)
    names = [*(file for each in formats for file in FILES[each]), *([CARD] if card else [])]
    _check_target(folder, names, overwrite)

    # a file that is none of `names` holds weights that are too large for model.onnx
    with whole_folder(folder, last=names) as partial:
        differences = {}
        for each in formats:
            file, *_ = FILES[each]
            takes_pixels = pixels and each != "safetensors"
            inputs = [_example(about, batch, takes_pixels) for batch in BATCHES]
            if each == "safetensors":
                run_again = _write_safetensors(partial, network, about, weights, report)
            else:
                run_again = _PROGRAMS[each](partial, network, about, takes_pixels, opset)
            differences[file] = max(
                largest_difference(_expected(network, about, takes_pixels, x), run_again(x))
                for x in inputs
            )
            if differences[file] > TOLERANCE:
                raise CheckpointError(
                    f"{file} differs from the network in PyTorch by {differences[file]:.1e}, and "
                    f"at most {TOLERANCE:.0e} is rounding; nothing was written"
                )
        if card:
            text = Card(
                about=about,
                name=run if name is None else name,
                source=(source.name, _digest(source)),
                report=report,
                evaluation=evaluation,
                rounding=None if rounding is None else f"{rounding}{measured_before}",
                files={each: _digest(partial / each) for each in names if each != CARD},
                differences={file: f"{value:.1e}" for file, value in differences.items()},
                takes_pixels=pixels,
                weights=digests[0],
                has_landmarks=_has_landmarks(network),
            )
            (partial / CARD).write_text(str(text), "utf-8")
    return Exported(folder, names, differences, rounding)


def _check_options(
    formats: Sequence[str],
    pixels: bool,
    opset: int,
    card: bool,
    weights: str,
    name: str | None,
    results: str | Path | None,
) -> None:
    """Checks that each option of `export` is legal and has an effect, and that packages are there.

    Raises:
        ConfigError: else.
    """
    if opset not in onnx_file.OPSETS:
        legal = ", ".join(map(str, onnx_file.OPSETS))
        raise ConfigError(f"opset must be one of {legal}; got {opset}")
    if pixels and formats == ["safetensors"]:
        raise ConfigError("pixels is for onnx and torch files; timm normalises its images itself")
    if weights not in timm_folder.DTYPES:
        raise ConfigError(
            f"weights must be one of {', '.join(timm_folder.DTYPES)}; got {weights!r}"
        )
    if weights != "float32" and formats != ["safetensors"]:
        raise ConfigError(f"weights {weights} are for safetensors; name that format alone")
    if results is not None and not card:
        raise ConfigError("results are for the card, which was not asked for")
    if name is not None and not card:
        raise ConfigError("name is the title of the card, which was not asked for")
    if opset != onnx_file.OPSETS[0] and "onnx" not in formats:
        raise ConfigError(f"opset is for onnx files; formats are {', '.join(formats)}")
    if "onnx" in formats:
        onnx_file.require_packages("onnx", "onnxscript", "onnxruntime")


def without_paths(about: About) -> About:
    """The same, with the last part alone of each path in its configuration.

    What is given to others need not say how folders are named here.
    """
    config = about.config.without_folders()
    run = dataclasses.replace(config.run, recipe=Path(config.run.recipe).name)
    return dataclasses.replace(about, config=dataclasses.replace(config, run=run))


def largest_difference(expected: Outputs, found: Outputs) -> float:
    """The largest difference between outputs, as a part of the largest value where that exceeds 1.

    Infinite where shapes differ or a value is not finite.
    """
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape or not (one.isfinite().all() and other.isfinite().all()):
            return float("inf")
        scale = max(1.0, one.abs().max().item())
        worst = max(worst, (one - other).abs().max().item() / scale)
    return worst


# What is compared


def _example(about: About, batch: int, takes_pixels: bool) -> Tensor:
    """Images of noise, as an exported file takes them."""
    noise = torch.Generator().manual_seed(0)
    size = about.image_size
    if takes_pixels:
        shape = (batch, size, size, 3)
        return torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8)
    return torch.randn(batch, 3, size, size, generator=noise)


@torch.inference_mode()
def _expected(network: CFMRFN, about: About, takes_pixels: bool, x: Tensor) -> Outputs:
    """Outputs of the network itself for what an exported file takes."""
    if takes_pixels:
        x = x.permute(0, 3, 1, 2) / 255
        x = x.flip(1) if about.color == "BGR" else x
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (about.mean, about.std))
        x = (x - mean) / std
    logits = network(x)
    landmarks = network.landmarks(x) if _has_landmarks(network) else None
    first = logits.softmax(1) if takes_pixels else logits
    return [first] if landmarks is None else [first, landmarks]


def _has_landmarks(network: CFMRFN) -> bool:
    backbone = network.landmark_backbone
    return backbone is not None and backbone.is_trained


# Writing a format; what is returned runs the file, read again


def _exportable(
    network: CFMRFN, about: About, takes_pixels: bool, *, plain_prelu: bool
) -> PlainNetwork | FromPixels:
    plain = PlainNetwork(network, about.image_size, plain_prelu=plain_prelu)
    return FromPixels(plain, about.mean, about.std, about.color).eval() if takes_pixels else plain


def _write_onnx(
    folder: Path, network: CFMRFN, about: About, takes_pixels: bool, opset: int
) -> Callable[[Tensor], Outputs]:
    plain = _exportable(network, about, takes_pixels, plain_prelu=True)
    path = folder / FILES["onnx"][0]
    onnx_file.write(path, plain, about, _example(about, 2, takes_pixels), opset)
    return onnx_file.OnnxFile(path, "cpu").run


def _write_torch(
    folder: Path, network: CFMRFN, about: About, takes_pixels: bool, opset: int
) -> Callable[[Tensor], Outputs]:
    plain = _exportable(network, about, takes_pixels, plain_prelu=False)
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own deprecations
        program = torch.export.export(
            plain, (_example(about, 2, takes_pixels),), dynamic_shapes={"images": {0: batch}}
        )
        for node in program.graph.nodes:  # it would say where the code lies on this machine
            node.meta.pop("stack_trace", None)
        content = io.BytesIO()
        described = {"cfmrfn.json": onnx_file.metadata(about, plain)}
        torch.export.save(program, content, extra_files=described)
        path = folder / FILES["torch"][0]
        path.write_bytes(content.getvalue())
        with open(path, "rb") as file:  # PyTorch does not take any name
            module = torch.export.load(file).module()

    @torch.inference_mode()
    def run_again(images: Tensor) -> Outputs:
        outputs = module(images)
        return [outputs] if isinstance(outputs, Tensor) else outputs

    return run_again


_PROGRAMS = {"onnx": _write_onnx, "torch": _write_torch}


def _write_safetensors(
    folder: Path, network: CFMRFN, about: About, dtype: str, report: Mapping[str, Any] | None
) -> Callable[[Tensor], Outputs]:
    learned_from, allowed = set_name(about, report), terms(about, report)
    purpose = f", {allowed.purpose}" if allowed.purpose else ""
    described = {"description": f"trained on {learned_from}{purpose}"}
    if allowed.license != "unknown":
        described["license"] = allowed.license_name or allowed.license
    timm_folder.write(folder, network, about, dtype, described)
    reopened, its_about = timm_folder.load(folder)
    return lambda images: _expected(reopened, its_about, False, images)


def _round(network: CFMRFN, about: About, dtype: str) -> str:
    """Rounds a network's weights as they are written in `dtype`; returns what that costs.

    Raises:
        CheckpointError: a weight is too large for it.
    """
    x = _example(about, 16, False)
    before = _expected(network, about, False, x)
    rounded = timm_folder.in_dtype(network.state_dict(), dtype)
    if not all(tensor.isfinite().all() for tensor in rounded.values()):
        raise CheckpointError(f"weights are too large for {dtype}; leave them in float32")
    network.load_state_dict(rounded)
    after = _expected(network, about, False, x)
    probability = (before[0].softmax(1) - after[0].softmax(1)).abs().max().item()
    return (
        f"Weights are rounded to {dtype} in the file, and float32 when it is read: on 16 images of "
        f"noise that changes outputs by up to {largest_difference(before, after):.1e}, and "
        f"probabilities by up to {probability:.1e}."
    )


# Files


def _checked(formats: Sequence[str]) -> Sequence[str]:
    if not formats or not set(formats) <= set(FILES):
        raise ConfigError(
            f"format must be one or more of {', '.join(FILES)}; got {' '.join(formats) or 'none'}"
        )
    return formats


def _check_target(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Checks that nothing is in the way.

    Raises:
        ConfigError: something is.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ConfigError(f"output {folder} is a file; name a folder")
    there = {entry.name for entry in folder.iterdir()}
    if (replaced := sorted(there.intersection(names))) and not overwrite:
        raise ConfigError(
            f"{folder} has {', '.join(replaced)}; --overwrite replaces them, or choose another "
            "--output"
        )
    if replaced and CARD in there and CARD not in names:
        card = (folder / CARD).read_text("utf-8", errors="replace")
        if described := [name for name in replaced if _digest(folder / name) in card]:
            raise ConfigError(
                f"{folder} has {CARD}, the card of {', '.join(described)}, which would be "
                "replaced; write a card too, remove it, or choose another --output"
            )
    every = {name for files in FILES.values() for name in files}
    if others := sorted(there.intersection(every.difference(names))):
        raise ConfigError(
            f"{folder} has {', '.join(others)} of another export, which would stay beside the new "
            "files; name its format as well, remove them, or choose another --output"
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Export:
    """Write a trained network for use elsewhere, checked against PyTorch, with a model card.

    onnx: model.onnx, for onnxruntime and others; predict takes it too.
    torch: model.pt2, a program of torch.export, which needs PyTorch alone.
    safetensors: config.json and model.safetensors, a folder for timm:
    timm.create_model("local-dir:FOLDER", pretrained=True) after `import cfmrfn`.

    Preprocessing, class names and the run's configuration are inside the files. The batch is of any
    size, the images of the size that the network was trained on.
    """

    run: tyro.conf.Positional[str]
    """Run folder, whose best.pt is taken; a checkpoint; a folder exported as safetensors; or
    pretrained, the network that comes with the package."""
    format: tuple[Format, ...] = ("onnx",)
    """One or more, into one folder."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder for the files, made where it is missing. None: export/RUN."""
    pixels: bool = False
    """Let onnx and torch files take uint8 pixels (batch, height, width, 3) in RGB and give
    probabilities, for programs that are not in Python: normalisation and softmax are inside."""
    opset: int = onnx_file.OPSETS[0]
    """Version of ONNX's operators, 18 to 20; an older one runs in more places."""
    card: bool = True
    """Write README.md, the model card: data, results, use, limits."""
    overwrite: bool = False
    """Replace files of an earlier export, and README.md."""
    weights: Literal["float32", "float16"] = "float32"
    """Type of the weights in model.safetensors. float16 halves the file; they are float32 again
    when it is read, and what the rounding costs is printed and in the card."""
    name: str | None = None
    """Title of the card. None: the name of the run."""
    results: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """What cfmrfn.evaluate wrote of this network (evaluation/NAME.json), for the card: results with
    intervals, per class, with and without duplicates, and calibration. None: the run's report.json,
    which has fewer."""


@command.memory_options("name one --format at a time")
def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.export") -> None:
    """The command line."""
    tool = parse(Export, sys.argv[1:] if args is None else args, prog=prog)
    trained.announce(tool.run)
    exported = export(
        tool.run,
        tool.format,
        tool.output,
        pixels=tool.pixels,
        opset=tool.opset,
        card=tool.card,
        overwrite=tool.overwrite,
        weights=tool.weights,
        name=tool.name,
        results=tool.results,
    )
    for file, difference in exported.differences.items():
        print(f"{file}: largest difference from PyTorch {difference:.1e} (at most {TOLERANCE:.0e})")
    if exported.rounding is not None:
        print(exported.rounding)
    print(errors.printable(f"written to {exported.folder}: {', '.join(exported.files)}"))


if __name__ == "__main__":
    command.run(main)
