"""Runs from end to end on drawn faces, and what goes wrong in them."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cfmrfn import checkpoint, errors, evaluate, predict, pretrained, train
from cfmrfn.config import (
    Config,
    ImageConfig,
    NetworkConfig,
    OptimConfig,
    RunConfig,
    parse_config,
)
from cfmrfn.errors import CheckpointError, ConfigError, TrainingError
from cfmrfn.faces import FRAMING
from cfmrfn.process import command, precision
from cfmrfn.process.distributed import World
from cfmrfn.train import Trainer
from cfmrfn.training import images, run_folder
from tests.cfmrfn import public_sets

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(options, tmp_path):
    """Train with more options; the run folder."""

    def run_with(*more):
        config = parse_config([*options, "--output", str(tmp_path / "run"), *more])
        return Trainer(config).train()

    return run_with


def read_metrics(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_a_run_leaves_everything(run):
    folder = run("--validation", "0.25")
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "batch.png",
        "best.pt",
        "config.yaml",
        "confusion.png",
        "curves.png",
        "last.pt",
        "log.txt",
        "metrics.csv",
        "report.json",
    }
    rows = read_metrics(folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    report = json.loads((folder / "report.json").read_text())
    assert report["chosen_on"] == "val"
    assert (report["training_images"], report["validation_images"]) == (42, 14)
    assert report["validation_split"] == "train"
    training = checkpoint.load(folder / "last.pt")["training"]
    assert report["fingerprint"] == training["data"]
    assert report["image_bytes"] == training["file_sizes"].sum()
    assert set(report["held_out"]) == {"val", "test", "last"}
    for result in report["held_out"].values():
        assert result["images"] == 15
    best = checkpoint.load(folder / "best.pt")
    best_row = max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert best["about"]["epoch"] == best_row["epoch"] == report["held_out"]["val"]["epoch"]
    assert best["about"]["chosen_on"] == "val"
    assert best["about"]["layout"] == "drawn"  # recognised, as --data names their folder
    assert "training" not in best
    assert "held-out accuracy" in (folder / "log.txt").read_text()


def test_without_validation_images_the_choice_is_reported_as_made_on_the_test(run, capsys):
    folder = run("--epochs", "1", "--decay", "0.5", "--digits", "rafdb")
    assert json.loads((folder / "report.json").read_text())["chosen_on"] == "test"
    printed = capsys.readouterr().out
    assert "best on the held-out images themselves" in printed
    assert "1 epoch of 7 steps of 8 images" in printed
    assert "decay 0.5 has no effect, as schedule is cosine" in printed
    assert "digits rafdb has no effect, as no class folders are named by digits" in printed


@pytest.mark.parametrize(
    "options_more",
    [
        ["--rho", "0", "--optimizer", "adamw", "--schedule", "cosine", "--crop", "--jitter"],
        ["--balanced", "--ema", "0.9", "--accumulate", "2", "--layer-decay", "0.5"],
        ["--precision", "bf16", "--streams", "expression", "--color", "BGR"],
        ["--streams", "landmark", "--attention", "global", "--drop-path-rate", "0.5"],
    ],
    ids=["plain", "averaged", "bf16", "landmark"],
)
def test_options_train(run, options_more):
    rows = read_metrics(run("--epochs", "1", *options_more))
    assert rows[0]["train_loss"] > 0


def test_the_learning_rate_that_was_asked_for_is_recorded(run):
    more = ["--schedule", "constant", "--weight-decay", "0", "--layer-decay", "0.5"]
    folder = run("--epochs", "1", "--lr", "0.001", *more)
    assert read_metrics(folder)[0]["lr"] == 0.001


def test_it_learns(run):
    folder = run(
        *("--epochs", "15", "--lr", "3e-3", "--optimizer", "adamw", "--schedule", "cosine"),
        *("--smooth-weight", "0", "--erasing", "0", "--flip", "0", "--clip", "1"),
        *("--streams", "expression", "--rho", "0.02"),
    )
    rows = read_metrics(folder)
    assert rows[-1]["train_accuracy"] > 0.6, "56 faces of 7 classes were not learnt by heart"


def test_same_seed_same_run_whatever_the_workers(options, tmp_path):
    def metrics(name, *more):
        args = [*options, "--epochs", "1", "--output", str(tmp_path / name), *more]
        return (Trainer(parse_config(args)).train() / "metrics.csv").read_bytes()

    first = metrics("a")
    assert metrics("b", "--workers", "2") == first
    assert metrics("c", "--seed", "1") != first


def test_evaluate_and_predict_read_the_run(run, faces, tmp_path, capsys):
    folder = run("--epochs", "1", "--color", "BGR")
    rows = read_metrics(folder)
    evaluation = evaluate.evaluate_checkpoint(
        folder / "best.pt", faces, workers=0, world=World("cpu")
    )
    report, about = evaluation.report, evaluation.about
    assert report.images == 15
    assert report.accuracy == pytest.approx(rows[0]["test_accuracy"])
    assert report.loss == pytest.approx(rows[0]["test_loss"])
    assert about.color == "BGR"
    np.testing.assert_allclose(about.framing, FRAMING, atol=0.04)
    assert "cfmrfn predict frames faces so" in (folder / "log.txt").read_text("utf-8")

    output = tmp_path / "results"
    evaluate.main([str(folder), "--data", str(faces), "--output", str(output), "--workers", "0"])
    printed = capsys.readouterr().out
    assert "best on the held-out images themselves" in printed
    assert "the last" in printed
    written = {path.name for path in output.iterdir()}
    ends = (".json", ".png", "-confusion.csv", "-reliability.png")
    assert written == {
        *(f"run-{stem}-faces-test{end}" for stem in ("best", "last") for end in ends),
        *(f"run-comparison-faces-test.{kind}" for kind in ("json", "csv")),
    }

    images = sorted((faces / "Image" / "aligned").glob("test_*"))[:3]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "note.txt").write_text("not an image")
    for image in images[1:]:
        shutil.copy(image, pictures)
    images[1:] = [pictures / image.name for image in images[1:]]
    predict.main([str(folder / "best.pt"), str(images[0]), str(pictures), "--top", "7"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line, image in zip(lines, images, strict=True):
        path, *scores = line.split()
        assert path == str(image)
        assert sum(map(float, scores[1::2])) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("more", "tail"),
    [
        ([], " and 5 more images (all in"),
        (["--precision", "fp16"], " and 5 more images (all in"),
        (["--batch-size", "2"], "_aligned.jpg (all in"),
    ],
)
def test_not_finite_loss_names_the_batch(run, more, tail):
    with pytest.raises(TrainingError) as caught:
        run("--lr", "1e30", "--warmup-epochs", "0", *more)
    message = str(caught.value)
    assert "the loss is not finite at epoch 1, step" in message
    assert "train_000" in message
    assert tail in message


def test_no_held_out_image(run, faces, tmp_path):
    root = tmp_path / "faces"
    shutil.copytree(faces, root)
    labels = root / "EmoLabel" / "list_patition_label.txt"
    lines = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join(line for line in lines if line.startswith("train")))
    for validation in ("0", "0.25"):
        with pytest.raises(errors.DataError, match="no image in the test split"):
            run("--data", str(root), "--validation", validation)


@pytest.fixture
def broken(faces, tmp_path):
    """The faces with one file that is no image among those to train on and to evaluate."""
    root = tmp_path / "broken"
    shutil.copytree(faces, root)
    for name in ("train_00003", "test_00001"):
        (root / "Image" / "aligned" / f"{name}_aligned.jpg").write_bytes(b"not a picture")
    return root


def test_broken_images_are_found_before_training(run, broken, tmp_path):
    with pytest.raises(errors.DataError, match=r"2 of 71 images cannot be read: .*train_00003"):
        run("--data", str(broken))
    assert not (tmp_path / "run").exists()
    folder = run("--data", str(broken), "--on-broken", "skip", "--epochs", "1")
    log = (folder / "log.txt").read_text()
    assert "15 of 15 images to evaluate were opened before training, 1 cannot be read" in log
    assert "left out: 1, held-out image that cannot be read" in log
    assert "skipped 1 unreadable images so far" in log
    report = json.loads((folder / "report.json").read_text())
    assert report["held_out"]["last"]["images"] == 14
    assert report["left_out"] == {"held-out image that cannot be read": 1}


def test_results_are_given_with_and_without_duplicates(run, faces, tmp_path):
    root = tmp_path / "leaking"
    shutil.copytree(faces, root)
    aligned = root / "Image" / "aligned"
    shutil.copy(aligned / "train_00003_aligned.jpg", aligned / "test_00001_aligned.jpg")
    args = ["--data", str(root), "--epochs", "1", "--rho", "0", "--image-size", "32"]
    folder = run(*args)
    report = json.loads((folder / "report.json").read_text())
    leak = str(aligned / "test_00001_aligned.jpg")
    assert report["duplicates"] == {"left_out": False, "images": [leak]}
    result = report["held_out"]["last"]
    assert (result["images"], result["without_duplicates"]["images"]) == (15, 14)
    assert "0 validation images and 1 held-out ones" in (folder / "log.txt").read_text()

    # training is the same, so that the others alone give these results
    alone = run(*args, "--drop-duplicates", "--output", str(tmp_path / "unique"))
    report = json.loads((alone / "report.json").read_text())
    assert report["duplicates"] == {"left_out": True, "images": [leak]}
    assert report["left_out"] == {"held-out image that is a training image too": 1}
    dropped = report["held_out"]["last"]
    assert "without_duplicates" not in dropped
    for key, value in result["without_duplicates"].items():
        assert dropped[key] == (pytest.approx(value) if key == "loss" else value)
    (row,), (row_alone,) = read_metrics(folder), read_metrics(alone)
    assert row["test_without_duplicates_accuracy"] == row_alone["test_accuracy"]


def test_one_line_about_a_worker_that_failed(options, broken, tmp_path, monkeypatch, capfd):
    # that of a run whose images break after they were opened
    monkeypatch.setattr(images, "CHECK_SECONDS", 0)
    args = [*options, "--data", str(broken), "--workers", "2", "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: train.main(args))
    assert stop.value.code == 2
    line = capfd.readouterr().err.strip()
    assert "\n" not in line
    assert line.startswith("error: cannot read image ")
    assert line.endswith(f"python -m cfmrfn.train --resume {tmp_path / 'run'} --on-broken skip")
    assert (tmp_path / "run" / "last.pt").exists()


def test_what_the_set_leaves_out_is_kept(run, faces, tmp_path):
    root = public_sets.class_folders(tmp_path / "set", ["anger", "joy"])
    (root / "train" / "anger" / "note.txt").write_text("not an image")
    folder = run("--data", str(root), "--batch-size", "2", "--epochs", "1")
    reason = "no image by its name (.txt)"
    assert f"left out: 1, {reason}" in (folder / "log.txt").read_text()
    assert json.loads((folder / "report.json").read_text())["left_out"] == {reason: 1}


@pytest.mark.parametrize("gray", ["True", "None"])
def test_training_on_grey_images_alone_is_remarked(gray, run, tmp_path):
    root = public_sets.class_folders(tmp_path / "set", ["anger", "joy"])
    folder = run("--data", str(root), "--batch-size", "2", "--epochs", "1", "--gray", gray)
    remark = "all images to train on are grey: without --gray True"
    assert (remark in (folder / "log.txt").read_text()) == (gray == "None")


def test_names_that_are_no_text(options, tmp_path, monkeypatch):
    root = public_sets.class_folders(tmp_path / "set", ["anger", "joy"])
    name = os.fsdecode(b"bl\xe9")
    try:
        (root / "train" / "joy" / "1.jpg").rename(root / "train" / "joy" / f"{name}.jpg")
    except OSError:
        pytest.skip("names are Unicode on this file system")
    root = root.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", out)
    more = ["--data", str(root), "--batch-size", "2", "--epochs", "1", "--tensorboard"]
    folder = Trainer(parse_config([*options, *more])).train()
    assert folder.name.startswith("bl_-")
    assert list((folder / "tensorboard").iterdir())
    folder = Trainer(parse_config([*options, *more, "--output", f"runs/{name}"])).train()
    assert folder.name == name
    log = (folder / "log.txt").read_bytes()
    assert b"bl\xe9" in log
    assert list((folder / "tensorboard").iterdir())
    assert json.loads((folder / "report.json").read_text())["held_out"]["last"]["images"] == 2
    assert Trainer(parse_config(["--resume", str(folder)])).progress.epoch == 1


def test_full_disk_is_told_and_leaves_the_run(run, monkeypatch):
    real_save = checkpoint.save

    def fill_up(path, content):
        if content.get("training", {}).get("progress", {}).get("epoch") == 2:
            raise CheckpointError(f"cannot write {path}: No space left on device")
        real_save(path, content)

    monkeypatch.setattr(checkpoint, "save", fill_up)
    with pytest.raises(CheckpointError, match="No space left"):
        run()


def test_a_run_killed_while_it_makes_its_folder_can_be_repeated(tmp_path, monkeypatch):
    config = parse_config(["--output", str(tmp_path / "run")])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run_folder.create(config)
    assert not (tmp_path / "run").exists()
    folder = run_folder.create(config)
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "config.yaml"]


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ([], "drawn"),
        (["--data", "sets/FERPlus"], "FERPlus"),
        (["--data", "."], "here"),
        (["--recipe", "rafdb", "--data", "sets/RAF-DB/"], "RAF-DB"),
    ],
)
def test_the_run_folder_is_named_after_the_data(args, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = run_folder.create(parse_config(args))
    assert folder.path.parent.name == "runs"
    assert re.fullmatch(rf"{name}-\d{{8}}-\d{{6}}", folder.path.name)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "/nowhere"], "/nowhere does not exist"),
        (["--batch-size", "9", "--accumulate", "2"], "multiple of processes x accumulate, 1 x 2"),
        (["--batch-size", "64"], "batch-size must be at most the number of training images, 56"),
        (["--soft-labels"], "only FERPlus has votes"),
        (["--layout", "imagenet"], "layout must be"),
        (["--device", "tpu"], "device must be auto, cpu, cuda, cuda:N or mps, got tpu"),
        (["--image-size", "100"], "multiples of 32"),
        (["--ir50", "/nowhere.pth"], "expression backbone"),
        (["--output", "."], "run folder . exists"),
        (["--unknown"], "Unrecognized options: --unknown"),
    ],
)
def test_bad_input_is_one_line_and_status_2(options, more, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: train.main([*options, *more]))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.mark.parametrize("option", ["--ir50", "--landmarks", "--init"])
@pytest.mark.parametrize("content", ["<!DOCTYPE html><html></html>", None])
def test_weight_files_are_checked_before_faces_are_drawn(
    option, content, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if content is None:  # weights of something else
        torch.save({"weight": torch.ones(1)}, "weights.pth")
    else:
        Path("weights.pth").write_text(content)
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: train.main([option, "weights.pth", "--device", "cpu"]))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "weights.pth" in line
    assert os.listdir() == ["weights.pth"]


@pytest.mark.parametrize(
    ("tool", "args", "message"),
    [
        (evaluate, ["nowhere.pt", "--data", "DATA"], "there is no checkpoint nowhere.pt"),
        (evaluate, ["nowhere.pt"], "--data"),
        (evaluate, ["nowhere.pt", "--data", "DATA", "--batch-size", "0"], "batch-size must be"),
        (
            evaluate,
            ["nowhere.pt", "--data", "DATA", "--workers", "-1"],
            "workers must be 0 or more",
        ),
        (predict, ["nowhere.pt", "a.jpg"], "there is no checkpoint nowhere.pt"),
        (predict, ["nowhere.pt", "a.jpg", "--top", "0"], "top must be 1 or more"),
        (predict, ["nowhere.pt", "EMPTY"], "there are no images or videos in folder"),
    ],
)
def test_bad_input_of_the_other_tools(tool, args, message, faces, tmp_path, capsys):
    folders = {"DATA": str(faces), "EMPTY": str(tmp_path)}
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: tool.main([folders.get(arg, arg) for arg in args]))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_an_error_of_the_file_system_is_one_line(tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(SystemExit) as stop:
        command.run(taken.mkdir)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {taken}: File exists\n"


def test_resume_refuses_other_data(options, tmp_path, faces):
    folder = str(tmp_path / "run")
    Trainer(parse_config([*options, "--output", folder, "--epochs", "1"])).train()
    labels = faces / "EmoLabel" / "list_patition_label.txt"
    text = labels.read_text()
    try:
        name, label = text.split()[:2]
        labels.write_text(text.replace(f"{name} {label}", f"{name} {int(label) % 7 + 1}"))
        with pytest.raises(CheckpointError, match="other images or labels .* --data"):
            Trainer(parse_config(["--resume", folder]))
    finally:
        labels.write_text(text)
    with pytest.raises(ConfigError, match="epochs 1, not 5"):
        Trainer(parse_config(["--resume", folder, "--epochs", "5"]))


class WithoutFloat64(TorchDispatchMode):
    """Stands in for a device that has no float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            assert not (isinstance(value, torch.Tensor) and value.dtype == torch.float64), func
        return result


