"""Evaluate a checkpoint: `python -m cfmrfn.evaluate CHECKPOINT --data ROOT`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from torch import nn
from torch.utils.data import DataLoader

from cfmrfn import checkpoint, errors
from cfmrfn.batches import evaluation_loader
from cfmrfn.config import LayoutName, check_at_least, parse
from cfmrfn.data import open_set
from cfmrfn.distributed import World
from cfmrfn.errors import DataError
from cfmrfn.metrics import Report, confusion_matrix
from cfmrfn.pictures import plot_confusion
from cfmrfn.precision import Precision, autocast, sum_dtype

# Split that chose the epoch -> how the epoch was chosen; None: not by any results.
HOW_CHOSEN = {
    "val": "best on the validation images",
    "test": "best on the held-out images themselves, as papers do: optimistic",
    None: "the last",
}


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    loader: DataLoader[Any],
    class_names: tuple[str, ...],
    world: World,
    precision: Precision = "float32",
) -> Report:
    """Results of `network` on the images of `loader`, over all processes."""
    network.eval()
    classes = len(class_names)
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=world.device)
    loss = torch.zeros((), dtype=sum_dtype(world.device), device=world.device)
    for images, labels in loader:
        images = images.to(world.device, non_blocking=True)
        labels = labels.to(world.device, non_blocking=True)
        with autocast(precision, world.device):
            logits = network(images).float()
        matrix += confusion_matrix(logits.argmax(1), labels, classes)
        loss += F.cross_entropy(logits, labels, reduction="sum")
    world.sum(matrix)
    world.sum(loss)
    return Report(class_names, matrix.cpu().numpy(), loss.item() / int(matrix.sum()))


class Evaluation(NamedTuple):
    """Results of a checkpoint: what it says `about` itself, the name of the `data`, the `split`."""

    report: Report
    about: checkpoint.About
    data: str
    split: str


def evaluate_checkpoint(
    path: Path,
    data: Path,
    *,
    layout: str = "auto",
    split: str | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    precision: Precision = "float32",
    world: World | None = None,
) -> Evaluation:
    """Evaluates the checkpoint at `path` on a split of the data set at `data`.

    Classes are matched by name, so a network trained on one set can be tried on another. `split`
    None: the one that results are reported on.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be used.
        DataError: the data set cannot be opened, or has no such split.
    """
    world = world or World()
    network, about = checkpoint.load_network(path)
    opened = open_set(data, layout, about.class_names)
    split = split or opened.held_out
    if split not in opened.splits:
        raise DataError(f"split must be one of {', '.join(opened.splits)}; got {split}")
    loader = evaluation_loader(
        opened.splits[split],
        about,
        batch_size=batch_size,
        world=world,
        workers=workers,
    )
    report = evaluate(network.to(world.device), loader, about.class_names, world, precision)
    return Evaluation(report, about, opened.name, split)


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a checkpoint, or both checkpoints of a run folder, on a data set."""

    checkpoint: tyro.conf.Positional[Path]
    """best.pt or last.pt of a run, or the run folder."""
    data: Path
    """Root folder of the data set."""
    layout: LayoutName = "auto"
    """Layout of the data set; auto recognises it."""
    split: str | None = None
    """Split to evaluate. None: the one that results are reported on, test or else val."""
    batch_size: int = 64
    """Images at a time."""
    workers: int | None = None
    """Processes that decode images. None: one per spare core, at most 8."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU where there is one."""
    precision: Precision = "float32"
    """Autocast type."""
    output: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("evaluation")
    """Folder for the confusion matrices and results, made where it is missing."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1, workers=0)


@errors.memory_options("lower --batch-size, or take --precision bf16")
def main(args: list[str] | None = None) -> None:
    """The command line."""
    tool = parse(Evaluate, sys.argv[1:] if args is None else args, prog="python -m cfmrfn.evaluate")
    world = World(tool.device)
    paths = [tool.checkpoint]
    if tool.checkpoint.is_dir():
        paths = [tool.checkpoint / "best.pt", tool.checkpoint / "last.pt"]
    for path in paths:
        report, about, data, split = evaluate_checkpoint(
            path,
            tool.data,
            layout=tool.layout,
            split=tool.split,
            batch_size=tool.batch_size,
            workers=tool.workers,
            precision=tool.precision,
            world=world,
        )
        if not world.is_main:
            continue
        print(f"{path}: epoch {about.epoch}, {HOW_CHOSEN[about.chosen_on]}")
        print(f"on {data}, split {split}\n{report}\n")
        tool.output.mkdir(parents=True, exist_ok=True)
        stem = tool.output / f"{path.stem}-{split}"
        plot_confusion(stem.with_suffix(".png"), report, f"{path.name} on {data}")
        result = {
            "checkpoint": str(path),
            "chosen": HOW_CHOSEN[about.chosen_on],
            **report.as_dict(),
        }
        stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        print(f"confusion matrix: {stem.with_suffix('.png')}")
    world.close()


if __name__ == "__main__":
    errors.run(main)
