"""Disks that are full from the n-th operation on, for every n; read-only and vanished folders."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path

from tests.faults.children import Ended, disk, run
from tests.faults.counts import Counts
from tests.faults.training import Runs


def training(runs: Runs, counts: Counts) -> None:
    """A run on a disk that is full from its n-th operation on, and that goes on with free space."""
    full = runs.folder / "disk"
    full.mkdir()
    name = "disk/run"
    ended = runs.train(name, full=full)
    assert ended.operations > 50, ended.err
    for number in range(1, ended.operations + 1):
        shutil.rmtree(full)
        full.mkdir()
        with counts.trying("run on a full disk, for each n", str(number)):
            ended = runs.train(name, full=full, fail_from=number, code=errno.ENOSPC)
            says_what_and_where(ended, full)
            runs.clean(name)
            assert not list(full.glob(".*")), "something was left beside it"
            if number % 4 == 1:
                ended = runs.go_on(name)
                assert ended.status == 0, ended.err
                runs.equals_whole(name)


def resuming(runs: Runs, counts: Counts) -> None:
    """A resumed run in a folder that is read-only, or that vanishes."""
    name, folder = "half", runs.folder / "half"
    stopped = runs.start("stopped")
    while stopped.runs and not (runs.folder / "stopped" / "last.pt").exists():
        time.sleep(0.01)
    stopped.signal(signal.SIGKILL)
    stopped.end()
    for code, kind in {
        errno.EROFS: "resumed run in a read-only folder, for each n",
        errno.ENOENT: "resumed run in a folder that vanishes, for each n",
        errno.EIO: "resumed run on a disk that fails, for each n",
    }.items():
        number = 1
        while number < 200:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(runs.folder / "stopped", folder)
            with counts.trying(kind, str(number)):
                ended = run(
                    ["train", "--resume", folder],
                    runs.folder,
                    full=folder,
                    fail_from=number,
                    code=code,
                )
                if ended.status == 0:
                    break
                says_what_and_where(ended, folder, code)
                runs.clean(name, copied="stopped")
                ended = runs.go_on(name)
                assert ended.status == 0, ended.err
                runs.clean(name)
                runs.equals_whole(name)
            number = number * 3 // 2 + 1


def says_what_and_where(ended: Ended, folder: Path, code: int = errno.ENOSPC) -> None:
    """Asserts one line of an error that names the folder, and what is wrong with it."""
    assert ended.status == 2, f"status {ended.status}: {ended.err}"
    assert len(ended.told) == 1, ended.err
    assert ended.told[0].startswith("error: "), ended.err
    assert str(folder) in ended.told[0], ended.err
    assert os.strerror(code) in ended.told[0], ended.err


def tools(runs: Runs, faces: Path, counts: Counts) -> None:
    """The other tools on disks that are full."""
    best = runs.folder / "whole" / "best.pt"
    out = runs.folder / "tool"
    pictures = sorted((faces / "Image" / "aligned").iterdir())[:3]
    commands = {
        "data draw": [
            *("data", "draw", out / "a", "--train", "7", "--test", "7", "--size", "32"),
            *("--workers", "1", "--sheet", out / "sheet.png"),
        ],
        "data verify": ["data", "verify", faces, "--workers", "1", "--duplicates", out / "a.csv"],
        "predict": [
            *("predict", best, *pictures, "--csv", out / "a.csv", "--json", out / "a.json"),
            *("--overlay", out / "drawn", "--workers", "0"),
        ],
        "evaluate": [
            *("evaluate", best, "--data", faces, "--workers", "0", "--csv", "--output", out / "a"),
        ],
        "export": ["export", best, "--format", "safetensors", "--output", out / "a"],
        "analyze": ["analyze", best, *pictures, "--output", out / "a"],
        "landmarks": [
            *("landmarks", "train", out / "a.safetensors", "--faces", "8", "--held-out", "4"),
            *("--epochs", "1", "--batch-size", "4", "--workers", "0"),
        ],
    }
    for tool, args in commands.items():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        ended = run(args, runs.folder, full=out)
        assert ended.status == 0, ended.err
        expected = contents(out)
        for number in range(1, ended.operations + 1, max(1, ended.operations // 25)):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            with counts.trying("tool on a full disk", f"{tool}, {number}"):
                ended = run(args, runs.folder, full=out, fail_from=number, code=errno.ENOSPC)
                says_what_and_where(ended, out)
                found = contents(out)
                found.pop("a.safetensors.unfinished.pt", None)  # from which landmarks go on
                assert found.items() <= expected.items(), f"left: {found.keys()}"


def contents(folder: Path) -> dict[str, bytes]:
    """All files in a folder, hidden ones too."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def is_there() -> bool:
    """Whether disks can be made full here."""
    return disk() is not None
