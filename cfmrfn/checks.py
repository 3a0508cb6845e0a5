"""Checks of the sections of a configuration, which each makes of itself where it is built.

So what the command line refuses is refused in Python too. All raise `ConfigError`. `is_whole` and
`is_number` are for arguments in Python, which may be anything.
"""

from __future__ import annotations

import dataclasses
import math
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from cfmrfn.errors import ConfigError


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, Python's or numpy's; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a finite number, Python's or numpy's; a bool is none."""
    if is_whole(value):
        return True  # of any size, where a float ends at 1e308
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_types(section: Any) -> None:
    """Checks every field of a section against its type, choices among them.

    In Python a path may be given as text, a tuple as a list, and a number as numpy's; they become
    what they stand for.
    """
    hints = get_type_hints(type(section))
    for option in dataclasses.fields(section):
        hint = hints[option.name]
        value = _plain(getattr(section, option.name))
        if isinstance(value, str) and not _fits(value, hint) and _fits(Path(value), hint):
            value = Path(value)
        require(_fits(value, hint), option.name, repr(value), _in_words(hint))
        object.__setattr__(section, option.name, value)  # the section is frozen


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


_KINDS: dict[type, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    NoneType: "None",
}


def _fits(value: object, hint: Any) -> bool:
    if hint in _KINDS:
        if isinstance(value, bool):
            return hint is bool
        return isinstance(value, int | float if hint is float else hint)
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return value in inner
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        items = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(items) == len(value) and all(map(_fits, value, items))
    return any(_fits(value, one) for one in inner)


def _in_words(hint: Any) -> str:
    """What `_fits` takes."""
    if hint in _KINDS:
        return _KINDS[hint]
    inner = get_args(hint)
    if get_origin(hint) is tuple:
        number = "a tuple" if inner[-1] is ... else f"a tuple of {len(inner)}"
        return f"{number}, each {_in_words(inner[0])}"
    # choices, of which there may be others
    return " or ".join(one if isinstance(one, str) else _in_words(one) for one in inner)


def check_at_least(section: object, **lowest: float) -> None:
    """Checks that fields are finite, and at least what is given here; None is legal."""
    for name, least in lowest.items():
        value = getattr(section, name)
        require(value is None or value >= least, name, value, f"{least} or more")
        require(value is None or value < math.inf, name, value, "finite")


def check_fractions(section: object, *names: str) -> None:
    """Checks that fields are from 0 to 1; None is legal."""
    for name in names:
        value = getattr(section, name)
        require(value is None or 0 <= value <= 1, name, value, "0 to 1")


def check_fractions_below_1(section: object, *names: str) -> None:
    """Checks that fields are from 0 to what is below 1."""
    for name in names:
        value = getattr(section, name)
        require(0 <= value < 1, name, value, "0 or more and below 1")


def check_positive(section: object, *names: str) -> None:
    """Checks that fields are finite, and above 0; None is legal."""
    for name in names:
        value = getattr(section, name)
        require(value is None or value > 0, name, value, "above 0")
        require(value is None or value < math.inf, name, value, "finite")


def require(condition: bool, name: str, value: object, legal: str) -> None:
    """Checks a field of this `name` and `value`; `legal` says in words what it must be."""
    if not condition:
        raise ConfigError(f"{name.replace('_', '-')} must be {legal}, got {value}")
