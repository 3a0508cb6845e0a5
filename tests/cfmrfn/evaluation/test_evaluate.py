"""Evaluation: on any folder with labels, over bad files, and what is said and written of it."""

import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cfmrfn import checkpoint, evaluate, inference
from cfmrfn.config import parse_config
from cfmrfn.errors import CheckpointError, ConfigError, DataError
from cfmrfn.evaluation import bootstrap
from cfmrfn.inference import open_split
from cfmrfn.process import command
from tests.cfmrfn import public_sets
from tests.cfmrfn.processes import forked

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")

pytestmark = pytest.mark.usefixtures("one_thread", "no_network")


def about_of(class_names, *options):
    """What a checkpoint of a run with these options says of itself."""
    return checkpoint.About.of_run(parse_config(options), class_names)


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


@pytest.fixture
def leaking(classes, tmp_path) -> Path:
    """A test split of six images, two of which are training images too, one in another file."""
    root = tmp_path / "leaking"
    shutil.copytree(classes, root / "test")
    for folder, test, train in (("Happy", 0, 0), ("anger", 1, 0)):
        image = root / "train" / folder / f"{train}.png"
        image.parent.mkdir(parents=True)
        with Image.open(root / "test" / folder / f"{test}.jpg") as picture:
            picture.save(image)
            other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        other.save(image.with_name("mirrored.png"))
    return root


