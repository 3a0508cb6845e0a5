"""A run killed at random moments and resumed equals one that was left alone, bit for bit."""

import multiprocessing
import os
import random
import signal
import time
from typing import NamedTuple

import pytest
import torch

from cfmrfn import checkpoint, train

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


def assert_equal(found, expected, where="state"):
    """Equal bit for bit, tensors inside containers included."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_equal(found[key], value, f"{where}, {key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}, {index}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def state(folder):
    """All that a run leaves and that must be equal."""
    last, best = checkpoint.load(folder / "last.pt"), checkpoint.load(folder / "best.pt")
    for about in (last["about"], best["about"]):
        # where the run was written, and with how many workers, may differ
        for key in ("output", "resume", "workers"):
            del about["config"][key]
    files = {name: (folder / name).read_bytes() for name in ("metrics.csv", "report.json")}
    return last, best, files


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
    folder = tmp_path / "stopped"
    process = start([*options, *STATEFUL, "--output", str(folder)])
    while not (folder / "last.pt").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    log = (folder / "log.txt").read_text()
    assert f"go on with: python -m cfmrfn.train --resume {folder}" in log
    process = start(["--resume", str(folder)])
    process.join()
    assert process.exitcode == 0
    assert_equal(state(folder), uninterrupted.state)
