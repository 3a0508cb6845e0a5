"""Cores that this process may use."""

import os


def available_cores() -> int:
    """Number of them, 1 or more."""
    # not every system tells which cores a process may use
    affinity = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))
