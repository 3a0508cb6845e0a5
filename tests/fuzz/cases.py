"""Draws problems for a target, and shrinks what fails."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
from hypothesis import HealthCheck, Phase, assume, given, settings

from tests.fuzz.exact import assert_matches
from tests.fuzz.problems import Problem, problems, tensors_of
from tests.fuzz.targets import Attend, Target

QUIET = settings(
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)


def check(target: Target, attend: Attend) -> Callable[[Problem], None]:
    """The test of one problem, for a target as it was made."""

    def checked(problem: Problem) -> None:
        tensors = tensors_of(problem)
        spreads = target.tiles and problem.dtype.itemsize == 2
        assert_matches(problem, tensors, attend(problem, tensors), spreads=spreads)

    return checked


def run_chunk(target: Target, checked: Callable, seed: int, count: int) -> str | None:
    """Tries `count` problems; returns the smallest that fails and why, or None."""
    last: list[Problem] = []

    @hypothesis.seed(seed)
    @settings(QUIET, max_examples=count)
    @given(problems(target.budget, target.plain, target.side, target.taps))
    def each(problem: Problem) -> None:
        assume(problem.dtype in target.dtypes)
        last[:] = [problem]
        checked(problem)

    try:
        each()
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{last[0]}"
    return None
