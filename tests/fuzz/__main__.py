"""The command line: `python -m tests.fuzz [TARGET ...]`, from the root of the repository.

Draws problems of the operator and compares what each target gives with plain loops in float64,
element by element. What fails is made as small as it can be, printed, and best kept as a case of
tests/sdwa/cases.py. The same command goes on where it was stopped. The exit status is 1 if
anything failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

CHUNK = 100  # problems of a seed of hypothesis', and between two notes of how far it is


def main() -> int:
    """Runs each target in a process of its own; returns the exit status."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help=f"of {', '.join(TARGETS)}; reference and cpu by default",
    )
    parser.add_argument("--cases", type=int, default=100_000, help="for each target (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="where the cases start (%(default)s)")
    parser.add_argument(
        "--state",
        type=Path,
        default=Path("build/fuzz"),
        help="folder of what is done (%(default)s)",
    )
    options = parser.parse_args()
    names = options.targets or ["reference", "cpu"]
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no such target: {', '.join(unknown)}")
    if len(names) == 1 and TARGETS[names[0]].environment.items() <= os.environ.items():
        return fuzz(TARGETS[names[0]], options.cases, options.seed, options.state)
    failed = 0
    for name in names:
        command = [sys.executable, "-m", "tests.fuzz", name]
        command += [
            f"--cases={options.cases}",
            f"--seed={options.seed}",
            f"--state={options.state}",
        ]
        environment = {**os.environ, **TARGETS[name].environment}
        failed |= bool(subprocess.run(command, env=environment).returncode)
    return int(failed)


def fuzz(target, cases: int, seed: int, state: Path) -> int:
    """Goes on with a target until so many cases are done; returns the exit status."""
    from tqdm import tqdm

    from tests.fuzz.cases import check, run_chunk

    path = state / f"{target.name}-{seed}.json"
    state.mkdir(parents=True, exist_ok=True)
    done = {"cases": 0, "seconds": 0.0, "failures": []}
    if path.exists():
        done = json.loads(path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        attend = target.make(Path(folder))
        with tqdm(total=cases, initial=done["cases"], desc=target.name, unit="case") as bar:
            while done["cases"] < cases:
                began = time.monotonic()
                count = min(CHUNK, cases - done["cases"])
                failure = run_chunk(
                    target, check(target, attend), (seed << 32) + done["cases"], count
                )
                done["cases"] += count
                done["seconds"] += time.monotonic() - began
                if failure:
                    done["failures"].append(failure)
                    tqdm.write(f"{target.name}: {failure}")
                beside = path.with_suffix(".partial")
                beside.write_text(json.dumps(done, indent=1))
                beside.replace(path)
                bar.update(count)
    print(
        f"{target.name}: {done['cases']:,} cases from seed {seed} in {done['seconds']:.0f} s, "
        f"{len(done['failures'])} failed; kept in {path}"
    )
    return int(bool(done["failures"]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
