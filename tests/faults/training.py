"""Runs of `cfmrfn train` that are killed, stopped, started twice, or lose a process."""

import functools
import itertools
import json
import os
import pty
import random
import select
import signal
import socket
import time
from pathlib import Path

import torch.distributed as dist
from PIL import Image

from cfmrfn import checkpoint
from cfmrfn.__main__ import main as tools
from cfmrfn.config import from_yaml
from cfmrfn.process import command
from tests.cfmrfn.states import assert_equal, state
from tests.faults.children import Child, Ended, run
from tests.faults.counts import Counts

# every kind of state that a run has, in 2 epochs of 3 steps
TINY = [
    *("--image-size", "32", "--depth", "1", "--epochs", "2", "--batch-size", "8"),
    *("--validation", "0.25", "--workers", "0", "--device", "cpu", "--checkpoint-every", "2"),
    *("--ema", "0.9", "--optimizer", "adamw", "--clip", "1", "--drop-path-rate", "0.3"),
    *("--balanced", "--jitter", "--warmup-epochs", "0.5"),
]


class Runs:
    """Where runs are made, and what one that is left alone leaves.

    Args:
        folder: for all of them.
        faces: drawn ones.
        rng: chooses the moments.
    """

    def __init__(self, folder: Path, faces: Path, rng: random.Random) -> None:
        self.folder = folder
        self.rng = rng
        self.options = ["train", *TINY, "--data", faces]
        began = time.monotonic()
        ended = self.train("whole")
        assert ended.status == 0, ended.err
        self.seconds = time.monotonic() - began
        self.whole = state(folder / "whole")

    def train(self, name: str, **options) -> Ended:
        """A run in a folder of this name, to its end."""
        return self.start(name, **options).end()

    def start(self, name: str, **options) -> Child:
        """The same, which is not waited for."""
        return Child([*self.options, "--output", self.folder / name], self.folder, **options)

    def start_again(self, name: str, **options) -> Child:
        """Resumes the run, or begins it, if there is no folder of it yet."""
        folder = self.folder / name
        if not folder.exists():
            return self.start(name, **options)
        return Child(["train", "--resume", folder], self.folder, **options)

    def go_on(self, name: str) -> Ended:
        """The same, to its end."""
        return self.start_again(name).end()

    def equals_whole(self, name: str) -> None:
        """Asserts that what the run left is what a run leaves that was left alone."""
        assert_equal(state(self.folder / name), self.whole)

    def clean(self, name: str, copied: str | None = None) -> None:
        """Asserts that nothing half-written is left, under its final name or another.

        Args:
            name: of a run.
            copied: of the killed run that it was copied from. What that one left, only a folder
                that can be written loses.
        """
        folder = self.folder / name
        for file in sorted(folder.rglob("*")):
            before = copied is not None and (self.folder / copied / file.name).exists()
            assert "partial" not in file.name or before, f"{file} was left"
        whole_files(folder)


def whole_files(folder: Path) -> None:
    """Asserts that every file of a run is whole; what a kill interrupts has no final name yet."""
    if not folder.exists():
        return
    from_yaml(folder / "config.yaml")
    for file in folder.glob("[!.]*.pt"):
        checkpoint.load(file)
    for file in folder.glob("[!.]*.png"):
        Image.open(file).load()
    for file in folder.glob("[!.]*.json"):
        json.loads(file.read_text())
    table = folder / "metrics.csv"
    if table.exists():
        lines = table.read_text().split("\n")
        assert lines.pop() == "", "metrics.csv has no end"
        assert len({line.count(",") for line in lines}) == 1, "metrics.csv has a short line"


def kills(runs: Runs, counts: Counts) -> None:
    """kill -9 at 20 random moments; all of them leave whole files, and the run goes on as ever."""
    left = 20
    for number in itertools.count(1):
        name = f"killed-{number}"
        child = runs.start(name)
        for _ in range(min(left, runs.rng.randint(1, 4))):
            child.process.join(runs.rng.uniform(0.1, 0.7) * runs.seconds)
            if not child.runs:
                break
            child.signal(signal.SIGKILL)
            left -= 1
            with counts.trying("kill -9 of a run", name):
                ended = child.end()
                assert ended.status in (-signal.SIGKILL, 0), ended.err
                whole_files(runs.folder / name)
            child = runs.start_again(name)
        with counts.trying("run that went on after kill -9, bit for bit", name):
            ended = child.end()
            assert ended.status == 0, ended.err
            runs.equals_whole(name)
            runs.clean(name)
        if not left:
            break


