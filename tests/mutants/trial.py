"""Runs a module's tests on its mutants, each in a process and a copy of the sources of its own."""

import ast
import hashlib
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.mutants.changes import Mutant

ROOT = Path(__file__).parents[2]
COPIED = (
    "sdwa",
    "cfmrfn",
    "benchmarks",
    "tests",
    "csrc",
    "pyproject.toml",
    "setup.py",
    "README.md",
)
ARGUMENTS = ["-q", "-n0", "-x", "--timeout=300", "--no-header"]
ARGUMENTS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # its plugins are imported before
# Run by the tests before any mutant: prints the packages that they import and that are not ours.
PACKAGES = """
import sys, pytest
code = pytest.main(sys.argv[1:])
ours = ("sdwa", "cfmrfn", "benchmarks", "tests", "__main__", "conftest")
print()
print(*sorted({name for name in sys.modules if name.split(".")[0] not in ours}))
sys.exit(code)
"""


class Outcomes:
    """What became of each mutant, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.killers = json.loads(path.read_text()) if path.exists() else {}

    def killed(self, mutant: Mutant) -> bool:
        """Whether a test was seen to fail on it."""
        return self._key(mutant) in self.killers

    def add(self, mutant: Mutant, killer: str) -> None:
        """Keeps which test failed."""
        self.killers[self._key(mutant)] = f"{mutant.name}: {killer}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".partial")
        beside.write_text(json.dumps(self.killers, indent=1))
        beside.replace(self.path)

    @staticmethod
    def _key(mutant: Mutant) -> str:
        return hashlib.sha256(mutant.source.encode()).hexdigest()[:16]


class Trials:
    """Tries mutants of a module. What the tests import beside it is imported once, here."""

    def __init__(self, module: str, tests: list[str]) -> None:
        self.module = module
        self.tests = tests

    def __enter__(self) -> "Trials":
        self._folder = tempfile.TemporaryDirectory()
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a mutant would be taken for the one before
        sys.dont_write_bytecode = True
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", PACKAGES, *ARGUMENTS, *self.tests],
            cwd=self._copy("unchanged"),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"the tests fail without a mutant:\n{done.stdout[-3000:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._seconds = int(60 + 3 * (after.ru_utime - before.ru_utime))
        for name in done.stdout.splitlines()[-1].split():
            try:
                importlib.import_module(name)
            except Exception:  # made while the tests ran
                continue
        self._check_unchanged()
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def of(self, mutants: Iterable[Mutant], processes: int) -> Iterator[tuple[Mutant, str | None]]:
        """(mutant, the test that failed) of each, as they end; None: no test failed."""
        free = [self._copy(str(index)) for index in range(processes)]
        running: dict[int, tuple[Mutant, Path]] = {}
        for mutant in mutants:
            if not free:
                yield self._ended(running, free)
            folder = free.pop()
            running[self._start(mutant, folder)] = mutant, folder
        while running:
            yield self._ended(running, free)

    def _check_unchanged(self) -> None:
        """Tries the module itself as a mutant: whatever else fails tests must not count as a kill.

        Raises:
            SystemExit: a test fails.
        """
        unchanged = Mutant("unchanged", 0, ast.unparse(ast.parse((ROOT / self.module).read_text())))
        for _, killer in self.of([unchanged], 1):
            if killer is not None:
                output = Path(self._folder.name, "0", "output.txt").read_text(errors="replace")
                raise SystemExit(f"the tests fail without a mutant:\n{output[-3000:]}")

    def _copy(self, name: str) -> Path:
        folder = Path(self._folder.name, name)
        if folder.exists():
            return folder
        for part in COPIED:
            if (ROOT / part).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / part, folder / part, ignore=ignored)
            else:
                shutil.copy(ROOT / part, folder / part)
        return folder

    def _start(self, mutant: Mutant, folder: Path) -> int:
        (folder / self.module).write_text(mutant.source)
        if child := os.fork():
            return child
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (self._seconds, self._seconds))
            with open(folder / "output.txt", "w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            os.chdir(folder)
            sys.path[:] = [str(folder), *(p for p in sys.path if p not in ("", str(ROOT)))]
            for name in [n for n in sys.modules if n.split(".")[0] == "tests"]:
                del sys.modules[name]
            import pytest

            code = int(pytest.main([*ARGUMENTS, *self.tests]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    @staticmethod
    def _ended(
        running: dict[int, tuple[Mutant, Path]], free: list[Path]
    ) -> tuple[Mutant, str | None]:
        child, status = os.wait()
        mutant, folder = running.pop(child)
        free.append(folder)
        if status == 0:
            return mutant, None
        lines = (folder / "output.txt").read_text(errors="replace").splitlines()
        named = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        return mutant, named[-1][:200] if named else f"ended with status {status}"
