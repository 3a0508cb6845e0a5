"""Evaluate checkpoints: `python -m cfmrfn.evaluate RUN... --data ROOT`.

For each checkpoint, in the output folder, with RUN the name of its folder and DATA that of the data
set's; NAME is RUN-CHECKPOINT-DATA-SPLIT, and `-unique`, `-flip` and `-shared` where duplicates are
dropped and where these options are given::

    NAME.json               results, and what they were computed of
    NAME.png                confusion matrix
    NAME-confusion.csv      confusion matrix: a row per true class, a column per predicted one
    NAME-reliability.png    accuracy against confidence, and how many images are in each bin
    NAME.csv                with --csv: each image, see `cfmrfn.inference`

For several checkpoints, side by side::

    RUNS-comparison-DATA-SPLIT.json, .csv

Results are replaced by results of the same checkpoint, epoch, data and options only, and are not
put beside a NAME.csv of others. Every file is written whole or not at all, the JSON last.

NAME.json holds, beside what was evaluated on what::

    weights                 SHA-256 of the network's weights, see `cfmrfn.checkpoint.digest_of`
    class_names             classes that predictions are among, in the order of what follows
    checkpoint_classes      those of the checkpoint
    set_classes             those of the data set
    images                  number of images, over which the following are means
    accuracy                overall accuracy
    mean_class_accuracy     mean of the classes' accuracies
    macro_f1                mean of the classes' F1
    loss                    negative log likelihood of the true class, natural logarithm
    brier_score             squared error of the probabilities, summed over the classes, 0 to 2
    per_class               accuracy of each class, which is its recall; null: it has no images
    per_class_precision     null: it is never predicted
    per_class_f1            null: it has no images
    confusion_matrix        counts; a row per true class, a column per predicted one
    calibration             ece, the expected calibration error as `definition` says;
                            mean_confidence; bins of confidence, `above` < confidence <= `up_to`,
                            with images, accuracy and mean confidence (null: no images)
    duplicates              images that are pixel for pixel `of` the set's training split, or, in a
                            test split, "training or validation" split, which chooses epochs, and
                            whether they were left out; null: they were not looked for
    without_duplicates      these results without them; null: there are none, or they were left out
    bootstrap               [low, high] of accuracy and mean_class_accuracy, interval (0.95),
                            resamples and seed, see `cfmrfn.evaluation.bootstrap`
    left_out, left_out_of_whole_set, unreadable, classes_without_images
    versions, checkpoint_versions

A comparison's JSON holds, in `runs`, what was evaluated on what, `weights` and the columns of the
CSV: `name` of the checkpoint; `images`; the results above, accuracies also `_without_duplicates`;
`_low` and `_high`, the ends of their intervals; `images_of_both`, the images that it and the first
checkpoint both had, and on these how much better it is than the first, `accuracy_difference` and
`mean_class_accuracy_difference`, with the ends of their intervals.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cfmrfn import checkpoint, errors, pretrained, trained
from cfmrfn.checks import check_at_least
from cfmrfn.config import LayoutName, parse
from cfmrfn.errors import ConfigError, DataError
from cfmrfn.evaluation import (
    HOW_CHOSEN,
    Evaluation,
    OnBroken,
    bootstrap,
    evaluate,
    evaluate_checkpoint,
    evaluate_split,
    paper_tables,
    predicted_classes,
)
from cfmrfn.evaluation.comparison import Comparison
from cfmrfn.figures.pictures import plot_confusion, plot_reliability
from cfmrfn.inference import Split, open_split
from cfmrfn.process import command
from cfmrfn.process.distributed import World
from cfmrfn.process.precision import Precision
from cfmrfn.whole_files import whole

# What the names of an evaluation's files end with; the last is that of each image, by option.
_ENDS = (".json", ".png", "-confusion.csv", "-reliability.png", ".csv")
_LONGEST_NAME = 220  # bytes of the 255 that systems allow, without the ends that files have

__all__ = ["Evaluation", "evaluate", "evaluate_checkpoint", "evaluate_split", "main"]


@dataclass(frozen=True)
class Evaluate:
    """Evaluate checkpoints on a data set: accuracies with 95 % intervals, precision, recall and F1
    of each class, calibration, confusion matrix; of several also their differences.

    Beside RAF-DB, AffectNet and FERPlus the paper's rows of Tables 1 and 2 are printed.
    """

    checkpoints: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[RUN ...]"),
    ]
    """best.pt or last.pt of a run, or the run folder: both; a folder that was exported as
    safetensors; or pretrained, the network that comes with the package, which is taken where none
    is given. Several are compared with the first."""
    data: Path
    """Root folder of the data set. It needs no training split: class folders alone will do."""
    layout: LayoutName = "auto"
    """Layout of the data set; auto recognises it."""
    split: str | None = None
    """Split to evaluate. None: the one that results are reported on, test or else val."""
    boxes: bool = True
    """Crop to the face boxes of AffectNet's lists, if training did so; --no-boxes for images that
    are cropped."""
    digits: tuple[str, ...] | None = None
    """What class folders named by digits mean: affectnet, rafdb, ferplus or fer2013 labels, or
    class names in order. None: as in training."""
    drop_duplicates: bool = False
    """Leave images out that are pixel for pixel images of the set's training split, or, in a test
    split, of the validation split, which chooses epochs. Otherwise results are given with and
    without them, where the images of these splits have at most 200 MB."""
    flip: bool = False
    """Take the mean of the probabilities of each image and of its mirror image (flip test-time
    augmentation), at twice the time."""
    shared_classes: bool = False
    """Predict only classes that the data set has too, their probabilities scaled to sum to 1, when
    the network knows others. Without it a prediction of another class is an error."""
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
    """Folder for results, pictures and tables, made where it is missing."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1, workers=0)


