"""The faults that `python -m tests.mutants` puts in."""

import ast

from tests.mutants.changes import mutants
from tests.mutants.trial import Outcomes

MODULE = '''
"""Not changed."""
LIMIT: int = 3

@cached
def clipped(x, *, strict=True):
    """Nor is this."""
    assert x == 1
    if not strict and x > LIMIT:
        raise ValueError(f"at most {LIMIT}, got {x + 1:.1f}")
    with quiet():
        pairs = [sum(pair, start=0) for pair in zip(x, x, strict=True) if pair]
    return -x if strict else x / 2.0
'''


def test_each_kind_of_change():
    assert [mutant.name.split(": ", 1)[1] for mutant in mutants(MODULE)] == [
        "3 -> 4",
        "@cached -> def clipped(x, *, strict=True):",
        "True -> False",
        "if not strict and x > LIMIT: -> if not (not strict and x > LIMIT):",
        "not strict and x > LIMIT -> x > LIMIT",
        "not strict and x > LIMIT -> not strict",
        "not strict -> strict",
        "x > LIMIT -> x >= LIMIT",
        "raise ValueError(f'at most {LIMIT}, got {x + 1:.1f}') -> pass",
        "x + 1 -> x - 1",
        "1 -> 2",
        "with quiet(): -> if True:",
        "[sum(pair, start=0) for pair in zip(x, x, strict=True) if pair]"
        " -> [sum(pair, start=0) for pair in zip(x, x, strict=True)]",
        "sum(pair, start=0) -> sum(pair)",
        "0 -> 1",
        "return -x if strict else x / 2.0 -> return None",
        "-x if strict else x / 2.0 -> -x if not strict else x / 2.0",
        "-x -> x",
        "x / 2.0 -> x * 2.0",
        "2.0 -> 4.0",
    ]


def test_each_mutant_is_another_module_of_one_change():
    made = mutants(MODULE)
    sources = {ast.unparse(ast.parse(MODULE)), *(mutant.source for mutant in made)}
    assert len(sources) == len(made) + 1
    for mutant in made:
        compile(mutant.source, "module", "exec")


def test_what_stands_twice_in_a_function_has_two_names():
    assert [m.name for m in mutants("def f(x):\n    g(1)\n    g(1)")] == [
        "f: g(1) -> pass",
        "f: 1 -> 2",
        "f: g(1) -> pass #2",
        "f: 1 -> 2 #2",
    ]


def test_what_was_killed_is_kept_for_the_same_source(tmp_path):
    first, second = mutants("x = 1 + y")
    Outcomes(tmp_path / "m.json").add(first, "FAILED test_m.py")
    kept = Outcomes(tmp_path / "m.json")
    assert kept.killed(first) and not kept.killed(second)
    changed, _ = mutants("x = 1 + y\nz = y")
    assert changed.name == first.name and not kept.killed(changed)
