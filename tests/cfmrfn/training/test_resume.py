"""A run killed at random moments and resumed equals one that was left alone, bit for bit."""

import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cfmrfn import checkpoint, train
from cfmrfn.config import parse_config
from cfmrfn.data import dataset
from cfmrfn.data.synthetic import write_faces
from cfmrfn.errors import CheckpointError, DataError
from cfmrfn.models import CFMRFN
from cfmrfn.train import Trainer
from cfmrfn.training import event_file, images
from tests.cfmrfn.states import assert_equal, state

pytestmark = pytest.mark.usefixtures("one_thread")

# imports once, then forks: a killed run starts again in no time
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["cfmrfn.train"])

STATEFUL = [
    *("--epochs", "3", "--validation", "0.25", "--checkpoint-every", "2", "--accumulate", "2"),
    *("--ema", "0.9", "--balanced", "--drop-path-rate", "0.3", "--clip", "1", "--jitter"),
    *("--optimizer", "adamw", "--weight-decay", "0.1", "--layer-decay", "0.7"),
]


def start(args):
    # the entry point and not a function of this file, which a fresh process cannot import
    process = CONTEXT.Process(target=train.main, args=(args,))
    process.start()
    return process


class Uninterrupted(NamedTuple):
    """A run that was left alone: what it left, and the seconds that its training took."""

    state: tuple
    seconds: float


def wait_for_training(process, folder, starts):
    """Until the run trains after so many starts, as its log says at each, or has ended."""
    log = folder / "log.txt"
    while process.is_alive():
        if log.exists() and log.read_text().count("trained parameters") == starts:
            break
        time.sleep(0.01)


