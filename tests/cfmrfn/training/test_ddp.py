"""Two processes give what one process gives with the same global batch."""

import csv
import shutil

import pytest

from cfmrfn.config import parse_config
from cfmrfn.data.synthetic import draw_face
from cfmrfn.evaluation import evaluate_checkpoint
from cfmrfn.train import Trainer
from tests.cfmrfn.processes import forked, torchrun

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("launch", "together", "alone"),
    [
        # batch statistics over both processes: one process with the whole batch at once
        (torchrun, ["--drop-path-rate", "0"], []),
        # batch statistics of each: one process with as many micro-batches, stochastic depth too
        (forked, ["--drop-path-rate", "0.3", "--no-sync-batchnorm"], ["--accumulate", "2"]),
    ],
    ids=["whole batch", "micro-batches"],
)
def test_two_processes_equal_one(options, tmp_path, launch, together, alone):
    # a small learning rate: the comparison is of arithmetic, not of how chaos magnifies rounding
    shared = [*options, *together, "--lr", "1e-4", "--clip", "1", "--ema", "0.5"]
    result = launch([*shared, "--output", str(tmp_path / "two")])
    assert result.returncode == 0, result.stderr
    Trainer(parse_config([*shared, *alone, "--output", str(tmp_path / "one")])).train()
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
    for name in ("train_loss", "train_accuracy"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-5)
    if not alone:  # micro-batches move running statistics one after the other, processes at once
        assert two[-1]["test_loss"] == pytest.approx(one[-1]["test_loss"], rel=1e-5)
    # 15 held-out images over two processes: each counted once
    assert (two[-1]["test_accuracy"] * 15) % 1 == pytest.approx(0, abs=1e-9)
    assert '"images": 15' in (tmp_path / "two" / "report.json").read_text()


def test_processes_evaluate_what_is_saved(options, faces, tmp_path):
    """Also where each has batch statistics of its own."""
    more = ["--no-sync-batchnorm", "--ema", "0.5", "--lr", "0.01"]
    result = forked([*options, *more, "--output", str(tmp_path / "run")])
    assert result.returncode == 0, result.stderr
    saved = evaluate_checkpoint(tmp_path / "run" / "last.pt", faces, workers=0).report
    assert rows(tmp_path / "run")[-1]["test_loss"] == pytest.approx(saved.loss, rel=1e-5)


def test_fewer_held_out_images_than_processes(options, tmp_path):
    for split, number in (("train", 4), ("test", 1)):
        for expression in ("happiness", "sadness")[: 2 if split == "train" else 1]:
            folder = tmp_path / "faces" / split / expression
            folder.mkdir(parents=True)
            for seed in range(number):
                draw_face(expression, 64, (seed,)).image.save(folder / f"{seed}.png")
    shared = [*options, "--data", str(tmp_path / "faces"), "--epochs", "1"]
    result = forked([*shared, "--output", str(tmp_path / "two")])
    assert result.returncode == 0, result.stderr
    assert '"images": 1' in (tmp_path / "two" / "report.json").read_text()


COMPILED = """
import sys
from functools import partial
import timm
import torch
from cfmrfn import train
torch.compile = partial(torch.compile, backend="eager")
timm.create_model = partial(timm.create_model, stored_embedding=True)
train.main(sys.argv[1:])
"""


def test_a_compiled_network_with_parameters_that_never_run(options, tmp_path):
    program = tmp_path / "compiled.py"
    program.write_text(COMPILED)
    # two steps: the second waits for the gradients of the first
    args = [*options, "--compile", "--epochs", "1", "--batch-size", "28", "--accumulate", "2"]
    result = forked([*args, "--output", str(tmp_path / "run")], [str(program)])
    assert result.returncode == 0, result.stderr


UNCHECKED = """
import sys
from cfmrfn import train
from cfmrfn.process import command
from cfmrfn.training import images
images.CHECK_SECONDS = 0
command.run(lambda: train.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("launch", "more", "message"),
    [
        # of one process, while the other waits for it: training image 3, held-out images 0 and 1
        (torchrun, ["train_00003"], "train_00003_aligned.jpg"),
        (forked, ["test_00001"], "test_00001_aligned.jpg"),
        (forked, ["test_00002"], "test_00002_aligned.jpg"),
        # of both
        (forked, [], "batch-size must be a multiple"),
    ],
)
def test_an_error_is_told_once(options, faces, tmp_path, launch, more, message):
    root = tmp_path / "faces"
    shutil.copytree(faces, root)
    for name in more:
        (root / "Image" / "aligned" / f"{name}_aligned.jpg").write_bytes(b"not a picture")
    program = tmp_path / "unchecked.py"
    program.write_text(UNCHECKED)
    args = [*options, "--data", str(root), "--output", str(tmp_path / "run")]
    if not more:
        args += ["--batch-size", "7"]
    result = launch(args, [str(program)])
    assert result.returncode != 0
    lines = result.stderr.splitlines()
    told = [line for line in lines if line.startswith("error: ")]
    assert len(told) == 1, result.stderr
    assert message in told[0]
    # the launcher tells, after that, which processes ended and how
    assert "gloo" not in result.stderr
    assert "Error: " not in result.stderr.partition("ChildFailedError")[0]


ALONE = """
import functools, os, sys, time
from datetime import timedelta
import torch.distributed as dist
from cfmrfn.process.distributed import World

limited = functools.partial(dist.init_process_group, timeout=timedelta(seconds=3))
dist.init_process_group = limited
world = World("cpu")
if sys.argv[1] == "works":
    print(world.on_main(lambda: time.sleep(5) or "done"))
    world.close()
else:
    try:
        world.on_main(lambda: os._exit(0))
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.parametrize(("main", "said"), [("works", "done\ndone\n"), ("ends", "by peer")])
def test_the_main_process_is_waited_for_until_it_is_done_or_ends(tmp_path, main, said):
    """Beyond the time limit of messages, here three seconds: it may read a large set alone."""
    program = tmp_path / "alone.py"
    program.write_text(ALONE)
    result = forked([main], [str(program)])
    assert result.returncode == 0, result.stderr
    assert said in result.stdout
