"""The command line: `python -m tests.faults [PART ...]`, from the root of the repository.

All parts take 30 minutes at most on two cores, and each says what it tried and what broke. The exit
status is 1 if anything did. A C compiler makes full disks; without one these are left out.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).with_name("full_disk.c")
PARTS = ("kills", "stops", "once", "clocks", "processes", "disks", "files", "operator")


def preload(folder: Path) -> None:
    """Starts this program anew with full_disk.c in it, and with one thread in each process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TESTS_FAULTS": str(folder)}
    library = folder / "full_disk.so"
    try:
        subprocess.run(
            [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"],
            check=True,
        )
        environment["LD_PRELOAD"] = str(library)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no full disks: {error}", flush=True)
    ended = subprocess.run([sys.executable, "-m", "tests.faults", *sys.argv[1:]], env=environment)
    sys.exit(ended.returncode)


def main(folder: Path) -> None:
    """Does the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, help="of what is chosen at random")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    seed = time.time_ns() % 10**6 if options.seed is None else options.seed
    print(f"--seed {seed}", flush=True)

    # not above: the process that compiles does without them
    from cfmrfn.data.synthetic import write_faces
    from tests.faults import disks, files, operator, training
    from tests.faults.counts import Counts

    counts = Counts()
    rng = random.Random(seed)
    wanted = options.parts or PARTS
    faces = write_faces(folder / "faces", train=28, test=7, size=32, workers=1, progress=False)
    if set(wanted) != {"operator"}:
        runs = training.Runs(folder / "runs", faces, rng)
    parts = {
        "kills": [lambda c: training.kills(runs, c)],
        "stops": [lambda c: training.stops(runs, c), lambda c: training.hangups(runs, c)],
        "once": [lambda c: training.at_once(runs, c)],
        "clocks": [lambda c: training.clocks(runs, c)],
        "processes": [lambda c: training.processes(runs, c)],
        "disks": [
            lambda c: disks.training(runs, c),
            lambda c: disks.resuming(runs, c),
            lambda c: disks.tools(runs, faces, c),
        ],
        "files": [lambda c: files.everything(runs, faces, c)],
        "operator": [lambda c: operator.everything(folder, c, rng)],
    }
    for name in wanted:
        if name == "disks" and not disks.is_there():
            continue
        for each in parts[name]:
            counts.part(name, each)
    print(f"{sum(counts.tried.values()):,} faults, {len(counts.broken)} broke something")
    sys.exit(1 if counts.broken else 0)


if __name__ == "__main__":
    if "TESTS_FAULTS" in os.environ:
        main(Path(os.environ["TESTS_FAULTS"]))
    else:
        with tempfile.TemporaryDirectory() as made:
            preload(Path(made))
