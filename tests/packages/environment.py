"""An environment beside an interpreter, and the files in it."""

import hashlib
import json
import os
import shlex
import subprocess
from pathlib import Path

SEEN = """
import importlib.util, json, platform, sys, torch
sdwa = importlib.util.find_spec("sdwa")
seen = platform.python_version(), torch.__version__, sys.path[1:], sdwa and sdwa.origin
print(json.dumps(seen))
"""
# Of the one who calls: where Python looks, what is compiled.
NOT_PASSED_ON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CUDA_HOME", "SDWA_BUILD_CUDA")


class Environment:
    """An environment of its own, which sees what an interpreter has: PyTorch, above all.

    Its home, its folder of temporary files and where its programs run are in `folder`, too, so that
    nothing that they write is missed.

    Args:
        command: starts the interpreter.
        folder: is made.
    """

    def __init__(self, command: list[str], folder: Path) -> None:
        self.folder = folder
        self.variables = {k: v for k, v in os.environ.items() if k not in NOT_PASSED_ON}
        self.variables |= {
            "HOME": str(folder / "home"),
            "USERPROFILE": str(folder / "home"),
            "TMPDIR": str(folder / "temporary"),
            # caches of theirs, filled at first use
            "MPLCONFIGDIR": str(folder.with_name(f"{folder.name}-caches")),
            "TORCHINDUCTOR_CACHE_DIR": str(folder.with_name(f"{folder.name}-caches")),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_INDEX": "1",
        }
        for name in ("home", "temporary", "work"):
            (folder / name).mkdir(parents=True)
        self.python_version, self.torch_version, path, sdwa = json.loads(
            self.start([*command, "-c", SEEN], stdout=subprocess.PIPE, check=True).stdout
        )
        assert sdwa is None, f"{shlex.join(command)} has an sdwa already, in {sdwa}: uninstall it"
        self.start([*command, "-m", "venv", folder / "venv"], check=True)
        self.programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        self.python = str(self.programs / "python")
        packages = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        Path(packages, "beside.pth").write_text("".join(f"{entry}\n" for entry in path))
        # A venv of Python 3.10 or 3.11 brings an old one, which would hide the interpreter's.
        self.pip("uninstall", "-y", "setuptools")
        self.pip("install", "pip")  # is there; what pip and rustup write at first is no trace

    def start(self, command, variables=(), **options) -> subprocess.CompletedProcess:
        """A program, in the folder of the environment that holds no source of the packages."""
        variables = self.variables | dict(variables)
        return subprocess.run(
            command, cwd=self.folder / "work", env=variables, text=True, **options
        )

    def run(self, *arguments: str | Path, fails: bool | None = False, **variables: str) -> str:
        """What the environment's Python prints, on both streams.

        Args:
            arguments: of Python.
            fails: whether it must fail; None: it may.
            variables: of the environment.
        """
        done = self.start(
            [self.python, *arguments],
            variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
        )
        said = f"python {shlex.join(map(str, arguments))[:200]}"
        assert fails is None or bool(done.returncode) == fails, (
            f"{said}: status {done.returncode}\n{done.stdout}"
        )
        return done.stdout

    def pip(self, *arguments: str | Path, **options) -> str:
        """What pip prints; `options` of `run`."""
        return self.run("-m", "pip", *arguments, **options)

    def files(self) -> dict[str, str]:
        """Digests of all files and names of all folders; compiled Python has a time in it."""
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file() and path.suffix != ".pyc"
            else ""
            for path in self.folder.rglob("*")
        }


def assert_same(before: dict[str, str], now: dict[str, str], what: str) -> None:
    """That files and folders are what they were."""
    changes = {
        "left over": now.keys() - before.keys(),
        "gone": before.keys() - now.keys(),
        "changed": {name for name in before.keys() & now.keys() if before[name] != now[name]},
    }
    told = [f"{kind}: {', '.join(sorted(names))}" for kind, names in changes.items() if names]
    assert not told, f"{what}: {'; '.join(told)}"
