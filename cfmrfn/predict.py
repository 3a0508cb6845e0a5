"""Classify images: `python -m cfmrfn.predict CHECKPOINT IMAGES...`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from cfmrfn import checkpoint, errors
from cfmrfn.batches import evaluation_loader
from cfmrfn.config import check_at_least, parse
from cfmrfn.data import Sample, find_images
from cfmrfn.distributed import World


@torch.inference_mode()
def predict(
    path: Path, images: Sequence[Path], batch_size: int = 32, device: str = "auto"
) -> Iterator[dict[str, float]]:
    """Probabilities by class name for each image file, in order.

    The whole image is taken as the face, as in the training data: crop and align it first.
    """
    world = World(device)
    network, about = checkpoint.load_network(path)
    network.to(world.device)
    loader = evaluation_loader(
        [Sample(str(image), 0) for image in images],
        about,
        batch_size=batch_size,
        world=world,
        workers=0,
    )
    for batch, _ in loader:
        for probabilities in network(batch.to(world.device)).softmax(1).tolist():
            yield dict(zip(about.class_names, probabilities, strict=True))


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and in place of a folder the images in it, by name.

    Raises:
        ConfigError: a folder holds no images, or there are no paths.
    """
    files = []
    for path in paths:
        inside = [Path(p) for p in find_images(path).paths] if path.is_dir() else [path]
        if not inside:
            raise errors.ConfigError(f"there are no images in folder {path}")
        files += inside
    if not files:
        raise errors.ConfigError("no images were given")
    return files


@dataclass(frozen=True)
class Predict:
    """Print the most likely expressions of each image, which shows one cropped face."""

    checkpoint: tyro.conf.Positional[Path]
    """best.pt or last.pt of a run."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, or folders of them."""
    top: int = 3
    """Expressions to print for each image."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU where there is one."""

    def __post_init__(self) -> None:
        check_at_least(self, top=1)


@errors.memory_options("take --device cpu")
def main(args: list[str] | None = None) -> None:
    """The command line."""
    tool = parse(Predict, sys.argv[1:] if args is None else args, prog="python -m cfmrfn.predict")
    images = image_files(tool.images)
    results = predict(tool.checkpoint, images, device=tool.device)
    for image, probabilities in zip(images, results, strict=True):
        ranked = sorted(probabilities.items(), key=lambda item: -item[1])[: tool.top]
        print(f"{image}  " + "  ".join(f"{name} {value:.3f}" for name, value in ranked))


if __name__ == "__main__":
    errors.run(main)
