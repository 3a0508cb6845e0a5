"""Mutation testing: `python -m tests.mutants [MODULE ...]`, from the root of the repository.

Each mutant is a module with one small fault. The module's tests run on it until one of them fails.
Where none does, the mutant has survived: a test is missing, or the change makes no difference, and
then tests/mutants/explained.py says why. The same command goes on where it was stopped, and tries
again what survived. The exit status is 1 if a mutant survived without an explanation.
"""

import argparse
import os
import sys
from pathlib import Path

from tests.mutants.changes import mutants
from tests.mutants.explained import EXPLAINED
from tests.mutants.trial import Outcomes, Trials

ROOT = Path(__file__).parents[2]
# What pytest is given for each module.
TESTS = {
    "sdwa/problem.py": [
        "tests/sdwa/test_arguments.py",
        "tests/sdwa/test_free_windows.py::test_plain_windows_are_centred_on_the_query",
        "tests/sdwa/test_free_windows.py::test_what_the_operators_take_as_bias",
        "tests/sdwa/test_free_windows.py::test_the_reference_reads_what_the_table_says",
        "tests/sdwa/test_free_windows.py::test_of_a_bias_by_distance_centred_windows_take_the_middle",
        "tests/sdwa/test_operator.py",
        "tests/sdwa/test_modules.py",
    ],
    "sdwa/dispatch.py": [
        "tests/sdwa/test_opcheck.py::test_kept_calls_are_bounded_and_exact",
        "tests/sdwa/test_opcheck.py::test_calls_with_equal_arguments_are_prepared_once",
        "tests/sdwa/test_opcheck.py::test_a_sequence_changed_in_place_is_obeyed",
        "tests/sdwa/test_opcheck.py"
        "::test_features_that_lie_apart_are_refused_after_a_call_with_others",
        *("tests/sdwa/test_arguments.py", "tests/sdwa/test_operator.py"),
        "tests/sdwa/test_tracing.py",
        "tests/sdwa/test_free_windows.py::test_a_sequence_is_a_map_of_one_row",
    ],
    "cfmrfn/metrics.py": ["tests/cfmrfn/evaluation/test_metrics.py"],
    "cfmrfn/losses.py": [
        *("tests/cfmrfn/weights/test_finetune.py", "tests/cfmrfn/training/test_optim.py"),
        "-k=weights_by_hand or weighted_loss or votes or optim",
    ],
    "cfmrfn/optim.py": ["tests/cfmrfn/training/test_optim.py"],
    "cfmrfn/training/progress.py": ["tests/cfmrfn/training/test_progress.py"],
    "cfmrfn/training/step.py": ["tests/cfmrfn/training/test_optim.py"],
}


def main() -> int:
    """Tries the mutants of each module; returns the exit status."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TESTS)}")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="(%(default)s)")
    parser.add_argument(
        "--state",
        type=Path,
        default=Path("build/mutants"),
        help="folder of what is done (%(default)s)",
    )
    options = parser.parse_args()
    if unknown := set(options.modules) - set(TESTS):
        parser.error(f"no such module: {', '.join(unknown)}")
    failed = False
    for module in options.modules or TESTS:
        made = mutants((ROOT / module).read_text())
        explained = EXPLAINED.get(module, {})
        if gone := set(explained) - {mutant.name for mutant in made}:
            print(f"explained.py names no mutant of {module}:", *sorted(gone), sep="\n  ")
            failed = True
        outcomes = Outcomes(options.state / f"{Path(module).stem}.json")
        left = [m for m in made if m.name not in explained and not outcomes.killed(m)]
        if left:
            with Trials(module, TESTS[module]) as trials:
                results = trials.of(left, options.processes)
                for mutant, killer in tqdm(results, module, len(left), unit="mutant"):
                    if killer is None:
                        tqdm.write(f"survived: {module}:{mutant.line} {mutant.name}")
                    else:
                        outcomes.add(mutant, killer)
        survived = [m for m in made if m.name not in explained and not outcomes.killed(m)]
        killed = len(made) - len(explained) - len(survived)
        print(
            f"{module}: {len(made)} mutants, {killed} killed, {len(explained)} explained, "
            f"{len(survived)} survived; kept in {outcomes.path}",
            flush=True,
        )
        failed |= bool(survived)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
