"""Worker processes whose main process is killed, and that are signalled as it is."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from cfmrfn.data.parallel import parallel_map
from cfmrfn.process.signals import init_worker, signals_wait, workers_end


class Announced:
    """A data set that sends the number of the process that reads it."""

    def __init__(self, writer):
        self.writer = writer

    def __len__(self):
        return 2

    def __getitem__(self, index):
        self.writer.send(os.getpid())
        return index


def load(writer, worker_init_fn):
    loader = DataLoader(Announced(writer), num_workers=2, worker_init_fn=worker_init_fn)
    for _ in loader:
        time.sleep(600)


def map_in_parallel(writer, _):
    parallel_map(Announced(writer).__getitem__, [0], workers=2, desc="", unit="", progress=False)
    time.sleep(600)


def receive(reader):
    while True:
        reader.recv()


@pytest.mark.parametrize(
    ("main", "init"),
    [
        (load, init_worker),
        (map_in_parallel, None),
    ],
    ids=["DataLoader", "parallel_map"],
)
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL, and no fork server")
def test_none_is_left_where_the_main_process_is_killed(main, init):
    reader, writer = multiprocessing.Pipe(duplex=False)
    # its workers are started as it is itself
    process = multiprocessing.get_context("forkserver").Process(target=main, args=(writer, init))
    process.start()
    writer.close()
    assert reader.recv() != process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(EOFError):  # once nobody is left who could write
        receive(reader)


def init_once_signalled(number):
    """Signals come while the worker starts, from a process that is not the main one."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), each)
    init_worker(number)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="cannot tell who sent a signal")
def test_workers_outlive_signals_also_while_they_start():
    loader = DataLoader(range(4), num_workers=2, worker_init_fn=init_once_signalled)
    with signals_wait():
        batches = iter(loader)
    assert [int(batch) for batch in batches] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "seconds"), [("SIGTERM", 0), ("SIGTERM", 0.03), ("SIGINT", 0.03), ("SIGHUP", 0.5)]
)
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no groups of processes")
def test_a_signal_to_all_processes_that_draw_is_acted_upon_by_the_main_one(tmp_path, name, seconds):
    number = getattr(signal, name)
    args = ["draw", str(tmp_path / "faces"), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cfmrfn.data", *args],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while not list(tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(seconds)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    lines = stderr.decode().replace("\r", "\n").splitlines()
    assert [line for line in lines if line and not line.startswith("drawing faces:")] == []
    assert list(tmp_path.iterdir()) == []


class OnceSignalled:
    """A signal comes while a worker starts, and another one before it has seen the first."""

    def __init__(self):
        self.first, self.second = multiprocessing.Event(), multiprocessing.Event()

    def __call__(self, number):
        os.kill(os.getpid(), signal.SIGTERM)
        self.first.set()
        self.second.wait()
        init_worker(number)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="cannot tell who sent a signal")
def test_workers_end_with_the_tool_though_its_signal_was_lost():
    signalled = OnceSignalled()
    with signals_wait():
        batches = iter(DataLoader(range(4), num_workers=1, worker_init_fn=signalled))
    (worker,) = batches._workers
    with workers_end():
        signalled.first.wait()
        worker.terminate()
        signalled.second.set()
        worker.join(1)
        assert worker.is_alive()
    assert worker.exitcode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no sockets in folders")
def test_workers_leave_no_folder(tmp_path):
    script = """
import os, torch
from torch.utils.data import DataLoader
from cfmrfn.process.signals import init_worker, signals_wait, workers_end

if __name__ == "__main__":
    with workers_end():
        loader = DataLoader(torch.zeros(8, 5000), num_workers=2, worker_init_fn=init_worker)
        with signals_wait():
            batches = iter(loader)
        next(batches)
        assert any(name.startswith("pymp-") for name in os.listdir(os.environ["TMPDIR"]))
"""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py")]
    # not in `tmp_path`, as paths of sockets must be short
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, check=True, timeout=120, env=os.environ | {"TMPDIR": folder})
        assert not list(Path(folder).glob("pymp-*"))


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals of threads")
def test_signals_that_waited_come_through():
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append("SIGTERM"))
    try:
        with signals_wait():
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            assert came == []
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == ["SIGTERM"]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals are others there")
def test_the_resource_tracker_outlives_a_closed_terminal():
    script = """
import os, signal, time
from multiprocessing import resource_tracker
from cfmrfn.process.signals import start_resource_tracker
start_resource_tracker()
pid = resource_tracker._resource_tracker._pid
os.kill(pid, signal.SIGHUP)
time.sleep(0.3)
assert os.waitpid(pid, os.WNOHANG) == (0, 0)
assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == set()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