def test_results_are_given_with_and_without_duplicates(
    save_run, leaking, run_tool, tmp_path, monkeypatch
):
    for name in ("plot_confusion", "plot_reliability"):
        monkeypatch.setattr(evaluate, name, lambda path, *_: path.touch())
    run, other = save_run(), save_run("other")
    results, printed = run_tool(run, other, "--data", leaking, "--csv")
    result = results["run-best-leaking-test.json"]
    names = [str(leaking / "test" / name) for name in ("Happy/0.jpg", "anger/1.jpg")]
    assert result["duplicates"] == {"left_out": False, "of": "training", "images": names}
    assert "2 images are pixel for pixel training images" in printed.out
    with open(tmp_path / "results" / "run-best-leaking-test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows if row["duplicate"] == "1"] == names

    # that is what evaluation of the others alone gives
    dropped, said = run_tool(run, other, "--data", leaking, "--drop-duplicates")
    alone = dropped["run-best-leaking-test-unique.json"]
    assert alone["duplicates"] == {"left_out": True, "of": "training", "images": names}
    assert alone["without_duplicates"] is None
    without = result["without_duplicates"]
    assert (result["images"], without["images"], alone["images"]) == (4, 2, 2)
    for key, value in without.items():
        assert_same(value, alone[key])
    assert "left out: 2 images that are pixel for pixel training images" in said.out
    text = f"without the 2 images that are training images too: accuracy {alone['accuracy']:.4f}"
    assert text in printed.out and text not in said.out

    row, _ = results["run+other-comparison-leaking-test.json"]["runs"]
    assert row["images_without_duplicates"] == 2
    assert row["accuracy_without_duplicates"] == alone["accuracy"]
    assert "without duplicates, %" in printed.out
    row, second = dropped["run+other-comparison-leaking-test-unique.json"]["runs"]
    assert row["accuracy_without_duplicates"] is None
    assert second["images_of_both"] == 2


def test_copies_of_validation_images_are_duplicates_of_a_test_split(save_run, leaking):
    """These choose the epoch; the validation split itself is compared with the training split."""
    (leaking / "val" / "anger").mkdir(parents=True)
    (leaking / "val" / "Happy").mkdir()
    with Image.open(leaking / "test" / "anger" / "0.jpg") as picture:
        picture.save(leaking / "val" / "anger" / "0.png")
    shutil.copy(leaking / "train" / "Happy" / "0.png", leaking / "val" / "Happy")
    for split, of, names in (
        ("test", "training or validation", ["Happy/0.jpg", "anger/0.jpg", "anger/1.jpg"]),
        ("val", "training", ["Happy/0.png"]),
    ):
        evaluation = evaluate.evaluate_checkpoint(save_run(split), leaking, split=split, workers=0)
        found = evaluation.as_dict()["duplicates"]
        expected = [str(leaking / split / name) for name in names]
        assert found == {"left_out": False, "of": of, "images": expected}
        assert f"images that are {of} images too: accuracy" in str(evaluation)
        alone = evaluation.images.without_duplicates()
        assert len(alone.samples) == len(evaluation.images.samples) - len(names)
        assert f"that are pixel for pixel {of} images" in alone.about_duplicates()[0]


def test_duplicates_of_a_large_set_are_looked_for_only_when_asked(
    save_run, leaking, run_tool, monkeypatch
):
    monkeypatch.setattr(inference, "UNASKED", 1000)
    run = save_run()
    results, printed = run_tool(run, "--data", leaking)
    (result,) = results.values()
    assert result["duplicates"] is result["without_duplicates"] is None
    assert "--drop-duplicates finds evaluation images that are training" in printed.out
    assert run_tool(run, "--data", leaking, "--drop-duplicates", output="unique")[0].popitem()[1][
        "duplicates"
    ]["left_out"]
    with pytest.raises(DataError, match="has none beside split train"):
        run_tool(run, "--data", leaking, "--split", "train", "--drop-duplicates")
    shutil.rmtree(leaking / "test")
    shutil.copytree(leaking / "train", leaking / "test")
    with pytest.raises(DataError, match="every image of split test of .* is a training image too"):
        run_tool(run, "--data", leaking, "--drop-duplicates")


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


def test_a_split_without_any_class_of_the_checkpoint(save_run, classes, run_tool):
    for folder in ("Happy", "anger"):
        shutil.copytree(classes / folder, classes / "train" / folder)
        shutil.rmtree(classes / folder)
    (classes / "test").mkdir()
    (classes / "contempt").rename(classes / "test" / "contempt")
    with pytest.raises(
        DataError, match="split test of .* has no image of the checkpoint's classes"
    ):
        run_tool(save_run(), "--data", classes)


def test_digit_folders_mean_what_they_meant_in_training(save_run, classes, run_tool):
    for folder, digit in (("Happy", "0"), ("anger", "1"), ("contempt", "2")):
        (classes / folder).rename(classes / digit)
    run = save_run(extra=("--digits", "fer2013"))
    assert sorted({s.label for s in evaluated(run, classes)}) == [1, 2, 5]  # fear, disgust, anger
    assert sorted({s.label for s in evaluated(run, classes, digits=["affectnet"])}) == [3, 4, 6]
    (result,) = run_tool(run, "--data", classes)[0].values()
    assert result["set"] == "class folders, digits read as labels of fer2013"
    assert result["digits"] == ["fer2013"]


def test_digits_that_were_given_and_have_no_effect_are_told(classes):
    """Not those of the training set, which need not be those of this one."""
    about = about_of(CLASSES, "--digits", "fer2013")
    assert open_split(classes, "auto", None, about).without_effect == []
    split = open_split(classes, "auto", None, about, digits=["rafdb"])
    assert split.remarks()[-1].startswith("digits rafdb has no effect, as no class folders")


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
    every_first = dataclasses.replace(rest, labels=np.zeros(4, dtype=np.int64))
    assert not every_first.is_correct[place]  # although it has no class that is above the first
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
        "first-comparison-classes-all.json",
        "second-best-classes-all.json",
        "second-best-faces-test.json",
        "second-best-faces-train.json",
    }


def test_results_of_another_evaluation_are_not_replaced(save_run, classes, run_tool, tmp_path):
    run, namesake = save_run(), save_run("elsewhere/run")
    before, _ = run_tool(run, "--data", classes)
    run_tool(run, "--data", classes)  # the same again
    message = (
        r"holds other results \(of another checkpoint, network's weights\); choose another --output"
    )
    with pytest.raises(ConfigError, match=message):
        run_tool(namesake, "--data", classes)
    with pytest.raises(ConfigError, match=r"\(of another precision\)"):
        run_tool(run, "--data", classes, "--precision", "bf16")
    trained_anew = checkpoint.load(run / "best.pt")
    trained_anew["model"]["head.bias"] += 1
    checkpoint.save(run / "best.pt", trained_anew)
    with pytest.raises(ConfigError, match=r"\(of another network's weights\)"):
        run_tool(run, "--data", classes)
    (file,) = (tmp_path / "results").glob("*.json")
    assert {file.name: json.loads(file.read_text())} == before
    file.write_text("[]")
    with pytest.raises(ConfigError, match="of another content"):
        run_tool(run, "--data", classes)


