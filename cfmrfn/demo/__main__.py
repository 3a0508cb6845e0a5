"""The command line of the page: `python -m cfmrfn.demo RUN`; see the package for its interface."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import socket
import sys
import threading
import webbrowser
from dataclasses import dataclass
from pathlib import Path

import tyro

from cfmrfn import pretrained, trained
from cfmrfn.checks import check_at_least
from cfmrfn.config import parse
from cfmrfn.demo.answers import Answers
from cfmrfn.errors import ConfigError
from cfmrfn.faces import FaceDetector
from cfmrfn.predictor import Faces, Predictor
from cfmrfn.process import command


@dataclass(frozen=True)
class Demo:
    """Serve a local page that finds faces in pictures and before the camera, and names their
    expressions.

    Nothing that it is given is kept, and it asks no other machine. Ctrl-C ends it. cfmrfn.demo
    documents what other programs can ask it.
    """

    checkpoint: tyro.conf.Positional[str | None] = None
    """best.pt or last.pt of a run, or the run folder, whose best.pt is taken; or a folder or ONNX
    file that was exported. None: the network that comes with the package."""
    port: int = 8765
    """Of the page; 0 takes a free one."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but the default lets other machines use the page, without a
    password and unencrypted; browsers then allow no camera. ssh -L needs no other."""
    open: bool = False
    """Open the page in the browser."""
    most_megabytes: float = 20.0
    """Size of the largest picture file."""
    faces: Faces = "auto"
    """whole: each picture is one cropped face. detect: find the faces. auto: whole where a picture
    has at most 256 x 256 pixels and nearly equal sides, as crops have; else detect."""
    min_size: int | None = None
    """Height of the smallest face to find, in pixels. None: 40, or a hundredth of the longer side
    of the picture if that is more."""
    min_score: float = 0.9
    """Score of the detector that a face needs, 0 to 1."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..., mps; auto takes the NVIDIA or AMD GPU where there is one, else the
    CPU."""

    def __post_init__(self) -> None:
        check_at_least(self, port=0)
        if self.port > 65535:
            raise ConfigError(f"port must be 0 to 65535, got {self.port}")
        if not 0 < self.most_megabytes <= 1000:
            raise ConfigError(
                f"most-megabytes must be above 0 and at most 1000, got {self.most_megabytes:g}"
            )


@command.memory_options("take --device cpu")
def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.demo") -> None:
    """The command line."""
    tool = parse(Demo, sys.argv[1:] if args is None else args, prog=prog)
    _check_installed()
    if tool.faces != "whole":
        FaceDetector(tool.min_size, tool.min_score)  # fails now rather than at the first picture
    listener = _listen(tool.host, tool.port)
    with listener:
        trained.announce(tool.checkpoint)
        predictor = Predictor(
            tool.checkpoint,
            tool.device,
            tool.faces,
            min_size=tool.min_size,
            min_score=tool.min_score,
        )
        _serve(tool, predictor, listener)


def _check_installed() -> None:
    missing = [
        name
        for name in ("starlette", "uvicorn", "python_multipart")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(
            "the page needs Starlette, uvicorn and python-multipart: pip install 'sdwa[demo]' "
            f"({', '.join(missing)} is missing)"
        )


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before the network is loaded; raises ConfigError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            reason = "the port is in use; choose another --port, or 0 for a free one"
        raise ConfigError(f"cannot listen at {host}, port {port}: {reason}") from error


def _name_of(checkpoint: str | None) -> str:
    """The run's name, and its file's where one was given; not where they lie."""
    if checkpoint is None or trained.is_of_package(checkpoint):
        return pretrained.PRESET
    path = Path(checkpoint).absolute()
    return path.name if path.is_dir() else f"{path.parent.name}/{path.name}"


def _serve(tool: Demo, predictor: Predictor, listener: socket.socket) -> None:
    import uvicorn

    from cfmrfn.demo.app import application

    address, port = listener.getsockname()[:2]
    address = address.partition("%")[0]
    if not ipaddress.ip_address(address).is_loopback:
        print(
            f"warning: every machine that reaches port {port} of this one can use the page, "
            "without a password and unencrypted; there, browsers allow it no camera",
            file=sys.stderr,
        )
    machine = socket.gethostname()
    app = application(
        Answers(predictor, _name_of(tool.checkpoint)),
        int(tool.most_megabytes * 1e6),
        names=(tool.host, machine, f"{machine}.local"),
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            access_log=False,
            lifespan="off",
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=3,
            ws="none",
        )
    )
    shown = machine if ipaddress.ip_address(address).is_unspecified else address
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
    print(f"{url}  (Ctrl-C ends)", flush=True)
    if tool.open:
        # some browsers hold the call until they are closed
        threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        print(file=sys.stderr)  # what follows begins below the terminal's ^C


if __name__ == "__main__":
    command.run(main)
