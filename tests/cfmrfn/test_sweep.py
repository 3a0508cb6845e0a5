"""Tables 3 to 6: rows that are the paper's, runs that are not repeated."""

import dataclasses
import shutil

import pytest

from cfmrfn import errors, sweep
from cfmrfn.checkpoint import build_network
from cfmrfn.config import Config, parse_config
from cfmrfn.sweep import TABLES


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_network_of_its_own(name):
    seen = set()
    for row in TABLES[name].rows:
        base = parse_config(["--image-size", "64"])
        network = dataclasses.replace(base.network, **row.network)
        build_network(dataclasses.replace(base, network=network), 7)
        seen.add(repr(network))
        assert len(row.paper) == len(TABLES[name].paper)
    assert len(seen) == len(TABLES[name].rows)


def test_sweep_trains_resumes_and_compares(options, faces, tmp_path, capsys, monkeypatch):
    args = ["table5", *options, "--epochs", "1", "--schedule", "exponential"]
    args += ["--output", str(tmp_path / "t"), "--seeds"]
    rows = TABLES["table5"].rows[1:]
    monkeypatch.setitem(TABLES, "table5", TABLES["table5"]._replace(rows=rows))
    sweep.main([*args, "0"])
    table = (tmp_path / "t" / "table.md").read_text()
    assert "| sliding dilated window |" in table
    assert "92.14 | 67.35 |" in table
    assert "±" not in table

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
    assert "±" in capsys.readouterr().out

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

    with pytest.raises(errors.ConfigError, match=r"lr: 0.5, not"):
        sweep.main([*args, "0", "--lr", "0.5"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["table7"], "table7"),
        (["table4", "--seeds", "1", "1"], "seeds must be distinct"),
        (["table4", "--seeds", "-1"], "seeds must be distinct, 0 or more"),
        (["table4", "--resume", "x"], "leave --resume out"),
        (["table4", "--batch-size", "0"], "batch-size must be 1 or more"),
    ],
)
def test_bad_sweeps(args, message):
    with pytest.raises(errors.ConfigError, match=message):
        sweep.main(args)