@command.memory_options("lower --batch-size, or take --precision bf16")
def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.evaluate") -> None:
    """The command line."""
    tool = parse(Evaluate, sys.argv[1:] if args is None else args, prog=prog)
    names = tool.checkpoints or (pretrained.NAME,)
    world = World(tool.device)
    if world.is_main:
        for name in dict.fromkeys(names):
            trained.announce(name)
    plans = _plans(tool, names)
    comparison = tool.output / _name_of_comparison(plans)
    if len(plans) > 1:
        _refuse_to_replace(comparison, [plan.evaluated for plan in plans])
    if world.is_main:
        _check_writable(tool.output)
    evaluations = {}
    for plan in plans:
        network, about = trained.load(plan.path)
        evaluation = evaluate_split(
            network,
            about,
            plan.images,
            flip=tool.flip,
            shared_classes=tool.shared_classes,
            batch_size=tool.batch_size,
            workers=tool.workers,
            precision=tool.precision,
            on_broken=tool.on_broken,
            world=world,
            progress=True,
        )
        evaluations[plan.name] = evaluation
        if world.is_main:
            _report(plan, evaluation, with_table=tool.csv)
    if world.is_main:
        if len(plans) > 1:
            _compare(comparison, plans, evaluations)
        print(errors.printable(paper_tables.tables(evaluations)))
    world.close()


@dataclass(frozen=True)
class _Plan:
    """An evaluation to come.

    Attributes:
        path: of the checkpoint.
        name: of it, as shown to the user; no other checkpoint of this command has it.
        run: name of its run.
        images: to evaluate it on.
        target: files of results, without the ends of their names.
        evaluated: what is evaluated on what, which results are identified by.
    """

    path: Path
    name: str
    run: str
    images: Split
    target: Path
    evaluated: Mapping[str, Any]


