"""Tables 3 to 6: rows that are the paper's, runs that are not repeated."""

import dataclasses
import json
import shutil

import pytest

from cfmrfn import checkpoint, complexity, errors, sweep
from cfmrfn.config import Config, parse_config
from cfmrfn.evaluation import student
from cfmrfn.sweep import TABLES
from cfmrfn.train import Interrupted
from cfmrfn.weights import initial_weights

NO_COST = complexity.Cost(0, 0, 0, 0, 0)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_network_of_its_own(name):
    seen = set()
    for row in TABLES[name].rows:
        base = parse_config(["--image-size", "64"])
        network = dataclasses.replace(base.network, **row.network)
        checkpoint.build_network(dataclasses.replace(base, network=network), 7)
        seen.add(repr(network))
        assert len(row.paper) == len(TABLES[name].paper)
    assert len(seen) == len(TABLES[name].rows)


def test_sweep_trains_resumes_and_compares(options, faces, tmp_path, capsys, monkeypatch):
    args = ["table5", *options, "--epochs", "1", "--schedule", "exponential"]
    args += ["--rho", "0", "--image-size", "32"]
    args += ["--output", str(tmp_path / "t"), "--seeds"]
    rows = TABLES["table5"].rows[1:]
    monkeypatch.setitem(TABLES, "table5", TABLES["table5"]._replace(rows=rows))
    sweep.main([*args, "0"])
    table = (tmp_path / "t" / "table.md").read_text()
    assert "| sliding dilated window |" in table
    assert "Noise is not known" in table
    assert "cfmrfn_tiny with depth 1 on drawn faces, 1 epoch; epoch chosen: best on" in table
    monkeypatch.setattr(sweep, "_cost", lambda config, row: NO_COST)

    capsys.readouterr()
    trained = []

    class Counting(sweep.Trainer):
        def __init__(self, config: Config) -> None:
            trained.append(config.run.output)
            super().__init__(config)

    monkeypatch.setattr(sweep, "Trainer", Counting)
    (tmp_path / "t" / "sliding-window" / "seed-0" / "report.json").unlink()
    sweep.main([*args, "0", "1"])
    # the run that lost its report, and the two of the new seed
    assert len(trained) == 3
    printed = capsys.readouterr().out
    assert "4 runs in" in printed and "3 to do" in printed
    assert "run 4 of 4: sliding dilated window, seed 1; about 1 min to go" in printed
    assert "means over seeds 0, 1" in printed

    # what is complete goes on to more epochs, and is then complete again
    trained.clear()
    for _ in range(2):
        sweep.main([*args, "0", "--epochs", "2"])
        assert len(trained) == 2
    assert "2 epochs" in (tmp_path / "t" / "table.md").read_text()
    # with the images elsewhere they are checked
    trained.clear()
    for name in ("moved", "other"):
        shutil.copytree(faces, tmp_path / name)
    labels = tmp_path / "other" / "EmoLabel" / "list_patition_label.txt"
    labels.write_text(labels.read_text().replace(" 1\n", " 2\n", 1))
    longer = [*args, "0", "--epochs", "2", "--data"]
    sweep.main([*longer, str(tmp_path / "moved")])
    assert len(trained) == 2
    with pytest.raises(errors.CheckpointError, match="other images or labels"):
        sweep.main([*longer, str(tmp_path / "other")])

    with pytest.raises(errors.ConfigError, match=r"lr 0.002, not 0.5"):
        sweep.main([*args, "0", "--lr", "0.5"])


@pytest.fixture
def results():
    """Of the rows of Table 4: of three seeds, none, two of them, and three that are the same."""

    def report(accuracy):
        return {"data": "set", "chosen_on": "val", "held_out": {"val": {"accuracy": accuracy}}}

    return {
        "8, 0, 0": {0: report(0.50), 1: report(0.53), 2: report(0.56)},
        "0, 4, 4": {},
        "2, 3, 3": {0: report(0.60), 1: report(0.63), 2: report(0.67)},
        "4, 2, 2": {0: report(0.59), 2: report(0.68)},
    }


