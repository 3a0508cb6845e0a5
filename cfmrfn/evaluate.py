"""Evaluate a checkpoint: `python -m cfmrfn.evaluate CHECKPOINT --data ROOT`.

For each checkpoint, in the output folder, with RUN the name of its folder and DATA that of the data
set's::

    RUN-CHECKPOINT-DATA-SPLIT.json    results, and what they were computed of
    RUN-CHECKPOINT-DATA-SPLIT.png     confusion matrix
    RUN-CHECKPOINT-DATA-SPLIT.csv     with --csv: each image, see `cfmrfn.inference`

Results are replaced by results of the same checkpoint, epoch, data and options only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from cfmrfn import checkpoint, errors
from cfmrfn.batches import evaluation_loader
from cfmrfn.config import LayoutName, check_at_least, parse
from cfmrfn.distributed import World
from cfmrfn.errors import ConfigError, DataError
from cfmrfn.inference import (
    PredictionTable,
    ReadableBatches,
    Split,
    open_split,
    open_table,
    reason_of,
)
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
    loader: Iterable[tuple[Tensor, Tensor]],
    class_names: tuple[str, ...],
    world: World,
    precision: Precision = "float32",
    keep: Callable[[Tensor], object] | None = None,
) -> Report:
    """Results of `network` on the images of `loader`, over all processes.

    `keep` is given the logits (batch, classes) of each batch of this process.

    Raises:
        DataError: there are no images.
    """
    network.eval()
    classes = len(class_names)
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=world.device)
    loss = torch.zeros((), dtype=sum_dtype(world.device), device=world.device)
    for images, labels in loader:
        images = images.to(world.device, non_blocking=True)
        labels = labels.to(world.device, non_blocking=True)
        with autocast(precision, world.device):
            logits = network(images).float()
        if keep is not None:
            keep(logits)
        matrix += confusion_matrix(logits.argmax(1), labels, classes)
        loss += F.cross_entropy(logits, labels, reduction="sum")
    world.sum(matrix)
    world.sum(loss)
    if not matrix.any():
        raise DataError("not one image can be read")
    return Report(class_names, matrix.cpu().numpy(), loss.item() / int(matrix.sum()))


OnBroken = Literal["error", "skip"]


@dataclass(frozen=True)
class Evaluation:
    """Results of a checkpoint.

    Attributes:
        report: the results.
        about: what the checkpoint says of itself.
        images: what it was evaluated on.
        probabilities: (images, classes), NaN where an image could not be read.
        unreadable: `"path: reason"` of these images, which do not count.
    """

    report: Report
    about: checkpoint.About
    images: Split
    probabilities: np.ndarray
    unreadable: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """Results, and what was left out, as plain values for JSON."""
        left_out = {
            f"class {name}, which the checkpoint does not know": count
            for name, count in self.images.other_classes.items()
        }
        if self.unreadable:
            left_out["cannot be read"] = len(self.unreadable)
        return {
            "class_names": list(self.about.class_names),
            "left_out": left_out,
            "left_out_of_whole_set": dict(self.images.dropped),
            "unreadable": list(self.unreadable),
            "classes_without_images": self.images.absent,
            "versions": checkpoint.versions(),
            "checkpoint_versions": self.about.versions,
            **self.report.as_dict(),
        }

    def write_table(self, path: str | Path) -> None:
        """Writes each image's prediction as CSV, see `cfmrfn.inference`."""
        names = self.about.class_names
        with open_table(path) as file:
            table = PredictionTable(file, names, with_labels=True)
            for sample, row in zip(self.images.samples, self.probabilities.tolist(), strict=True):
                read = row if row[0] == row[0] else None  # NaN differs from itself
                table.write(sample.path, read, names[sample.label])