@pytest.mark.parametrize("more", [[], ["--precision", "bf16", "--ema", "0.9", "--accumulate", "2"]])
def test_a_device_without_float64(options, tmp_path, monkeypatch, more):
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", {"cpu"})
    config = parse_config([*options, *more, "--output", str(tmp_path / "run")])
    trainer = Trainer(config)
    images = torch.rand(8, 3, 64, 64)
    targets = torch.arange(8) % 7
    with WithoutFloat64():
        result = trainer.step(images, targets, 0)
        report = evaluate.evaluate(
            trainer.network, [(images, targets)], trainer.class_names, trainer.world
        )
    assert result.applied
    assert report.images == 8


def test_apples_gpu(monkeypatch):
    mps = torch.backends.mps
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for built, message in ((False, "built without it"), (True, "sees no Apple GPU")):
        monkeypatch.setattr(mps, "is_built", lambda built=built: built)
        monkeypatch.setattr(mps, "is_available", lambda: False)
        with pytest.raises(ConfigError, match=f"{message}.*--device cpu"):
            World("mps")
    monkeypatch.setattr(mps, "is_available", lambda: True)
    assert World("mps").device.type == "mps"
    assert World("auto").device.type == "cpu"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="serves one process: leave torchrun out"):
        World("mps")


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"cuda:2 was asked for, but PyTorch sees 2 GPU\(s\)"):
        World("cuda:2")