def _plans(tool: Evaluate, names: Sequence[str]) -> list[_Plan]:
    """What to do, all checked as far as it can be before anything is computed."""
    # a checkpoint that is named twice counts once
    paths = {os.path.abspath(p): p for name in names for p in _checkpoints(name)}
    abouts = {path: trained.about(given) for path, given in paths.items()}
    splits: dict[Any, Split] = {}  # reading a large set takes minutes
    plans: list[_Plan] = []
    for (path, given), run in zip(paths.items(), _run_names(list(paths)), strict=True):
        about = abouts[path]
        digits = tool.digits or about.config.images.digits
        boxes = tool.boxes and about.config.images.boxes
        key = about.class_names, digits, boxes
        if key not in splits:
            try:
                opened = open_split(
                    tool.data, tool.layout, tool.split, about, boxes=boxes, digits=digits
                )
            except DataError as error:
                raise DataError(
                    f"{error}" + (f" (for {given})" if len(paths) > 1 else "")
                ) from error
            splits[key] = opened.without_duplicates() if tool.drop_duplicates else opened
        images = splits[key]
        predicted_classes(about, images, tool.shared_classes)  # an error now, if there is one
        evaluated = {
            "checkpoint": path,
            "epoch": about.epoch,
            "chosen": HOW_CHOSEN[about.chosen_on],
            "data": images.data,
            "set": images.set_name,
            "layout": images.layout,
            "split": images.name,
            "precision": tool.precision,
            "boxes": boxes,
            "digits": None if images.digits is None else list(images.digits),
            "drop_duplicates": tool.drop_duplicates,
            "flip": tool.flip,
            "shared_classes": tool.shared_classes,
            "weights": checkpoint.digest_of(trained.load(given)[0]),
        }
        stem = "-".join(filter(None, [run, given.stem]))
        target = tool.output / f"{stem}-{_name_of_images(images, evaluated)}"
        _refuse_to_replace(target, [evaluated])
        if not tool.csv:
            _refuse_a_table_of_others(target)
        plans.append(_Plan(given, f"{run}/{given.name}", run, images, target, evaluated))
    if len({plan.target for plan in plans}) < len(plans):
        raise ConfigError(
            f"checkpoints {', '.join(paths)} would have results of the same name; evaluate them "
            "into different folders by --output"
        )
    return plans


def _checkpoints(name: str) -> list[Path]:
    """The checkpoint of that name, or both that a run folder has, or the one that it has."""
    if trained.is_of_package(name):
        return [trained.find(name)]
    inside = [Path(name, file) for file in ("best.pt", "last.pt")]
    return [file for file in inside if file.is_file()] or [trained.find(name)]