def test_a_folder_that_cannot_be_written_is_told_first(save_run, classes, tmp_path, monkeypatch):
    def nothing(*_, **__):
        raise AssertionError("computed")

    monkeypatch.setattr(evaluate, "evaluate_split", nothing)
    run = save_run()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "results"):
        with pytest.raises(OSError, match=str(folder)):
            evaluate.main([str(run), "--data", str(classes), "--output", str(folder)])


def test_results_do_not_lie_beside_a_table_of_others(save_run, classes, run_tool, tmp_path):
    run = save_run()
    run_tool(run, "--data", classes, "--csv")
    run_tool(run, "--data", classes)  # the same again: the table is of these
    name = "run-best-classes-all"
    files = [f"{name}{end}" for end in (".json", ".png", "-confusion.csv", "-reliability.png")]
    table = tmp_path / "results" / f"{name}.csv"
    with pytest.raises(ConfigError, match=f"or remove {', '.join([*files, table.name])}$"):
        run_tool(run, "--data", classes, "--precision", "bf16")
    table.with_suffix(".json").unlink()
    message = (
        f"{table} is of results whose {name}.json is gone, .* remove it, replace it with --csv"
    )
    with pytest.raises(ConfigError, match=message):
        run_tool(run, "--data", classes)
    run_tool(run, "--data", classes, "--csv")
    table.with_suffix(".json").unlink()
    table.unlink()
    run_tool(run, "--data", classes)
    assert sorted(path.name for path in table.parent.iterdir()) == sorted(files)


