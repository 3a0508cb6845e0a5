"""Classify images: `python -m cfmrfn.predict CHECKPOINT IMAGES...`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from cfmrfn import checkpoint, errors
from cfmrfn.batches import UNREADABLE_LABEL, default_workers, evaluation_loader
from cfmrfn.config import check_at_least, parse
from cfmrfn.data import Sample, find_images
from cfmrfn.distributed import World
from cfmrfn.errors import ConfigError, DataError
from cfmrfn.inference import PredictionTable, open_table, progress_bar, reason_of

File = str | os.PathLike[str]


def predict(
    path: str | Path,
    images: File | Sequence[File],
    batch_size: int = 32,
    device: str = "auto",
    *,
    workers: int | None = 0,
    on_broken: str = "error",
) -> Iterator[dict[str, float] | None]:
    """Probabilities by class name for each image file, in order.

    The whole image is taken as the face, as in the training data: crop and align it first.

    Args:
        path: of a checkpoint, or of a run folder, whose `best.pt` is taken.
        images: one file or several.
        batch_size: images at a time.
        device: "auto", or what `torch.device` takes.
        workers: processes that decode images. None: one per spare core, at most 8, and none for few
            images.
        on_broken: what an image does that cannot be read: "error", or "skip", which gives None in
            its place.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be used.
        DataError: an image cannot be read.
    """
    if isinstance(images, (str, os.PathLike)):
        images = [images]
    samples = [Sample(os.fspath(image), 0) for image in images]
    network, about = checkpoint.load_network(path)
    answers = _classify(network, about, samples, batch_size, workers, World(device))
    for sample, probabilities in zip(samples, answers, strict=True):
        if probabilities is not None:
            yield dict(zip(about.class_names, probabilities, strict=True))
        elif on_broken == "skip":
            yield None
        else:
            raise DataError(f"cannot read image {reason_of(sample)}")


@torch.inference_mode()
def _classify(
    network: nn.Module,
    about: checkpoint.About,
    samples: Sequence[Sample],
    batch_size: int,
    workers: int | None,
    world: World,
) -> Iterator[list[float] | None]:
    """Probabilities of each sample, None where it cannot be read."""
    if workers is None:  # starting one takes longer than it saves on its first batch
        workers = min(default_workers(), (len(samples) - 1) // batch_size)
    network.to(world.device)
    loader: DataLoader[tuple[Tensor, Tensor]] = evaluation_loader(
        samples, about, batch_size=batch_size, world=world, workers=workers, on_broken="mark"
    )
    for batch, labels in loader:
        probabilities = network(batch.to(world.device)).softmax(1).tolist()
        for label, values in zip(labels.tolist(), probabilities, strict=True):
            yield None if label == UNREADABLE_LABEL else values


@dataclass(frozen=True)
class Found:
    """Image files, and remarks on what was given beside them: `empty` names folders without any."""

    files: list[str]
    left_out: list[str]
    empty: list[str]


def image_files(paths: Sequence[Path]) -> Found:
    """The files among `paths`, and in place of a folder the images in it, by name.

    Raises:
        ConfigError: there are no images.
    """
    files, left_out, empty = [], [], []
    for path in paths:
        if not path.is_dir():
            files.append(str(path))
            continue
        found = find_images(path)
        files += found.paths
        left_out += [
            f"left out of {path}: {count}, {reason}" for reason, count in found.left_out.items()
        ]
        if not found.paths:
            empty.append(f"there are no images in folder {path}")
    if not files:
        raise ConfigError("; ".join([*(empty or ["no images were given"]), *left_out]))
    return Found(files, left_out, empty)


@dataclass(frozen=True)
class Predict:
    """Print the most likely expressions of each image, which shows one cropped face.

    An image that cannot be read is named on stderr; the others are printed, and the status is 1.
    """

    checkpoint: tyro.conf.Positional[Path]
    """best.pt or last.pt of a run, or the run folder, whose best.pt is taken."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, or folders of them."""
    top: int = 3
    """Expressions to print for each image."""
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write each image's path, prediction and probabilities to this CSV file."""
    batch_size: int = 32
    """Images at a time."""
    workers: int | None = None
    """Processes that decode images. None: one per spare core, at most 8; none for few images."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..., mps; auto takes the NVIDIA or AMD GPU where there is one, else the
    CPU."""

    def __post_init__(self) -> None:
        check_at_least(self, top=1, batch_size=1, workers=0)


@errors.memory_options("lower --batch-size, or take --device cpu")
def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.predict") -> None:
    """The command line."""
    tool = parse(Predict, sys.argv[1:] if args is None else args, prog=prog)
    images = image_files(tool.images)
    for remark in (*images.left_out, *images.empty):
        print(remark, file=sys.stderr)
    network, about = checkpoint.load_network(tool.checkpoint)
    samples = [Sample(file, 0) for file in images.files]
    answers = _classify(network, about, samples, tool.batch_size, tool.workers, World(tool.device))
    unreadable = 0
    with ExitStack() as stack:
        table = None
        if tool.csv is not None:
            file = stack.enter_context(open_table(tool.csv))
            table = PredictionTable(file, about.class_names, with_labels=False)
        # where lines appear on the terminal, they show the progress
        bar = stack.enter_context(progress_bar(len(samples), shown=not sys.stdout.isatty()))
        for sample, probabilities in zip(samples, answers, strict=True):
            if table is not None:
                table.write(sample.path, probabilities)
            if probabilities is None:
                unreadable += 1
                tqdm.write(f"cannot read image {reason_of(sample)}", file=sys.stderr)
            else:
                named = zip(about.class_names, probabilities, strict=True)
                ranked = sorted(named, key=lambda item: -item[1])[: tool.top]
                scores = "  ".join(f"{name} {value:.3f}" for name, value in ranked)
                print(f"{on_one_line(sample.path)}  {scores}")
            bar.update()
    if unreadable:
        print(f"{unreadable} of {len(samples)} images could not be read", file=sys.stderr)
    if unreadable or images.empty:
        sys.exit(1)


def on_one_line(name: str) -> str:
    """A file name with its control characters as escapes, so that it cannot look like two lines."""
    control = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
    return re.sub(control, lambda found: found[0].encode("unicode_escape").decode(), name)


if __name__ == "__main__":
    errors.run(main)