@pytest.fixture
def uninterrupted(options, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "whole"
    process = start([*options, *STATEFUL, "--output", str(folder)])
    wait_for_training(process, folder, starts=1)
    began = time.monotonic()
    process.join()
    seconds = time.monotonic() - began
    assert process.exitcode == 0
    return Uninterrupted(state(folder), seconds)


def test_killed_at_random_moments(options, uninterrupted, tmp_path):
    folder = tmp_path / "killed"
    rng = random.Random(0)
    args = [*options, *STATEFUL, "--output", str(folder)]
    kills = 0
    while True:
        process = start(args)
        if kills < 6:
            # once it trains, some time between two steps or in the middle of a save; early enough
            # for three kills before the end, however fast the machine is
            wait_for_training(process, folder, starts=kills + 1)
            process.join(timeout=rng.uniform(0, uninterrupted.seconds / 6))
        else:
            process.join()
        if not process.is_alive():
            break
        how = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        os.kill(process.pid, how)
        process.join()
        assert process.exitcode in (-signal.SIGKILL, -signal.SIGTERM, 130)
        kills += 1
        args = ["--resume", str(folder), "--workers", str(kills % 2)]
    assert process.exitcode == 0
    assert kills >= 3
    assert_equal(state(folder), uninterrupted.state)


def test_interrupt_saves_and_says_how_to_go_on(options, uninterrupted, tmp_path):
    folder = tmp_path / "a run that stopped"
    process = start([*options, *STATEFUL, "--output", str(folder)])
    while not (folder / "last.pt").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    log = (folder / "log.txt").read_text()
    assert f"go on with: python -m cfmrfn.train --resume {shlex.quote(str(folder))}" in log
    process = start(["--resume", str(folder)])
    process.join()
    assert process.exitcode == 0
    assert_equal(state(folder), uninterrupted.state)


def train_here(*args):
    return Trainer(parse_config(list(args))).train()


def test_more_epochs_with_the_images_elsewhere(options, tmp_path, monkeypatch, faces):
    """A complete run that gets more epochs equals one that had them from the start."""
    args = [*options, "--ema", "0.9", "--schedule", "exponential", "--optimizer", "adamw"]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(faces, "faces")
    whole = train_here(*args, "--epochs", "3", "--output", "whole")
    folder = train_here(*args, "--data", "faces", "--epochs", "2", "--output", "longer")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.move(tmp_path / "faces", "moved")
    with pytest.raises(DataError, match="are no longer in .*/faces: say with --data"):
        train_here("--resume", "../longer", "--epochs", "3")
    with pytest.raises(CheckpointError, match="other images"):
        train_here("--resume", "../longer", "--epochs", "3", "--data", str(other_faces(tmp_path)))
    assert (tmp_path / "longer" / "report.json").exists()

    # both are remembered, so a second kill does no harm
    Trainer(parse_config(["--resume", "../longer/last.pt", "--epochs", "3", "--data", "moved"]))
    assert not (tmp_path / "longer" / "report.json").exists()
    monkeypatch.chdir(tmp_path)
    assert train_here("--resume", "longer") == folder
    found, expected = state(folder), state(whole)
    for one in (found, expected):
        for about in (one[0]["about"], one[1]["about"]):
            for key in ("data", "epochs"):
                del about["config"][key]
    assert_equal(found, expected)


def test_images_replaced_under_their_names_are_told_of(options, tmp_path, faces):
    root = tmp_path / "faces"
    shutil.copytree(faces, root)
    args = [*options, "--data", str(root), "--output", str(tmp_path / "run")]
    Trainer(parse_config([*args, "--epochs", "1", "--schedule", "constant"])).train()
    args = ["--resume", str(tmp_path / "run"), "--epochs", "2"]
    log = tmp_path / "run" / "log.txt"
    Trainer(parse_config(args))
    assert "another size" not in log.read_text()
    trainer = Trainer(parse_config(args))
    for sample in (trainer.images.splits.train[0], trainer.images.splits.held_out[0]):
        with Image.open(sample.path) as image:
            cropped = image.crop((8, 8, 40, 40))
        cropped.save(sample.path)
    trainer = Trainer(parse_config(args))
    said = (
        f"2 of {len(trainer.images.file_sizes)} image files have another size than when the run "
        "was last"
    )
    assert log.read_text().count(said) == 1
    trainer.train()
    Trainer(parse_config(["--resume", str(tmp_path / "run"), "--epochs", "3"]))
    assert log.read_text().count(said) == 1


def other_faces(tmp_path):
    return write_faces(tmp_path / "other", train=16, test=7, size=64, workers=1, progress=False)


@pytest.mark.parametrize(
    ("schedule", "further"),
    [
        ("constant", "with --resume FOLDER and more --epochs"),
        ("cosine", "in a new run with --init FOLDER, as the cosine schedule has ended"),
    ],
)
def test_a_complete_run_says_how_to_train_on(options, tmp_path, schedule, further):
    args = [*options, "--epochs", "1", "--schedule", schedule, "--output", str(tmp_path / "run")]
    folder = train_here("--resume", str(train_here(*args)))
    log = (folder / "log.txt").read_text()
    assert f"complete: 1 epoch done; train on {further.replace('FOLDER', str(folder))}" in log
    assert "resumed at" not in log


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_an_image_that_breaks_in_the_middle(options, tmp_path, monkeypatch, split):
    """What was trained is kept, and the run goes on as if nothing had happened."""
    args = [*options, "--ema", "0.9", "--batch-size", "4", "--validation", "0.25", "--no-cache"]
    whole = train_here(*args, "--output", str(tmp_path / "whole"))
    trainer = Trainer(parse_config([*args, "--output", str(tmp_path / "run")]))
    index = trainer.batches.batch(5)[0][0] if split == "train" else 4
    bad = getattr(trainer.images.splits, split)[index]
    real = dataset.read_image

    def read(sample, *more):
        if sample == bad:
            raise OSError("cannot identify image file")
        return real(sample, *more)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "read_image", read)
        with pytest.raises(DataError, match=rf"{bad.path}.*--on-broken skip"):
            trainer.train()
    progress = checkpoint.load(tmp_path / "run" / "last.pt")["training"]["progress"]
    assert progress["epoch"] == 0
    assert progress["step"] == (5 if split == "train" else trainer.batches.steps)
    folder = train_here("--resume", str(tmp_path / "run"))
    where = "step 6" if split == "train" else "its evaluation"
    assert f"resumed at epoch 1, {where}" in (folder / "log.txt").read_text()
    assert_equal(state(folder), state(whole))


def test_broken_images_may_be_skipped_on_resume(options, tmp_path, faces):
    root = tmp_path / "faces"
    shutil.copytree(faces, root)
    args = [*options, "--data", str(root), "--output", str(tmp_path / "run")]
    args += ["--epochs", "2", "--no-cache"]
    trainer = Trainer(parse_config(args))
    bad = root / "Image" / "aligned" / "test_00005_aligned.jpg"
    bad.write_bytes(b"not a picture")
    with pytest.raises(DataError, match="test_00005"):
        trainer.train()
    with pytest.raises(DataError, match="1 of 71 images cannot be read"):
        train_here("--resume", str(tmp_path / "run"))
    folder = train_here("--resume", str(tmp_path / "run"), "--on-broken", "skip")
    report = json.loads((folder / "report.json").read_text())
    assert report["held_out"]["last"]["images"] == 14
    assert "epochs are measured on" not in (folder / "log.txt").read_text()