def test_table_of_images(save_run, classes, run_tool, tmp_path):
    awkward = classes / "anger" / os.fsdecode(b"\xe9t\xe9,\n.jpg")
    (classes / "anger" / "1.jpg").rename(awkward)
    broken = break_image(classes)
    run_tool(save_run(), "--data", classes, "--csv", "--on-broken", "skip")
    table = tmp_path / "results" / "run-best-classes-all.csv"
    with open(table, encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    probability = [f"p_{name}" for name in CLASSES]
    assert list(rows[0]) == ["path", "label", "duplicate", "prediction", *probability]
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
        command.run(lambda: evaluate.main([str(folder), "--data", str(classes)]))
    assert stop.value.code == 2
    assert f"there is no best.pt in {folder}" in capsys.readouterr().err


# What is measured


def test_everything_is_of_the_probabilities(save_run, faces, run_tool):
    run = save_run()
    (result,) = run_tool(run, "--data", faces)[0].values()
    evaluation = evaluate.evaluate_checkpoint(run, faces, workers=0)
    labels = np.array([sample.label for sample in evaluation.images.samples])
    probabilities = evaluation.probabilities
    correct = probabilities.argmax(1) == labels
    confidence = probabilities.max(1)
    assert result["accuracy"] == correct.mean()
    squares = (probabilities - np.eye(7)[labels]) ** 2
    assert result["brier_score"] == pytest.approx(squares.sum(1).mean())
    place = np.ceil(confidence * 15).astype(int) - 1
    gaps = [
        (place == bin_).mean()
        * abs(correct[place == bin_].mean() - confidence[place == bin_].mean())
        for bin_ in set(place)
    ]
    assert result["calibration"]["ece"] == pytest.approx(sum(gaps))
    assert sum(each["images"] for each in result["calibration"]["bins"]) == 15
    intervals = bootstrap.accuracy_intervals(labels, correct)
    for name, interval in intervals.items():
        assert result["bootstrap"][name] == list(interval)
        assert interval.low <= result[name] <= interval.high
    assert result["bootstrap"]["resamples"] >= 2000


def test_what_is_printed(save_run, faces, run_tool):
    results, printed = run_tool(save_run(), "--data", faces)
    (result,) = results.values()
    low, high = result["bootstrap"]["accuracy"]
    line = f"overall accuracy     {result['accuracy']:.4f}  95 % interval {low:.4f} to {high:.4f}"
    assert line in printed.out.splitlines()
    assert "15 equal-width bins" in printed.out
    assert "precision  recall      F1  images" in printed.out
    assert "The paper has no table for drawn faces, split test, 7 classes;" in printed.out
    assert "classes of both" not in printed.out
    assert "mirror" not in printed.out


def test_the_confusion_matrix_as_a_table(save_run, faces, run_tool, tmp_path):
    (result,) = run_tool(save_run(), "--data", faces)[0].values()
    with open(tmp_path / "results" / "run-best-faces-test-confusion.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["true \\ predicted", *CLASSES]
    assert [row[0] for row in rows] == list(CLASSES)
    assert [list(map(int, row[1:])) for row in rows] == result["confusion_matrix"]


def test_flip_is_the_mean_over_image_and_mirror_image(save_run, faces, run_tool, tmp_path):
    run = save_run()
    network, about = checkpoint.load_network(run)
    plain = evaluate.evaluate_checkpoint(run, faces, workers=0)

    def mirrored(images):
        return network(images.flip(-1))

    mirrored.eval = mirrored.to = lambda *_: mirrored
    other = evaluate.evaluate_split(mirrored, about, plain.images, workers=0)
    both = evaluate.evaluate_checkpoint(run, faces, workers=0, flip=True)
    expected = (plain.probabilities + other.probabilities) / 2
    assert np.abs(plain.probabilities - other.probabilities).max() > 1e-3
    np.testing.assert_allclose(both.probabilities, expected, atol=1e-6)
    labels = both.labels
    loss = -np.log(expected[np.arange(15), labels]).mean()
    assert both.report.loss == pytest.approx(loss, abs=1e-6)
    guesses = expected.argmax(1)
    assert both.report.accuracy == (guesses == labels).mean()

    results, printed = run_tool(run, "--data", faces, "--flip")
    assert list(results) == ["run-best-faces-test-flip.json"]
    assert results["run-best-faces-test-flip.json"]["flip"] is True
    assert "mean of those of each image and of its mirror image" in printed.out
    results, _ = run_tool(run, "--data", faces)
    assert results["run-best-faces-test.json"]["flip"] is False
    folder = tmp_path / "results"
    (folder / "run-best-faces-test-flip.json").rename(folder / "run-best-faces-test.json")
    with pytest.raises(ConfigError, match=r"\(of another flip\)"):
        run_tool(run, "--data", faces)


def test_results_from_before_an_option_are_those_without_it(save_run, classes, run_tool, tmp_path):
    run = save_run()
    run_tool(run, "--data", classes)
    file = tmp_path / "results" / "run-best-classes-all.json"
    result = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in result.items() if k != "flip"}))
    assert run_tool(run, "--data", classes)[0] == {file.name: result}


def test_output_that_is_not_finite_is_an_error(save_run, classes):
    network, about = checkpoint.load_network(save_run())
    images = open_split(classes, "auto", None, about)
    with torch.no_grad():
        network.head.bias[2] = torch.nan
    message = rf"not finite, for {images.samples[0].path} first: .*--precision float32"
    with pytest.raises(CheckpointError, match=message):
        evaluate.evaluate_split(network, about, images, workers=0)


# Classes of another set