def _run_names(paths: Sequence[str]) -> list[str]:
    """Names of the folders of `paths`, with as many of those above as tell them apart.

    The root's is empty.
    """
    folders = [Path(path).parent.parts[1:] for path in paths]
    names = [""] * len(folders)
    for depth in range(1, 1 + max(map(len, folders), default=0)):
        names = ["-".join(folder[-depth:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            break
    return names


def _name_of_images(images: Split, evaluated: Mapping[str, Any]) -> str:
    name = "-".join(filter(None, [Path(images.data).name, images.name]))
    options = {"drop_duplicates": "unique", "flip": "flip", "shared_classes": "shared"}
    return "-".join([name, *(end for option, end in options.items() if evaluated[option])])


def _name_of_comparison(plans: Sequence[_Plan]) -> str:
    runs = list(dict.fromkeys(plan.run for plan in plans))
    name = "+".join(runs)
    if len(os.fsencode(name)) > 120:  # file systems take 255 for the whole name
        name = f"{runs[0]}+{len(runs) - 1}-more"
    return f"{name}-comparison-{_name_of_images(plans[0].images, plans[0].evaluated)}"


def _check_writable(folder: Path) -> None:
    """Makes the folder of results where it is missing, before anything is computed.

    Raises:
        OSError: it cannot be made, or files in it cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _refuse_to_replace(target: Path, evaluated: Sequence[Mapping[str, Any]]) -> None:
    """Checks that the results at `target`, where there are any, are of the same evaluations.

    Raises:
        ConfigError: they are of other ones, or the name is too long.
    """
    if len(os.fsencode(target.name)) > _LONGEST_NAME:
        raise ConfigError(
            f"results would be named {target.name}, too long for a file: rename the folder of the "
            "run or of the data set"
        )
    file = Path(f"{target}.json")
    if not file.exists():
        return
    try:
        before = json.loads(file.read_text("utf-8"))
        runs = before.get("runs", [before])
        if len(runs) != len(evaluated):
            other = ["number of checkpoints"]
        else:
            pairs = zip(runs, evaluated, strict=True)
            other = [name for run, now in pairs for name in now if not _agree(run, now, name)]
            other = ["network's weights" if name == "weights" else name for name in other]
    except (ValueError, TypeError, AttributeError):
        other = ["content"]
    if other:
        there = [f"{target.name}{end}" for end in _ENDS if Path(f"{target}{end}").exists()]
        raise ConfigError(
            f"{file} holds other results (of another {', '.join(dict.fromkeys(other))}); choose "
            f"another --output, or remove {', '.join(there)}"
        )


def _refuse_a_table_of_others(target: Path) -> None:
    """Checks that no table of each image is there without the JSON that says what it is of.

    Raises:
        ConfigError: one is.
    """
    table = Path(f"{target}.csv")
    if table.exists() and not Path(f"{target}.json").exists():
        raise ConfigError(
            f"{table} is of results whose {target.name}.json is gone, and may be of other weights; "
            "remove it, replace it with --csv, or choose another --output"
        )


def _agree(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> bool:
    # results that were written before there was such an option are those without it
    missing = False if name in ("drop_duplicates", "flip", "shared_classes") else None
    if name == "weights":  # which were not written
        missing = now[name]
    return bool(before.get(name, missing) == now[name])


def _report(plan: _Plan, evaluation: Evaluation, *, with_table: bool) -> None:
    """Prints the results of a checkpoint, and writes its files."""
    for reason in errors.first_of(evaluation.unreadable, rest=f", in {plan.target}.json"):
        print(errors.printable(f"left out: {reason}"), file=sys.stderr)
    images, target = plan.images, plan.target
    lines = [
        f"{plan.path}: epoch {plan.evaluated['epoch']}, {plan.evaluated['chosen']}",
        f"on {images.set_name}, {images.data}, split {images.name}",
        *evaluation.remarks(),
        str(evaluation),
    ]
    print(errors.printable("\n".join(lines)) + "\n")
    if with_table:
        evaluation.write_table(f"{target}.csv")
    evaluation.write_confusion(f"{target}-confusion.csv")
    title = f"{plan.name} on {images.set_name}, {images.name}"
    with whole(f"{target}.png") as path:
        plot_confusion(path, evaluation.report, title)
    with whole(f"{target}-reliability.png") as path:
        plot_reliability(path, evaluation.calibration, title)
    _write_json(target, {**plan.evaluated, **evaluation.as_dict()})
    table = ", .csv (each image)" if with_table else ""
    print(
        errors.printable(
            f"results: {target}.json, .png and -confusion.csv (confusion matrix), "
            f"-reliability.png{table}\n"
        )
    )


def _compare(target: Path, plans: Sequence[_Plan], evaluations: Mapping[str, Evaluation]) -> None:
    """Prints the checkpoints side by side, and writes that."""
    comparison = Comparison(evaluations)
    print(errors.printable(f"{comparison}\n"))
    rows = zip(plans, comparison.rows(), strict=True)
    comparison.write_csv(f"{target}.csv")
    _write_json(
        target,
        {
            "runs": [{**plan.evaluated, **row} for plan, row in rows],
            "bootstrap": {
                "interval": bootstrap.CONFIDENCE,
                "resamples": bootstrap.RESAMPLES,
                "seed": bootstrap.SEED,
            },
        },
    )
    print(errors.printable(f"comparison: {target}.json, .csv\n"))


def _write_json(target: Path, values: Mapping[str, Any]) -> None:
    with whole(f"{target}.json") as path:
        path.write_text(json.dumps(values, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    command.run(main)
