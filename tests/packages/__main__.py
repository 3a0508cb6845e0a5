"""The command line: `python -m tests.packages PYTHON ...`, from the root of the repository.

Builds the sdist, and the wheel from it alone, with the PyTorch, setuptools and ninja at hand, and
checks what they hold. Each PYTHON is an interpreter with PyTorch and NumPy, or a command that
starts one. Beside each an environment is made that sees what it has. There the wheel is installed,
tried on the CPU (golden vectors of the tests, `python -m sdwa.info`, and `cfmrfn` where it finds
all that it needs), installed over itself and over an older one, and uninstalled, which must leave
no file. The table is Markdown; the exit status is 1 if anything failed.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.markdown import table
from tests.packages import archives
from tests.packages.attempts import HEADER, Attempt
from tests.packages.environment import Environment


def build(folder: Path) -> tuple[Path, Path]:
    """Sdist and wheel."""
    print("building sdist and wheel, which compiles the kernels", flush=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, archives.ROOT]
    built = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if built.returncode:
        sys.exit(f"{built.stdout}python -m build failed; it needs build, setuptools>=77 and ninja")
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def main() -> int:
    """Tries what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.packages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="command of an interpreter")
    parser.add_argument("--wheel", type=Path, help="try this one; nothing is built")
    parser.add_argument(
        "--from-sdist",
        action="store_true",
        help="install from the sdist, too, with and without nvcc: compiles for minutes, each time",
    )
    options = parser.parse_args()
    if options.wheel and options.from_sdist:
        parser.error("--from-sdist needs the sdist, which is not built with --wheel")
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        sdist, wheel = (None, options.wheel.resolve()) if options.wheel else build(folder)
        for archive in filter(None, (sdist, wheel)):
            wrong = archives.wrong(archive)
            failed += len(wrong)
            print(f"{archive.name}, {archive.stat().st_size / 1e6:.1f} MB:", end=" ")
            print("; ".join(wrong) or "holds what it must", flush=True)
        for number, command in enumerate(options.pythons):
            print(f"\n{command}", flush=True)
            attempt = Attempt()
            try:
                attempt.environment = Environment(shlex.split(command), folder / str(number))
                attempt.wheel(wheel, folder)
                if options.from_sdist:
                    attempt.sdist(sdist)
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                failed += 1
                print(f"FAILED  {error}", flush=True)
            rows.append(attempt.row())
    if rows:
        print(f"\n{table(HEADER, rows)}")
    print(f"\n{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