def test_differences_are_told_from_noise(results):
    costs = dict.fromkeys(results, NO_COST)
    text = sweep.format_table(TABLES["table4"], results, costs, (0, 1, 2), parse_config([]))
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines()}
    # 0.03 x 4.3027 / sqrt(3), and differences of 0.10, 0.10 and 0.11
    assert rows["8, 0, 0"][1].strip() == "53.00 (45.55 to 60.45)"
    assert rows["8, 0, 0"][2].strip() == "-10.33 (-11.77 to -8.90)"
    assert rows["0, 4, 4"][1].strip() == rows["0, 4, 4"][2].strip() == "-"
    assert rows["2, 3, 3"][2].strip() == "-"
    assert rows["4, 2, 2"][1].strip() == "63.50 (6.32 to 100.00), 2 of 3 runs"
    assert rows["4, 2, 2"][2].strip() == "+0.00 (-12.71 to +12.71)"
    assert "Beyond noise, 0 being outside of the interval, from 2, 3, 3: 8, 0, 0 (-10.33)." in text
    assert "Within noise, not told apart from 2, 3, 3: 4, 2, 2 (+0.00)." in text


@pytest.mark.parametrize(
    "args, said",
    [
        ([], "Recipe drawn. "),
        (
            ["--image-size", "64", "--drawn-train", "70", "--scale", "0.9", "1.1", "--clip", "1"],
            "Recipe drawn with drawn-train 70, image-size 64, scale 0.9 1.1, clip 1.0. ",
        ),
        (["--recipe", "rafdb", "--no-boxes"], "Recipe rafdb with boxes False. "),
        (["--data", ".", "--epochs", "3", "--depth", "2", "--no-tensorboard"], "Recipe drawn. "),
    ],
    ids=["none", "images and optimisation", "of another recipe", "said elsewhere"],
)
def test_the_caption_names_what_departs_from_the_recipe(results, args, said):
    costs = dict.fromkeys(results, NO_COST)
    text = sweep.format_table(TABLES["table4"], results, costs, (0, 1, 2), parse_config(args))
    assert said in text.splitlines()[-1]


@pytest.mark.parametrize("changed", [{"fingerprint": "b"}, {"image_bytes": 8}])
def test_rows_on_other_images_are_named(results, changed):
    costs = dict.fromkeys(results, NO_COST)
    reports = [report for own in results.values() for report in own.values()]
    for report in reports[1:]:  # the first is of a former run, which tells nothing
        report |= {"fingerprint": "a", "image_bytes": 9}
    seeds, config = (0, 1, 2), parse_config([])
    text = sweep.format_table(TABLES["table4"], results, costs, seeds, config)
    assert "Images differ" not in text
    results["4, 2, 2"][2] |= changed
    text = sweep.format_table(TABLES["table4"], results, costs, seeds, config)
    assert "**Images differ**: 4, 2, 2 (seed 2)." in text


def test_intervals_are_students():
    # any table of the t distribution
    known = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 30: 2.042, 1000: 1.962}
    for freedom, expected in known.items():
        assert student.quantile(freedom) == pytest.approx(expected, abs=6e-4)
    assert student.mean([7.0]) == (7.0, None)