def test_the_log_tells_of_apples_gpu(run, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "--device mps" in (run("--epochs", "1") / "log.txt").read_text()


@pytest.fixture
def trainer(options, tmp_path, monkeypatch):
    """Makes a trainer, without training; with it what its log begins with."""
    monkeypatch.setattr(train, "framing_of", lambda samples: None)  # it takes a second

    def make(*more):
        made = Trainer(parse_config([*options, "--output", str(tmp_path / "run"), *more]))
        return made, (tmp_path / "run" / "log.txt").read_text()

    return make


def test_the_log_says_that_duplicates_were_not_looked_for(trainer, monkeypatch):
    monkeypatch.setattr(images, "find_duplicates", lambda *_: None)
    made, log = trainer()
    assert images.NOT_LOOKED_FOR in log
    assert made.images.as_dict()["duplicates"] is None


def test_a_compiled_network_is_what_steps_run(trainer, monkeypatch):
    monkeypatch.setattr(torch, "compile", torch.nn.Sequential)
    made, _ = trainer("--compile")
    assert made.step.model[0] is made.network


def test_batches_are_cut_evenly(trainer):
    with pytest.raises(ConfigError, match="a multiple of processes x accumulate, 1 x 3; got 8"):
        trainer("--accumulate", "3")


def test_a_preset_without_a_landmark_backbone_in_the_package(trainer, monkeypatch):
    monkeypatch.setattr(pretrained, "landmarks", lambda preset: None)
    with pytest.raises(ConfigError, match="no landmark backbone for cfmrfn_tiny comes with the"):
        trainer("--landmarks", "package")


def test_weights_of_another_network_are_no_start(trainer, tmp_path):
    config = parse_config(["--image-size", "64", "--depth", "1"])
    about = checkpoint.About.of_run(config, ("anger", "joy"))
    tensors = checkpoint.build_network(config, 2).state_dict()
    tensors = {name: t.repeat(2) if t.ndim == 1 else t for name, t in tensors.items()}
    tensors = {name: t.repeat(2, 2) if t.ndim == 2 else t for name, t in tensors.items()}
    checkpoint.save(tmp_path / "best.pt", {"model": tensors, "about": about.to_dict()})
    with pytest.raises(ConfigError, match=r"cannot start from .*best\.pt: its .* another network"):
        trainer("--init", str(tmp_path / "best.pt"))
    assert not (tmp_path / "run").exists()


def test_the_log_names_some_of_many_unreadable_images(trainer, faces, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MOST_NAMED", 1)
    root = shutil.copytree(faces, tmp_path / "broken")
    for path in sorted((root / "Image" / "aligned").glob("test_*"))[:3]:
        path.write_text("no image")
    _, log = trainer("--data", str(root), "--on-broken", "skip")
    assert log.count("left out of evaluation: ") == 2
    assert "left out of evaluation: 2 more\n" in log


def test_a_configuration_of_texts(faces, tmp_path):
    config = Config(
        images=ImageConfig(data=str(faces), image_size=64),
        network=NetworkConfig(depth=1),
        optim=OptimConfig(epochs=1, batch_size=8, schedule="constant"),
        run=RunConfig(output=str(tmp_path / "run"), workers=0, tensorboard=False, device="cpu"),
    )
    folder = Trainer(config).train()
    run = dataclasses.replace(config.run, resume=str(folder / "last.pt"))
    assert Trainer(dataclasses.replace(config, run=run)).progress.epoch == 1
    optim = dataclasses.replace(config.optim, lr=1.0)
    with pytest.raises(ConfigError, match="lr 4e-05, not 1.0"):
        Trainer(dataclasses.replace(config, optim=optim, run=run))
