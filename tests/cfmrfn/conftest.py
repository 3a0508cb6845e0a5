"""Small drawn faces and small runs for the tests of training."""

import signal
import socket
from pathlib import Path

import pytest
import torch

from cfmrfn.data.synthetic import write_faces


@pytest.fixture(scope="session", autouse=True)
def signals_as_on_a_terminal():
    """nohup, and a shell in its background, have some ignored."""
    usual = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}  # Windows has one
    usual = {getattr(signal, n): handler for n, handler in usual.items() if hasattr(signal, n)}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> Path:
    """56 drawn faces to train on and 15 held out, as files in RAF-DB's layout."""
    root = tmp_path_factory.mktemp("data") / "faces"
    return write_faces(root, train=56, test=15, size=64, workers=1, progress=False)


@pytest.fixture
def options(faces) -> list[str]:
    """Command-line options of a run that takes a second or two."""
    return [
        *("--data", str(faces), "--image-size", "64", "--depth", "1"),
        *("--epochs", "2", "--batch-size", "8", "--warmup-epochs", "0.5", "--validation", "0"),
        *("--workers", "0", "--no-tensorboard", "--device", "cpu"),
    ]


@pytest.fixture
def one_thread():
    """Equal sums need equal threads; one is fastest for networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_network(monkeypatch):
    """An error where a test reaches for another machine."""
    connect, resolve = socket.socket.connect, socket.getaddrinfo
    own = ("127.0.0.1", "::1", "localhost", "0.0.0.0")

    def connect_here(self, address):
        assert self.family == socket.AF_UNIX or address[0] in own, f"connection to {address}"
        return connect(self, address)

    def resolve_here(host, *args, **options):
        assert host in own, f"address of {host} asked for"
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)