def evaluate_split(
    network: nn.Module,
    about: checkpoint.About,
    images: Split,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    precision: Precision = "float32",
    on_broken: OnBroken = "error",
    world: World | None = None,
    progress: bool = False,
) -> Evaluation:
    """Evaluates a network on a split of a data set.

    Args:
        network, about: as `checkpoint.load_network` returns them.
        images: as `open_split` returns them.
        batch_size: images at a time.
        workers: processes that decode images. None: one per spare core, at most 8.
        precision: autocast type.
        on_broken: what an image does that cannot be read. "error" ends the evaluation, where it is
            missing before anything is computed. "skip" leaves it out and counts it.
        world: the processes, and the device.
        progress: show a bar on a terminal.

    Raises:
        DataError: an image cannot be read, and `on_broken` is "error"; or none can.
    """
    world = world or World()
    samples = images.samples
    if on_broken == "error":
        _require_files(images)
    loader = evaluation_loader(
        samples,
        about,
        batch_size=batch_size,
        world=world,
        workers=workers,
        on_broken="mark",
    )
    own = range(len(samples))[world.rank :: world.size]
    batches = ReadableBatches(
        loader,
        [samples[place] for place in own],
        on_broken,
        progress=progress and world.is_main,
    )
    logits: list[Tensor] = []
    report = evaluate(
        network.to(world.device), batches, about.class_names, world, precision, logits.append
    )
    # each process fills its rows, and the others add zeros
    probabilities = torch.zeros(len(samples), len(about.class_names), device=world.device)
    left_out = {own[place] for place in batches.unreadable}
    if logits:
        read = [place for place in own if place not in left_out]
        probabilities[read] = torch.cat(logits).softmax(1)
    world.sum(probabilities)
    unread = torch.zeros(len(samples), device=world.device)
    unread[sorted(left_out)] = 1
    world.sum(unread)
    probabilities[unread > 0] = torch.nan
    reasons = [reason_of(samples[place]) for place in unread.nonzero().flatten().tolist()]
    return Evaluation(report, about, images, probabilities.cpu().numpy(), reasons)


def _require_files(images: Split) -> None:
    missing = [sample.path for sample in images.samples if not os.path.isfile(sample.path)]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(images.samples)} images of split {images.name} are "
            f"missing, {missing[0]} first; --on-broken skip leaves such images out"
        )


