"""Evaluation: on any folder with labels, over bad files, and what is said and written of it."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cfmrfn import checkpoint, errors, evaluate
from cfmrfn.config import parse_config
from cfmrfn.data import open_set
from cfmrfn.errors import ConfigError, DataError
from cfmrfn.inference import open_split

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")

pytestmark = pytest.mark.usefixtures("one_thread")


def about_of(class_names, *options):
    """What a checkpoint of a run with these options says of itself."""
    return checkpoint.About.of_run(parse_config(options), class_names)


@pytest.fixture
def save_run(options, tmp_path):
    """Write a run folder with a random network; its path."""

    def save(name="run", class_names=CLASSES, files=("best.pt",), extra=()):
        config = parse_config([*options, *extra])
        torch.manual_seed(len(name))
        network = checkpoint.build_network(config, len(class_names))
        about = checkpoint.About.of_run(config, class_names).to_dict() | {"epoch": 3}
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file in files:
            checkpoint.save(folder / file, {"model": network.state_dict(), "about": about})
        return folder

    return save


@pytest.fixture
def classes(faces, tmp_path) -> Path:
    """Two images in each of three class folders, without splits."""
    by_label = {}
    for sample in open_set(faces).splits["train"]:
        by_label.setdefault(sample.label, []).append(sample.path)
    root = tmp_path / "classes"
    for folder, label in (("Happy", 3), ("anger", 5), ("contempt", 6)):
        (root / folder).mkdir(parents=True)
        for number, path in enumerate(by_label[label][:2]):
            shutil.copy(path, root / folder / f"{number}.jpg")
    return root


@pytest.fixture
def run_tool(tmp_path, capsys):
    """Run the tool without workers; its results, by name of the file, and what was printed."""

    def run(*args, output="results"):
        folder = tmp_path / output
        evaluate.main([*map(str, args), "--workers", "0", "--output", str(folder)])
        results = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
        return results, capsys.readouterr()

    return run


def break_image(classes):
    broken = classes / "Happy" / "1.jpg"
    broken.write_text("no image")
    return broken


def test_a_flat_folder_of_classes_and_a_class_that_does_not_fit(save_run, classes, run_tool):
    results, printed = run_tool(save_run(), "--data", classes, "--csv")
    (result,) = results.values()
    assert result["images"] == 4
    assert result["left_out"] == {"class contempt, which the checkpoint does not know": 2}
    absent = ["surprise", "fear", "disgust", "sadness", "neutral"]
    assert result["classes_without_images"] == absent
    assert np.sum(result["confusion_matrix"], 1).tolist() == [0, 0, 0, 2, 0, 2, 0]
    assert "left out: 2 images of class contempt, which the checkpoint does" in printed.out
    assert f"no images of class {', '.join(absent)}" in printed.out


def test_a_test_split_alone(save_run, classes, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    classes.rename(root / "test")
    evaluation = evaluate.evaluate_checkpoint(str(save_run()), str(root), workers=0)
    assert evaluation.images.name == "test"
    assert evaluation.report.images == 4


def test_classes_that_do_not_fit_are_counted_in_this_split(save_run, classes, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    shutil.copytree(classes, root / "train")
    classes.rename(root / "test")
    (root / "test" / "contempt" / "1.jpg").unlink()
    for split, count in (("test", 1), ("train", 2)):
        images = open_split(root, "auto", split, about_of(CLASSES))
        assert images.other_classes == {"contempt": count}
    with pytest.raises(DataError, match="split must be one of .*; got val"):
        open_split(root, "auto", "val", about_of(CLASSES))


def test_digit_folders_mean_what_they_meant_in_training(save_run, classes, run_tool):
    for folder, digit in (("Happy", "0"), ("anger", "1"), ("contempt", "2")):
        (classes / folder).rename(classes / digit)
    run = save_run(extra=("--digits", "fer2013"))
    assert sorted({s.label for s in evaluated(run, classes)}) == [1, 2, 5]  # fear, disgust, anger
    assert sorted({s.label for s in evaluated(run, classes, digits=["affectnet"])}) == [3, 4, 6]
    (result,) = run_tool(run, "--data", classes)[0].values()
    assert result["set"] == "class folders, digits read as labels of fer2013"
    assert result["digits"] == ["fer2013"]


def evaluated(*args, **options):
    return evaluate.evaluate_checkpoint(*args, **options, workers=0).images.samples


@pytest.mark.parametrize("workers", [0, 1])
def test_skipping_a_bad_file_leaves_the_others_results_alone(save_run, classes, workers):
    run = save_run()
    whole = evaluate.evaluate_checkpoint(run, classes, workers=0)
    broken = break_image(classes)
    options = {"on_broken": "skip", "workers": workers, "batch_size": 2}
    rest = evaluate.evaluate_checkpoint(run, classes, **options)
    (reason,) = rest.unreadable
    assert reason.startswith(f"{broken}: ")
    assert rest.as_dict()["left_out"]["cannot be read"] == 1
    assert rest.report.images == 3
    place = [sample.path for sample in rest.images.samples].index(str(broken))
    assert np.isnan(rest.probabilities[place]).all()
    kept = np.arange(4) != place
    np.testing.assert_allclose(rest.probabilities[kept], whole.probabilities[kept], atol=1e-5)
    labels = np.array([sample.label for sample in whole.images.samples])
    correct = whole.probabilities.argmax(1) == labels
    assert rest.report.accuracy == pytest.approx(correct[kept].mean())
    loss = -np.log(whole.probabilities[np.arange(4), labels])
    assert rest.report.loss == pytest.approx(loss[kept].mean(), abs=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_without_skip_the_error_names_the_file(save_run, classes, workers):
    broken = break_image(classes)
    message = rf"^cannot read image {broken}: .*; --on-broken skip leaves such images out$"
    with pytest.raises(DataError, match=message):
        evaluate.evaluate_checkpoint(save_run(), classes, workers=workers)


def test_missing_files_are_found_before_anything_is_computed(save_run, classes, monkeypatch):
    network, about = checkpoint.load_network(save_run())
    images = open_split(classes, "auto", None, about)
    (classes / "Happy" / "1.jpg").unlink()
    monkeypatch.setattr(network, "forward", lambda *_: pytest.fail("it computes"))
    message = r"1 of the 4 images of split all are missing, .*1\.jpg first; --on-broken skip"
    with pytest.raises(DataError, match=message):
        evaluate.evaluate_split(network, about, images, workers=0)


def test_when_no_image_can_be_read(save_run, classes):
    for path in classes.glob("*/*.jpg"):
        path.write_text("no image")
    with pytest.raises(DataError, match="not one image can be read"):
        evaluate.evaluate_checkpoint(save_run(), classes, workers=0, on_broken="skip")


def test_skipped_files_are_named_and_counted(save_run, classes, run_tool):
    broken = break_image(classes)
    results, printed = run_tool(save_run(), "--data", classes, "--on-broken", "skip")
    (result,) = results.values()
    assert result["left_out"]["cannot be read"] == 1
    assert result["unreadable"][0].startswith(f"{broken}: ")
    assert printed.err.startswith(f"left out: {broken}: ")
    assert "left out: 1 images that cannot be read" in printed.out


def test_results_say_what_they_are_of(save_run, classes, run_tool, monkeypatch):
    run = save_run()
    monkeypatch.chdir(classes.parent)
    results, _ = run_tool("run/best.pt", "--data", "classes")
    assert list(results) == ["run-best-classes-all.json"]
    result = results["run-best-classes-all.json"]
    assert result["checkpoint"] == str(run / "best.pt")
    assert result["epoch"] == 3
    assert result["chosen"] == "the last"
    assert result["data"] == str(classes)
    assert (result["layout"], result["split"]) == ("folder", "all")
    assert "class folders" in result["set"]
    assert result["class_names"] == list(CLASSES)
    assert result["versions"]["torch"] == torch.__version__
    assert result["checkpoint_versions"].keys() == result["versions"].keys()


def test_other_checkpoints_data_and_splits_have_files_of_their_own(
    save_run, classes, faces, run_tool
):
    first, second = save_run("first", files=("best.pt", "last.pt")), save_run("second")
    run_tool(first, "--data", classes)
    run_tool(second, "--data", classes)
    run_tool(second, "--data", faces)
    results, _ = run_tool(second, "--data", faces, "--split", "train")
    assert set(results) == {
        "first-best-classes-all.json",
        "first-last-classes-all.json",
        "second-best-classes-all.json",
        "second-best-faces-test.json",
        "second-best-faces-train.json",
    }


def test_results_of_another_evaluation_are_not_replaced(save_run, classes, run_tool, tmp_path):
    run, namesake = save_run(), save_run("elsewhere/run")
    before, _ = run_tool(run, "--data", classes)
    run_tool(run, "--data", classes)  # the same again
    message = r"holds other results \(of another checkpoint\); choose another --output"
    with pytest.raises(ConfigError, match=message):
        run_tool(namesake, "--data", classes)
    with pytest.raises(ConfigError, match=r"\(of another precision\)"):
        run_tool(run, "--data", classes, "--precision", "bf16")
    (file,) = (tmp_path / "results").glob("*.json")
    assert {file.name: json.loads(file.read_text())} == before
    file.write_text("[]")
    with pytest.raises(ConfigError, match="of another content"):
        run_tool(run, "--data", classes)


def test_table_of_images(save_run, classes, run_tool, tmp_path):
    awkward = classes / "anger" / os.fsdecode(b"\xe9t\xe9,\n.jpg")
    (classes / "anger" / "1.jpg").rename(awkward)
    broken = break_image(classes)
    run_tool(save_run(), "--data", classes, "--csv", "--on-broken", "skip")
    table = tmp_path / "results" / "run-best-classes-all.csv"
    with open(table, encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    probability = [f"p_{name}" for name in CLASSES]
    assert list(rows[0]) == ["path", "label", "prediction", *probability]
    evaluation = evaluate.evaluate_checkpoint(
        tmp_path / "run", classes, workers=0, on_broken="skip"
    )
    samples = evaluation.images.samples
    assert [row["path"] for row in rows] == [sample.path for sample in samples]
    assert str(awkward) in [row["path"] for row in rows]
    assert [row["label"] for row in rows] == [CLASSES[sample.label] for sample in samples]
    for row, expected in zip(rows, evaluation.probabilities, strict=True):
        values = [row[name] for name in probability]
        if row["path"] == str(broken):
            assert {row["prediction"], *values} == {""}
        else:
            assert row["prediction"] == CLASSES[expected.argmax()]
            np.testing.assert_allclose([float(value) for value in values], expected, atol=1e-6)


def test_names_of_any_bytes_and_dollar_signs(save_run, classes, run_tool):
    root = classes.with_name(os.fsdecode(b"$\xe9t\xe9$_{"))
    classes.rename(root)
    results, _ = run_tool(save_run("$a_{$"), "--data", root)
    (result,) = results.values()
    assert result["data"] == str(root)


@pytest.mark.parametrize("file", ["best.pt", "last.pt"])
def test_a_run_folder_with_one_checkpoint(save_run, classes, run_tool, file):
    results, _ = run_tool(save_run(files=(file,)), "--data", classes)
    assert list(results) == [f"run-{file[:-3]}-classes-all.json"]


def test_a_run_folder_without_checkpoints_is_one_line(save_run, classes, capsys):
    folder = save_run(files=())
    with pytest.raises(SystemExit) as stop:
        errors.run(lambda: evaluate.main([str(folder), "--data", str(classes)]))
    assert stop.value.code == 2
    assert f"there is no best.pt in {folder}" in capsys.readouterr().err
