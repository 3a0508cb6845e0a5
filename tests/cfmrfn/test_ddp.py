"""Two processes under torchrun give what one process gives with the same global batch."""

import csv
import subprocess
import sys

import pytest

from cfmrfn.config import parse_config
from cfmrfn.train import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def torchrun(args):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    result = subprocess.run(
        [*command, "2", "-m", "cfmrfn.train", *args], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.parametrize(
    ("together", "alone"),
    [
        # batch statistics over both processes: one process with the whole batch at once
        (["--drop-path-rate", "0"], []),
        # batch statistics of each: one process with as many micro-batches, stochastic depth too
        (["--drop-path-rate", "0.3", "--no-sync-batchnorm"], ["--accumulate", "2"]),
    ],
    ids=["whole batch", "micro-batches"],
)
def test_two_processes_equal_one(options, tmp_path, together, alone):
    # a small learning rate: the comparison is of arithmetic, not of how chaos magnifies rounding
    shared = [*options, *together, "--lr", "1e-4", "--clip", "1", "--ema", "0.5"]
    torchrun([*shared, "--output", str(tmp_path / "two")])
    Trainer(parse_config([*shared, *alone, "--output", str(tmp_path / "one")])).train()
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
    for name in ("train_loss", "train_accuracy"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-5)
    if not alone:  # micro-batches move running statistics one after the other, processes at once
        assert two[-1]["test_loss"] == pytest.approx(one[-1]["test_loss"], rel=1e-5)
    # 15 held-out images over two processes: each counted once
    assert (two[-1]["test_accuracy"] * 15) % 1 == pytest.approx(0, abs=1e-9)
    assert '"images": 15' in (tmp_path / "two" / "report.json").read_text()
