"""Several checkpoints on the same images: side by side, and their differences."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

from cfmrfn import checkpoint, evaluate
from cfmrfn.errors import ConfigError
from cfmrfn.evaluation import bootstrap, comparison
from cfmrfn.process import command

pytestmark = pytest.mark.usefixtures("one_thread", "no_network")


def test_side_by_side(save_run, faces, run_tool, tmp_path):
    runs = [save_run("a", files=("best.pt", "last.pt")), save_run("other")]
    results, printed = run_tool(*runs, runs[0], runs[0] / "best.pt", "--data", faces)
    assert set(results) == {
        "a-best-faces-test.json",
        "a-last-faces-test.json",
        "other-best-faces-test.json",
        "a+other-comparison-faces-test.json",
    }
    rows = results["a+other-comparison-faces-test.json"]["runs"]
    assert [row["name"] for row in rows] == ["a/best.pt", "a/last.pt", "other/best.pt"]
    alone = [
        evaluate.evaluate_checkpoint(path, faces, workers=0)
        for path in (runs[0] / "best.pt", runs[0] / "last.pt", runs[1])
    ]
    for row, evaluation in zip(rows, alone, strict=True):
        own = results[f"{row['name'].replace('/', '-')[:-3]}-faces-test.json"]
        for name in ("accuracy", "mean_class_accuracy", "macro_f1", "loss", "brier_score"):
            assert row[name] == own[name]
        assert row["ece"] == own["calibration"]["ece"]
        assert [row["accuracy_low"], row["accuracy_high"]] == own["bootstrap"]["accuracy"]
        assert row["checkpoint"] == own["checkpoint"]
        gain = evaluation.report.accuracy - alone[0].report.accuracy
        mean_gain = evaluation.report.mean_class_accuracy - alone[0].report.mean_class_accuracy
        if row is rows[0]:
            assert row["accuracy_difference"] is None
            continue
        assert row["accuracy_difference"] == pytest.approx(gain)
        assert row["mean_class_accuracy_difference"] == pytest.approx(mean_gain)
        paired = bootstrap.difference_intervals(
            evaluation.labels, evaluation.is_correct, alone[0].is_correct
        )
        for name, interval in paired.items():
            ends = [row[f"{name}_difference_{end}"] for end in ("low", "high")]
            assert ends == list(interval)
        assert row["images_of_both"] == 15
    assert rows[1]["accuracy_difference_low"] == rows[1]["accuracy_difference_high"] == 0
    assert rows[2]["accuracy_difference"] != 0
    with open(tmp_path / "results" / "a+other-comparison-faces-test.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for row, line in zip(rows, table, strict=True):
        assert line == {name: "" if row[name] is None else str(row[name]) for name in line}
    assert "| a/best.pt " in printed.out
    assert "Differences are to a/best.pt" in printed.out


def test_networks_of_other_classes_are_compared_on_the_images_that_both_had(
    save_run, classes, run_tool
):
    runs = [
        save_run("seven"),
        save_run("three", class_names=("contempt", "happiness", "anger")),
        save_run("two", class_names=("contempt", "fear")),
    ]
    results, printed = run_tool(*runs, "--data", classes)
    rows = results["seven+three+two-comparison-classes-all.json"]["runs"]
    assert [row["images"] for row in rows] == [4, 6, 2]
    assert [row["images_of_both"] for row in rows] == [None, 4, None]
    first, second = (evaluate.evaluate_checkpoint(run, classes, workers=0) for run in runs[:2])
    kept = second.labels != 0
    assert [s.path for s, keep in zip(second.images.samples, kept, strict=True) if keep] == [
        s.path for s in first.images.samples
    ]
    gain = second.is_correct[kept].mean() - first.is_correct.mean()
    assert rows[1]["accuracy_difference"] == pytest.approx(gain)
    assert "three/best.pt and seven/best.pt have 4 images in common." in printed.out
    assert "two/best.pt and seven/best.pt have no image with the same true class." in printed.out


def test_differences_are_of_the_same_images(save_run, classes):
    two = evaluate.evaluate_checkpoint(
        save_run("two", class_names=("anger", "contempt")), classes, workers=0
    )
    three = evaluate.evaluate_checkpoint(
        save_run("three", class_names=("contempt", "happiness", "anger")), classes, workers=0
    )
    assert two.labels.tolist() == [0, 0, 1, 1]
    assert three.labels.tolist() == [1, 1, 2, 2, 0, 0]  # the first two are happiness

    def with_right(evaluation, right):
        classes = len(evaluation.class_names)
        guesses = np.where(right, evaluation.labels, (evaluation.labels + 1) % classes)
        return dataclasses.replace(evaluation, probabilities=np.eye(classes)[guesses])

    two = with_right(two, [1, 1, 0, 0])
    three = with_right(three, [0, 0, 1, 1, 1, 0])
    gain = comparison.difference(three, two)
    assert gain.images == 4
    assert gain.values == {"accuracy": 0.25, "mean_class_accuracy": 0.25}
    loss = comparison.difference(two, three)
    assert loss.values == {"accuracy": -0.25, "mean_class_accuracy": -0.25}
    two.probabilities[3] = np.nan
    gain = comparison.difference(three, two)
    assert gain.images == 3
    assert gain.values == {"accuracy": pytest.approx(1 / 3), "mean_class_accuracy": 0.5}


def test_runs_of_one_name_are_told_apart(save_run, classes, run_tool):
    runs = [save_run("a/seed-0"), save_run("b/seed-0")]
    results, printed = run_tool(*runs, "--data", classes)
    assert set(results) == {
        "a-seed-0-best-classes-all.json",
        "b-seed-0-best-classes-all.json",
        "a-seed-0+b-seed-0-comparison-classes-all.json",
    }
    assert "| b-seed-0/best.pt " in printed.out


def test_runs_are_named_by_their_folders_and_by_nothing_in_the_root():
    assert evaluate._run_names(["/best.pt"]) == [""]
    assert evaluate._run_names(["/best.pt", "/run/best.pt"]) == ["", "run"]


def test_names_that_are_too_long_are_found_before_anything_is_computed(
    save_run, classes, run_tool, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "evaluate_split", None)
    run = save_run().rename(tmp_path / ("r" * 130))
    data = classes.rename(tmp_path / ("d" * 100))
    with pytest.raises(ConfigError, match="too long for a file: rename"):
        run_tool(run, "--data", data)


def test_checkpoints_whose_results_would_have_one_name(save_run, classes, run_tool):
    run = save_run()
    shutil.copy(run / "best.pt", run / "best.old")
    with pytest.raises(ConfigError, match="would have results of the same name.*--output"):
        run_tool(run / "best.pt", run / "best.old", "--data", classes)


def test_a_comparison_of_others_is_not_replaced(save_run, classes, run_tool, tmp_path):
    runs = [save_run("a"), save_run("b")]
    before, _ = run_tool(*runs, "--data", classes)
    assert run_tool(*runs, "--data", classes)[0] == before
    for path in (tmp_path / "results").glob("*-best-*.json"):
        path.unlink()
    shutil.copy(runs[1] / "best.pt", runs[1] / "last.pt")
    with pytest.raises(ConfigError, match=r"of another number of checkpoints\)"):
        run_tool(*runs, "--data", classes)
    with pytest.raises(ConfigError, match=r"\(of another precision\)"):
        run_tool(*(run / "best.pt" for run in runs), "--data", classes, "--precision", "bf16")
    trained_anew = checkpoint.load(runs[1] / "best.pt")
    trained_anew["model"]["head.bias"] += 1
    checkpoint.save(runs[1] / "best.pt", trained_anew)
    with pytest.raises(ConfigError, match=r"\(of another network's weights\)"):
        run_tool(*(run / "best.pt" for run in runs), "--data", classes)
    file = tmp_path / "results" / "a+b-comparison-classes-all.json"
    assert json.loads(file.read_text()) == before[file.name]


def test_a_missing_run_is_found_before_anything_is_computed(save_run, classes, tmp_path, capsys):
    args = [str(save_run()), str(tmp_path / "nowhere"), "--data", str(classes)]
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: evaluate.main([*args, "--output", str(tmp_path / "results")]))
    assert stop.value.code == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_many_runs_have_a_comparison_of_a_short_name(save_run, classes, run_tool):
    names = [f"{letter * 60}" for letter in "abc"]
    results, _ = run_tool(*map(save_run, names), "--data", classes)
    assert f"{names[0]}+2-more-comparison-classes-all.json" in results
