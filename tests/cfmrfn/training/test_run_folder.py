"""Run folders when two processes want one, clocks are set, disks are full, or signals come."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from cfmrfn.config import parse_config
from cfmrfn.errors import CheckpointError
from cfmrfn.process import command, signals
from cfmrfn.training import event_file, run_folder
from cfmrfn.training.run_folder import RunFolder
from cfmrfn.whole_files import whole

fcntl = pytest.importorskip("fcntl")

HOLDS_IT = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_is_kept_out_while_one_trains(tmp_path):
    folder = RunFolder(tmp_path)
    command = [sys.executable, "-S", "-c", HOLDS_IT, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match="another process trains in .*; wait for its end"):
            folder.hold()
        other.kill()
    folder.hold()  # the lock ended with the process that had it


def test_what_another_tool_writes_into_the_folder_is_left_alone(tmp_path):
    config = parse_config(["--output", str(tmp_path / "run")])
    folder = run_folder.create(config)
    killed = folder.path / ".partial.12345678.last.pt"
    killed.write_text("half")
    with whole(folder.path / "faces.csv") as table:
        table.write_text("row")
        folder.reopen(config, is_complete=True)
    assert (folder.path / "faces.csv").read_text() == "row"
    assert not killed.exists()


def test_a_process_holds_its_run_as_long_as_one_of_its_trainers_does(tmp_path):
    def is_free():
        code = (
            "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        )
        command = [sys.executable, "-S", "-c", code, str(tmp_path / ".lock")]
        return subprocess.run(command, capture_output=True).returncode == 0

    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.hold()
    second.hold()
    del first
    assert not is_free()
    del second
    assert is_free()


def test_of_two_processes_that_make_one_folder_the_second_finds_it(tmp_path, monkeypatch):
    first, second = (
        parse_config(["--output", str(tmp_path / "run"), "--seed", seed]) for seed in "12"
    )
    write = RunFolder.write

    def write_late(folder, *content):
        monkeypatch.setattr(RunFolder, "write", write)
        run_folder.create(first)
        write(folder, *content)

    monkeypatch.setattr(RunFolder, "write", write_late)
    with pytest.raises(CheckpointError, match="exists; continue it with --resume"):
        run_folder.create(second)
    assert "seed: 1\n" in (tmp_path / "run" / "config.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_runs_that_begin_in_the_same_second_or_after_the_clock_was_set_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder.time, "strftime", lambda _: "20260101-000000")
    names = [run_folder.create(parse_config([])).path.name for _ in range(3)]
    assert names == [f"drawn-20260101-000000{end}" for end in ("", "-2", "-3")]


def test_a_run_that_begins_while_another_of_the_same_second_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder.time, "strftime", lambda _: "20260101-000000")
    first, folders = RunFolder.write, []

    def write_late(self, *args):
        monkeypatch.setattr(RunFolder, "write", first)
        folders.append(run_folder.create(parse_config(["--seed", "1"])))
        self.write(*args)

    monkeypatch.setattr(RunFolder, "write", write_late)
    folders.append(run_folder.create(parse_config([])))
    assert [f.path.name for f in folders] == ["drawn-20260101-000000", "drawn-20260101-000000-2"]
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_thread_beside_the_main_one_is_asked_by_no_signal():
    before = signal.getsignal(signal.SIGINT)

    def run():
        with signals.StopSignal() as stop:
            return stop.asked, signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run).result() == (False, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_ask_a_run_to_stop(number):
    with signals.StopSignal() as stop:
        signal.raise_signal(number)
        assert stop.asked


def test_a_hangup_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
        command.run(lambda: signal.raise_signal(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not stop.asked


def test_a_tool_outlives_its_terminal(monkeypatch):
    """As where a connection to another machine is lost: it can still save."""
    ours, tools = os.openpty()
    with open(tools, "wb", buffering=0) as raw:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, write_through=True))
        before = sys.stdout
        saved = []

        def tool():
            os.close(ours)
            with pytest.raises(OSError, match="Input/output error"):
                os.write(tools, b"a")
            print("b")
            print("c", file=sys.stderr, flush=True)
            saved.append(True)

        command.run(tool)
        assert saved
        assert sys.stdout is before
        for stream in (sys.stdout, sys.stderr):
            stream.detach()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(tmp_path, number):
    def tool():
        with whole(tmp_path / "a.csv") as path:
            path.write_text("half")
            try:
                signal.raise_signal(number)
            except SystemExit:  # as that of a parser of options is caught
                raise AssertionError from None

    with pytest.raises(SystemExit) as stop:
        command.run(tool)
    assert stop.value.code == 128 + number
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) is signal.SIG_DFL


class Dying:
    """Raises in `__del__`, where Python loses exceptions, what its function raises."""

    def __init__(self, function):
        self.function = function

    def __del__(self):
        self.function()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_signal_whose_exception_python_loses(number, at_the_end):
    went_on = []

    def tool():
        Dying(lambda: signal.raise_signal(number))
        if not at_the_end:
            time.sleep(10)
            went_on.append(True)

    with pytest.raises(SystemExit) as stop:
        command.run(tool)
    assert stop.value.code == 128 + number
    assert not went_on


def test_other_exceptions_that_python_loses_are_told(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: told.append(repr(what.exc_value)))
    command.run(lambda: Dying(lambda: float("a")) and None)
    assert told == ["""ValueError("could not convert string to float: 'a'")"""]


def test_a_full_disk_is_named_with_the_file(tmp_path, monkeypatch, capsys):
    folder = RunFolder(tmp_path)
    (tmp_path / "curves.png").write_text("before")

    def tool():
        with folder.file("curves.png") as path:
            path.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SystemExit):
        command.run(tool)
    expected = f"error: {tmp_path / 'curves.png'}: No space left on device\n"
    assert capsys.readouterr().err == expected
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_full_disk_ends_the_events_and_not_the_run(tmp_path, monkeypatch):
    told = []
    with event_file.EventFile(tmp_path / "a", 3, told.append) as events:
        events.add_scalar("step/loss", 0.5, 3)
        monkeypatch.setattr(event_file.RecordWriter, "write", fill_up)
        events.add_scalar("step/loss", 0.25, 4)
        events.add_scalar("step/loss", 0.25, 5)
    assert told == ["no more TensorBoard events: [Errno 28] No space left on device"]
    (path,) = (tmp_path / "a").iterdir()
    version, start, point = EventFileLoader(str(path)).Load()
    assert version.file_version == "brain.Event:2"
    assert start.step == 3
    assert point.step == 3
    assert point.summary.value[0].tag == "step/loss"
    event_file.EventFile(tmp_path / "a" / path.name, 0, told.append)  # the folder is a file
    assert len(told) == 2


def losses(folder):
    return {e.step: e.value for e in EventAccumulator(str(folder)).Reload().Scalars("step/loss")}


def test_events_end_where_a_process_was_killed_while_it_wrote(tmp_path):
    with event_file.EventFile(tmp_path, 0, pytest.fail) as events:
        for step in (1, 2, 3):
            events.add_scalar("step/loss", 0.5, step)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    for first in (4, 2):  # the second from an older checkpoint, which voids what follows
        with event_file.EventFile(tmp_path, first, pytest.fail) as events:
            for step in (1, 2, 3, 4):
                events.add_scalar("step/loss", 0.25, step)
        voided = 2 if first == 2 else 3
        assert losses(tmp_path) == {n: 0.5 if n < voided else 0.25 for n in (1, 2, 3, 4)}


def fill_up(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