def stopped_after_an_epoch(*args):
    """The folder of a run that was ended after its first epoch of two."""
    trainer = Trainer(parse_config([*args, "--epochs", "2"]))
    trainer._stop_if_asked = lambda stop: None if trainer.progress.epoch == 0 else ends()
    with pytest.raises(train.Interrupted):
        trainer.train()
    return trainer.folder.path


def ends():
    raise train.Interrupted


def test_epochs_that_were_measured_on_more_images_are_told_of(options, tmp_path, faces):
    root = tmp_path / "faces"
    shutil.copytree(faces, root)
    args = [*options, "--data", str(root), "--no-cache", "--output", str(tmp_path / "run")]
    folder = stopped_after_an_epoch(*args)
    (root / "Image" / "aligned" / "test_00005_aligned.jpg").write_bytes(b"not a picture")
    train_here("--resume", str(folder), "--on-broken", "skip")
    said = "epochs are measured on 14 and 15 held-out images"
    assert (folder / "log.txt").read_text().count(said) == 2  # on resume, and with the results


def test_duplicates_that_come_and_go(options, tmp_path, faces):
    """What an epoch measured without them is kept, and a resumed run can be resumed again."""
    root = tmp_path / "faces"
    shutil.copytree(faces, root)
    images = root / "Image" / "aligned"
    leak = images / "test_00005_aligned.jpg"
    former = leak.read_bytes()
    shutil.copy(images / "train_00003_aligned.jpg", leak)
    args = [*options, "--data", str(root), "--no-cache"]
    folder = stopped_after_an_epoch(*args, "--output", str(tmp_path / "run"))
    leak.write_bytes(former)
    train_here("--resume", str(folder))
    first, second = (folder / "metrics.csv").read_text().splitlines()[1:]
    assert (first.count(",,"), ",," in second) == (0, True)
    train_here("--resume", str(folder))


@pytest.mark.parametrize("missing_at", ["first", "resume"])
def test_the_face_detector_may_be_missing_at_times(options, tmp_path, monkeypatch, missing_at):
    args = [*options, "--epochs", "1", "--output", str(tmp_path / "run")]
    expected = Trainer(parse_config([*options, "--output", str(tmp_path / "other")])).about.framing
    assert expected is not None
    with monkeypatch.context() as patch:
        if missing_at == "first":
            patch.setattr(images, "why_no_detector", lambda: "not installed")
        first = Trainer(parse_config(args))
        first._save()
    assert (first.about.framing is None) == (missing_at == "first")
    if missing_at == "resume":
        monkeypatch.setattr(images, "why_no_detector", lambda: "not installed")
    folder = train_here("--resume", str(tmp_path / "run"))
    _, about = checkpoint.load_network(folder)
    assert about.framing == expected


@pytest.mark.parametrize("decay", ["0", "0.1"])
def test_a_former_run_let_positions_decay(options, tmp_path, monkeypatch, decay):
    """Its averages are in another order, unless nothing decays."""
    folder = tmp_path / "run"
    args = [*options, "--epochs", "1", "--schedule", "constant", "--weight-decay", decay]
    with monkeypatch.context() as former:
        former.setattr(CFMRFN, "no_weight_decay", lambda self: set())
        train_here(*args, "--output", str(folder))
    if decay == "0":
        train_here("--resume", str(folder), "--epochs", "2")
    else:
        with pytest.raises(CheckpointError, match="as positions did in former versions: go on"):
            train_here("--resume", str(folder), "--epochs", "2")


def test_a_former_run_that_skipped_images_resumes(options, tmp_path, faces):
    root = tmp_path / "faces"
    shutil.copytree(faces, root)
    (root / "Image" / "aligned" / "test_00005_aligned.jpg").write_bytes(b"not a picture")
    args = [*options, "--data", str(root), "--epochs", "1", "--on-broken", "skip"]
    trainer = Trainer(parse_config([*args, "--output", str(tmp_path / "run")]))
    trainer.images.fingerprint = trainer.images.splits.fingerprint()
    folder = trainer.train()
    assert Trainer(parse_config(["--resume", str(folder)])).progress.epoch == 1


def test_values_that_cannot_be_are_refused_on_resume(options, tmp_path):
    folder = train_here(*options, "--epochs", "1", "--output", str(tmp_path / "run"))
    saved = checkpoint.load(folder / "last.pt")
    training = saved["training"]
    step = {"progress": training["progress"] | {"step": None}}
    for foreign, message in (
        (training | step, "last.pt does not fit the run: step of progress must be .*, got None"),
        ([training], "last.pt: 'training' must be a dictionary, got "),
    ):
        checkpoint.save(folder / "last.pt", saved | {"training": foreign})
        with pytest.raises(CheckpointError, match=message):
            Trainer(parse_config(["--resume", str(folder)]))


