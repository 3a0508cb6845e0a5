"""What runs leave: compared bit for bit, and changed at one place."""

import copy

import torch

from cfmrfn import checkpoint


def assert_equal(found, expected, where="state"):
    """Equal bit for bit, tensors inside containers included."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_equal(found[key], value, f"{where}, {key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}, {index}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def state(folder):
    """All that a run leaves and that must be equal."""
    last, best = checkpoint.load(folder / "last.pt"), checkpoint.load(folder / "best.pt")
    for about in (last["about"], best["about"]):
        # where the run was written, and with how many workers, may differ
        for key in ("output", "resume", "workers"):
            del about["config"][key]
    files = {name: (folder / name).read_bytes() for name in ("metrics.csv", "report.json")}
    return last, best, files


def changed_at(value, place, new):
    """A copy of nested dictionaries, lists and tuples, with another value at one place.

    Args:
        place: keys and numbers, from the outermost one inwards.
    """
    if not place:
        return new
    value = list(value) if isinstance(value, tuple) else copy.copy(value)
    value[place[0]] = changed_at(value[place[0]], place[1:], new)
    return value