def evaluate_checkpoint(
    path: str | Path,
    data: str | Path,
    *,
    layout: str = "auto",
    split: str | None = None,
    boxes: bool = True,
    digits: Sequence[str] | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    precision: Precision = "float32",
    on_broken: OnBroken = "error",
    world: World | None = None,
) -> Evaluation:
    """Evaluates a checkpoint, or a run folder's best one, on a split of the data set at `data`.

    Classes are matched by name, so a network trained on one set can be tried on another. `layout`,
    `split`, `boxes` and `digits` are those of `cfmrfn.inference.open_split`, the other arguments
    those of `evaluate_split`.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be used.
        DataError: the data set cannot be opened, or has no such split; or as `evaluate_split`.
    """
    network, about = checkpoint.load_network(path)
    return evaluate_split(
        network,
        about,
        open_split(data, layout, split, about, boxes=boxes, digits=digits),
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        on_broken=on_broken,
        world=world,
    )


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a checkpoint, or both checkpoints of a run folder, on a data set."""

    checkpoint: tyro.conf.Positional[Path]
    """best.pt or last.pt of a run, or the run folder."""
    data: Path
    """Root folder of the data set. It needs no training split: class folders alone will do."""
    layout: LayoutName = "auto"
    """Layout of the data set; auto recognises it."""
    split: str | None = None
    """Split to evaluate. None: the one that results are reported on, test or else val."""
    boxes: bool = True
    """Crop to the face boxes of AffectNet's lists; --no-boxes for images that are cropped."""
    digits: tuple[str, ...] | None = None
    """What class folders named by digits mean: affectnet, rafdb, ferplus or fer2013 labels, or
    class names in order. None: as in training."""
    on_broken: OnBroken = "error"
    """What an unreadable image does: stop with its name, or be counted, named and skipped."""
    batch_size: int = 64
    """Images at a time."""
    workers: int | None = None
    """Processes that decode images. None: one per spare core, at most 8."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..., mps; auto takes the NVIDIA or AMD GPU where there is one, else the
    CPU."""
    precision: Precision = "float32"
    """Autocast type."""
    csv: bool = False
    """Also write each image's path, label, prediction and probabilities as CSV."""
    output: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("evaluation")
    """Folder for results, confusion matrices and tables, made where it is missing."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1, workers=0)


@errors.memory_options("lower --batch-size, or take --precision bf16")
def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.evaluate") -> None:
    """The command line."""
    tool = parse(Evaluate, sys.argv[1:] if args is None else args, prog=prog)
    world = World(tool.device)
    for path in _checkpoints(tool.checkpoint):
        network, about = checkpoint.load_network(path)
        images = open_split(
            tool.data,
            tool.layout,
            tool.split,
            about,
            boxes=tool.boxes,
            digits=tool.digits,
        )
        evaluated = {
            "checkpoint": os.path.abspath(path),
            "epoch": about.epoch,
            "chosen": HOW_CHOSEN[about.chosen_on],
            "data": images.data,
            "set": images.set_name,
            "layout": images.layout,
            "split": images.name,
            "precision": tool.precision,
            "boxes": tool.boxes,
            "digits": None if images.digits is None else list(images.digits),
        }
        target = tool.output / _name_of_results(path, images)
        _refuse_to_replace(target, evaluated)
        result = evaluate_split(
            network,
            about,
            images,
            batch_size=tool.batch_size,
            workers=tool.workers,
            precision=tool.precision,
            on_broken=tool.on_broken,
            world=world,
            progress=True,
        )
        if not world.is_main:
            continue
        for reason in result.unreadable:
            print(errors.printable(f"left out: {reason}"), file=sys.stderr)
        lines = [
            f"{path}: epoch {about.epoch}, {evaluated['chosen']}",
            f"on {images.set_name}, {images.data}, split {images.name}",
            *images.remarks(),
        ]
        if result.unreadable:
            lines.append(f"left out: {len(result.unreadable)} images that cannot be read")
        print(errors.printable("\n".join([*lines, f"{result.report}\n"])))
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(evaluated | result.as_dict(), indent=1)
        Path(f"{target}.json").write_text(text + "\n", "utf-8")
        if tool.csv:
            result.write_table(f"{target}.csv")
        title = f"{path.name} on {images.set_name}, {images.name}"
        plot_confusion(Path(f"{target}.png"), result.report, title)
        kinds = "json,csv,png" if tool.csv else "json,png"
        print(errors.printable(f"results and confusion matrix: {target}.{{{kinds}}}\n"))
    world.close()


def _checkpoints(path: Path) -> list[Path]:
    """The checkpoint at `path`, or both that a run folder has, or the one that it has."""
    inside = [path / name for name in ("best.pt", "last.pt")]
    return [file for file in inside if file.is_file()] or [checkpoint.file_of(path)]


def _name_of_results(path: Path, images: Split) -> str:
    run = Path(os.path.abspath(path)).parent.name
    return "-".join(filter(None, [run, path.stem, Path(images.data).name, images.name]))


def _refuse_to_replace(target: Path, evaluated: Mapping[str, Any]) -> None:
    """Checks that the results at `target`, where there are any, are of the same evaluation.

    Raises:
        ConfigError: they are of another one.
    """
    file = Path(f"{target}.json")
    if not file.exists():
        return
    try:
        before = json.loads(file.read_text("utf-8"))
        other = [name for name, value in evaluated.items() if before.get(name) != value]
    except (ValueError, AttributeError):
        other = ["content"]
    if other:
        raise ConfigError(
            f"{file} holds other results (of another {', '.join(other)}); choose another --output, "
            "or remove it"
        )


if __name__ == "__main__":
    errors.run(main)