def test_predictions_among_the_shared_classes(save_run, classes, run_tool, tmp_path):
    run = save_run()
    every = evaluate.evaluate_checkpoint(run, classes, workers=0)
    shared = evaluate.evaluate_checkpoint(run, classes, workers=0, shared_classes=True)
    assert shared.class_names == ("happiness", "anger")
    kept = every.probabilities[:, [3, 5]]
    np.testing.assert_allclose(shared.probabilities, kept / kept.sum(1, keepdims=True), atol=1e-9)
    labels = [{3: 0, 5: 1}[sample.label] for sample in shared.images.samples]
    assert shared.labels.tolist() == labels
    assert shared.report.accuracy == (kept.argmax(1) == labels).mean()
    assert shared.report.matrix.shape == (2, 2)

    both = "classes of both: happiness, anger (2 of the checkpoint's 7 and of the data set's 3)"
    results, printed = run_tool(run, "--data", classes)
    assert both in printed.out
    assert "predictions are among all 7 of the checkpoint, so that one of the others" in printed.out
    results, printed = run_tool(run, "--data", classes, "--shared-classes", "--csv")
    assert set(results) == {"run-best-classes-all.json", "run-best-classes-all-shared.json"}
    result = results["run-best-classes-all-shared.json"]
    assert result["shared_classes"] is True
    assert result["class_names"] == ["happiness", "anger"]
    assert result["checkpoint_classes"] == list(CLASSES)
    assert result["set_classes"] == ["happiness", "anger", "contempt"]
    assert result["classes_without_images"] == []
    assert list(result["per_class"]) == ["happiness", "anger"]
    assert both in printed.out
    assert "predictions are among these only, whose probabilities are scaled to" in printed.out
    with open(tmp_path / "results" / "run-best-classes-all-shared.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "duplicate", "prediction", "p_happiness", "p_anger"]
    assert [row["label"] for row in rows] == [shared.class_names[label] for label in labels]


def test_what_a_network_of_fewer_classes_predicts_is_said(save_run, classes, run_tool):
    run = save_run(class_names=("anger", "happiness"))
    _, printed = run_tool(run, "--data", classes)
    assert "classes of both: anger, happiness (2 of the checkpoint's 2 and of" in printed.out
    assert "predictions are among these, as the checkpoint knows no others" in printed.out


def test_a_class_of_the_set_without_images_is_shared(save_run, tmp_path):
    root = public_sets.rafdb(tmp_path, test=(5, 7))
    names = ("anger", "contempt", *CLASSES[:5], CLASSES[6])
    evaluation = evaluate.evaluate_checkpoint(
        save_run(class_names=names), root, workers=0, shared_classes=True
    )
    assert evaluation.class_names == ("anger", *CLASSES[:5], CLASSES[6])
    assert evaluation.labels.tolist() == [5, 6]


def test_one_shared_class_is_nothing_to_choose_from(save_run, classes, run_tool, tmp_path):
    run = save_run(class_names=("anger", "fear"))
    assert evaluate.evaluate_checkpoint(run, classes, workers=0).report.images == 2
    message = "share class anger only.*leave --shared-classes out"
    with pytest.raises(DataError, match=message):
        evaluate.evaluate_checkpoint(run, classes, workers=0, shared_classes=True)
    with pytest.raises(DataError, match=message):
        run_tool(save_run("first"), run, "--data", classes, "--shared-classes")
    assert not (tmp_path / "results").exists()  # nothing was computed of the first one


# Several processes


def test_two_processes_give_the_same_numbers(save_run, faces, tmp_path):
    """15 images over two processes, one of which cannot be read."""
    root = tmp_path / "data"
    shutil.copytree(faces, root / "faces")
    (root / "faces" / "Image" / "aligned" / "test_00004_aligned.jpg").write_text("no image")
    runs = [str(save_run(name)) for name in ("a", "other")]
    shared = [*runs, "--data", str(root / "faces"), "--workers", "0", "--device", "cpu", "--flip"]
    shared += ["--on-broken", "skip", "--csv"]
    evaluate.main([*shared, "--output", str(tmp_path / "one")])
    done = forked([*shared, "--output", str(tmp_path / "two")], ("-m", "cfmrfn.evaluate"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("overall accuracy") == 2  # one process prints
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {path.name for path in (tmp_path / "two").iterdir()}
    for name in files:
        if name.endswith(".json"):
            one, two = (json.loads((tmp_path / run / name).read_text()) for run in ("one", "two"))
            assert_same(one, two)


def assert_same(one, two):
    """Plain values are equal, and numbers up to rounding."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for pair in zip(one, two, strict=True):
            assert_same(*pair)
    elif isinstance(one, float):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-6)
    else:
        assert one == two
