"""The decorator of functions that kernels call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

from sdwa.backends.triton import interpreted


def inline(function: Callable[..., Any]) -> Any:
    """`triton.jit` for a function that only kernels call.

    Interpreted, it stays a Python function: Triton's interpreter sets its language up anew in every
    call of a jitted one, which takes most of the time of a test.
    """
    if interpreted():
        return function
    return triton.jit(function)