@pytest.fixture
def two_runs(options, tmp_path):
    """Folders of runs of one seed and two learning rates, each ended after an epoch of two."""
    return [
        stopped_after_an_epoch(*options, "--lr", lr, "--output", str(tmp_path / lr))
        for lr in ("0.01", "0.001")
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("last.pt", "last.pt is of a run with lr 0.001, not 0.01: put the file of this run in its"),
        (
            "best.pt",
            "best.pt is no longer what the run chose, the network of epoch 1: it has other",
        ),
    ],
)
def test_files_of_another_run_are_refused(two_runs, name, message):
    one, other = two_runs
    shutil.copy(other / name, one / name)
    with pytest.raises(CheckpointError, match=message):
        train_here("--resume", str(one))


def test_a_configuration_that_was_edited_is_refused(two_runs):
    (folder, _), name = two_runs, "config.yaml"
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace("lr: 0.01", "lr: 0.02"))
    with pytest.raises(CheckpointError, match=r"is of a run with lr 0.01, not 0.02"):
        train_here("--resume", str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("last.pt", "last.pt is missing, and with it the epochs in metrics.csv: put it back"),
        ("best.pt", r"network of epoch 1: there is no .*best.pt.* start a new run with --init"),
    ],
)
def test_files_that_were_removed_are_missed(two_runs, name, message):
    (two_runs[0] / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        train_here("--resume", str(two_runs[0]))


def test_the_report_says_which_weights_it_is_of(two_runs):
    folder = train_here("--resume", str(two_runs[0]))
    held_out = json.loads((folder / "report.json").read_text())["held_out"]
    for name, file in (("test", "best.pt"), ("last", "last.pt")):
        network, _ = checkpoint.load_network(folder / file)
        assert held_out[name]["weights"] == checkpoint.digest_of(network)


def test_a_folder_that_is_moved_during_the_run(options, tmp_path):
    """What takes its place is not written to."""
    folder = tmp_path / "run"
    trainer = Trainer(parse_config([*options, "--epochs", "1", "--output", str(folder)]))
    folder.rename(tmp_path / "moved")
    said = "run folder .* was moved, removed or replaced during the run"
    with pytest.raises(CheckpointError, match=said):
        trainer.train()
    folder.mkdir()
    with pytest.raises(CheckpointError, match=said):
        trainer.train()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_the_workers_to_the_main_one(options, tmp_path, number):
    folder = tmp_path / "run"
    args = [*options, "--epochs", "100", "--workers", "2", "--output", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cfmrfn.train", *args],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (folder / "best.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, b"")
    assert "and saved; go on with" in (folder / "log.txt").read_text()


def curves(folder):
    """The steps of each curve, as TensorBoard reads them."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [e.step for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def killed_before_it_is_saved(epoch, monkeypatch, *args):
    """Trains until the points of an epoch are written."""
    save = Trainer._save

    def killed(trainer):
        if (trainer.progress.epoch, trainer.progress.step) == (epoch, 0):
            raise KeyboardInterrupt
        save(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_here(*args)


@pytest.mark.parametrize("batch_size", ["8", "56"], ids=["seven steps", "one step"])
def test_curves_lose_and_double_no_point(options, tmp_path, monkeypatch, batch_size):
    folder = tmp_path / "run"
    more = ["--tensorboard", "--batch-size", batch_size, "--epochs", "3", "--output", str(folder)]
    killed_before_it_is_saved(1, monkeypatch, *options, *more)
    killed_before_it_is_saved(2, monkeypatch, "--resume", str(folder))
    # as after a clock was set back
    monkeypatch.setattr(event_file.time, "time", lambda: 0.0)
    train_here("--resume", str(folder))
    assert len(list((folder / "tensorboard").iterdir())) == 3
    found = curves(folder)
    steps = 3 * 56 // int(batch_size)
    assert found.pop("step/loss") == list(range(1, steps + 1))
    assert "train/loss" in found and set(map(tuple, found.values())) == {(1, 2, 3)}


def test_curves_get_epochs_that_were_trained_without(options, tmp_path):
    folder = str(tmp_path / "run")
    train_here(*options, "--schedule", "constant", "--epochs", "1", "--output", folder)
    train_here("--resume", folder, "--epochs", "2", "--tensorboard")
    assert curves(tmp_path / "run")["train/loss"] == [1, 2]