def test_tables_share_rows_and_go_on_where_they_stopped(tmp_path, monkeypatch, capsys):
    trained, stops = [], []

    class Told:
        """A run that is done at once; the sixth is killed in the middle."""

        def __init__(self, config):
            self.config = initial_weights.with_chosen_landmarks(config)

        def train(self):
            folder = self.config.run.output
            trained.append((folder.parent.name, folder.name))
            if self.config.run.resume is None:
                folder.mkdir(parents=True)
                (folder / "config.yaml").write_text(self.config.absolute().to_yaml())
            if not stops and len(trained) == 6:
                stops.append(folder)
                raise Interrupted
            accuracy = {"accuracy": 0.5 + len(trained) / 100}
            report = {"data": "set", "chosen_on": "val", "held_out": {"val": accuracy}}
            (folder / "report.json").write_text(json.dumps(report))

    monkeypatch.setattr(sweep, "Trainer", Told)
    monkeypatch.setattr(sweep, "_cost", lambda config, row: NO_COST)
    args = ["table4", "table6", "--image-size", "64", "--depth", "1", "--seeds", "0", "1"]
    args += ["--output", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        sweep.main(args)
    assert stopped.value.code == 130
    names = ["8-0-0", "0-4-4", "2-3-3", "4-2-2", "without-windows", "without-cross-fusion"]
    assert trained == [(name, "seed-0") for name in names]
    table = (tmp_path / "table.md").read_text()
    assert "Table 4" in table and "Table 6" in table and "51.00, 1 of 2 runs" in table

    trained.clear()
    sweep.main(args)
    names += ["expression-only", "landmarks-only"]
    every = [(name, f"seed-{seed}") for seed in (0, 1) for name in names]
    assert trained == [every[5], *every[6:]]
    with pytest.raises(errors.ConfigError, match="was started with gray None, not True. Sweep"):
        sweep.main([*args, "--gray", "True"])
    text = (tmp_path / "table.md").read_text()
    assert "of 2 runs" not in text
    sweep.main(args)
    assert text.strip() in capsys.readouterr().out
    cells = {}
    for line in text.splitlines():
        label, *others = [cell.strip() for cell in line.strip("|").split(" | ")]
        cells[label] = others[:1]
    assert cells["8, 0, 0"] == cells["without multi-level dilation"]
    assert cells["2, 3, 3"] == cells["CFMRFN"] != cells["without windows"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["table7"], "table7"),
        (["table4", "--seeds", "1", "1"], "seeds must be distinct"),
        (["table4", "--seeds", "-1"], "seeds must be distinct, 0 or more"),
        (["table4", "table4"], "tables must be distinct"),
        ([], "tables must be distinct, at least one; got none"),
        (["table4", "--resume", "x"], "leave --resume out"),
        (["table4", "--batch-size", "0"], "batch-size must be 1 or more"),
        (["table4", "--seeds", "0", "--seed", "3"], "seed must be left out, .*got 3"),
        (["table3", "--depth", "1"], "depth must be left out, as the rows of table3 .*got 1"),
        (["table6", "table3", "--depth", "1"], "depth must be left out, as the rows of table3"),
        (["table6", "--streams", "expression"], "streams must be left out, .*got expression"),
        (["table6", "--head-dilations", *"1122"], "head-dilations must be left out, .*got 1 1 2 2"),
        (["table4", "--attention", "window"], "attention must be left out, .*got window"),
        (["table5", "--head-dilations", *"1122"], "head-dilations must be left out"),
    ],
)
def test_bad_sweeps(args, message):
    with pytest.raises(errors.ConfigError, match=message):
        sweep.main(args)


def test_rows_are_what_they_are_called_whatever_init_is(tmp_path):
    """A checkpoint's network completes rows that leave an option open, and no others."""
    config = parse_config(["--image-size", "64", "--streams", "expression", "--depth", "1"])
    network = checkpoint.build_network(config, 7)
    about = checkpoint.About.of_run(config, tuple("abcdefg")).to_dict()
    checkpoint.save(tmp_path / "best.pt", {"model": network.state_dict(), "about": about})
    config = parse_config(["--init", str(tmp_path)])
    with pytest.raises(errors.ConfigError, match=r"preset's streams, .*table6.* has expression"):
        sweep.sweep(["table6"], [0], config)
    assert sweep.open_to_rows(["table3"], config).network.depth == 1