def stops(runs: Runs, counts: Counts) -> None:
    """Ctrl-C, SIGTERM and SIGHUP at random moments, of one process or of its group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for workers in ("0", "1"):
            for moment in (0.02, 0.3, 0.6, 0.9):
                name = f"{number.name}-{workers}-{moment}"
                child = Child(
                    [*runs.options, "--output", runs.folder / name, "--workers", workers],
                    runs.folder,
                )
                child.process.join((moment + runs.rng.uniform(0, 0.1)) * runs.seconds)
                with counts.trying(f"{number.name} to a run", name):
                    if child.runs:
                        os.killpg(child.process.pid, number)
                    ended = child.end(60)
                    assert ended.status in (0, 130, 128 + number), f"{ended.status}: {ended.err}"
                    assert not ended.told, ended.err
                    runs.clean(name)
                    beside = list(runs.folder.glob(f".{name}.*"))
                    assert not beside, f"{beside} was left"
                    ended = runs.go_on(name)
                    assert ended.status == 0, ended.err
                    runs.equals_whole(name)


def hangups(runs: Runs, counts: Counts) -> None:
    """Terminals that are closed, as where a connection to another machine is lost."""
    for moment in (0.02, 0.3, 0.5, 0.7, 0.9):
        name = f"hangup-{moment}"
        with counts.trying("terminal of a run closed", name):
            args = [str(each) for each in [*runs.options, "--output", runs.folder / name]]
            process, terminal = pty.fork()
            if not process:
                try:
                    command.run(functools.partial(tools, args))
                except SystemExit as stop:
                    os._exit(stop.code)
                os._exit(0)
            ends = time.monotonic() + (moment + runs.rng.uniform(0, 0.1)) * runs.seconds
            while (left := ends - time.monotonic()) > 0:
                if select.select([terminal], [], [], left)[0]:
                    try:
                        os.read(terminal, 2**16)
                    except OSError:  # it has ended
                        break
            os.close(terminal)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            assert status in (0, 129, 130), status
            runs.clean(name)
            ended = runs.go_on(name)
            assert ended.status == 0, ended.err
            runs.equals_whole(name)


def at_once(runs: Runs, counts: Counts) -> None:
    """Two runs into one folder, and a run that is resumed twice, started together."""
    for number in range(3):
        name = f"twice-{number}"
        with counts.trying("two runs into one folder at once", name):
            both = [runs.start(name), runs.start(name)]
            ended = sorted((child.end() for child in both), key=lambda each: each.status or 0)
            assert [each.status for each in ended] == [0, 2], [each.err for each in ended]
            assert "exists; continue it with" in ended[1].err, ended[1].err
            runs.equals_whole(name)
            runs.clean(name)
    name = "resumed-twice"
    child = runs.start(name)
    while child.runs and not (runs.folder / name / "last.pt").exists():
        time.sleep(0.01)
    child.signal(signal.SIGKILL)
    child.end()
    with counts.trying("one run resumed twice at once", name):
        both = [Child(["train", "--resume", runs.folder / name], runs.folder) for _ in range(2)]
        ended = sorted((child.end() for child in both), key=lambda each: each.status or 0)
        assert [each.status for each in ended] == [0, 2], [each.err for each in ended]
        assert "another process trains in" in ended[1].err, ended[1].err
        runs.equals_whole(name)


def clocks(runs: Runs, counts: Counts) -> None:
    """Clocks that go backwards, or are years off."""
    real, looks = time.time, itertools.count()
    for name, clock in {
        "back an hour at each look": lambda: real() - 3600 * next(looks),
        "the year 1970": lambda: 1.0,
        "the year 2200": lambda: 7258118400.0,
    }.items():

        def train(clock=clock, name=name):
            time.time = clock
            local = time.localtime
            time.strftime = lambda text, when=None, real=time.strftime: real(
                text, local(clock()) if when is None else when
            )
            from cfmrfn import train

            train.main([str(o) for o in [*runs.options[1:], "--output", runs.folder / name]])

        with counts.trying("clock that goes backwards or is off", name):
            ended = run(train, runs.folder)
            assert ended.status == 0, ended.err
            runs.equals_whole(name)


def processes(runs: Runs, counts: Counts) -> None:
    """Two processes, of which one is killed: the other ends, and one process, or two, go on."""
    for number, (victim, under_torchrun, go_on_with) in enumerate(
        [(1, True, 1), (0, True, 4), (1, False, 2), (0, False, 1)]
    ):
        name = f"lost-{number}"
        options = ["--epochs", "20", "--checkpoint-every", "1", "--output", runs.folder / name]
        with counts.trying("lost process of a distributed run", name):
            both = together([*runs.options, *options], runs.folder, 2, under_torchrun)
            last = runs.folder / name / "last.pt"
            while all(child.runs for child in both) and not last.exists():
                time.sleep(0.01)
            time.sleep(runs.rng.uniform(0, 1))
            both[victim].signal(signal.SIGKILL)
            began = time.monotonic()
            other = both[1 - victim].end(60)
            seconds = time.monotonic() - began
            both[victim].end()
            assert other.status is not None, "the other process hangs"
            assert seconds < 60
            assert other.status == 2, f"{other.status}: {other.err}"
            assert [line for line in other.told if line.startswith("error: ")], other.err
            assert "the connection to another process of the run was lost" in other.err, other.err
            whole_files(runs.folder / name)
            counts.tried[f"run of 2 processes that {go_on_with} went on with"] += 1
            before = progress(last)
            again = ["train", "--resume", runs.folder / name]
            children = together(again, runs.folder, go_on_with, False)
            while all(child.runs for child in children) and progress(last) == before:
                time.sleep(0.05)
            for child in children:
                child.signal(signal.SIGTERM)
            for ended in [child.end(60) for child in children]:
                assert ended.status in (0, 130), f"{ended.status}: {ended.err}"
            assert progress(last) != before, "it did not go on"


def progress(last: Path) -> tuple[int, int]:
    """Epoch and step of a checkpoint."""
    saved = checkpoint.load(last)["training"]["progress"]
    return saved["epoch"], saved["step"]


def together(args, folder: Path, size: int, under_torchrun: bool) -> list[Child]:
    """Processes of one run. Under torchrun another one keeps the store by which they meet."""
    store = None
    if under_torchrun:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = store.port
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "TORCHELASTIC_USE_AGENT_STORE": str(under_torchrun),
    }
    children = [
        Child(args, folder, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]
    if store is not None:
        children[0].store = store  # lives as long as they do
    return children
