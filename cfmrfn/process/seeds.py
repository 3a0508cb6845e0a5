"""Seeds: everything random in a run follows from one seed and a position."""

from __future__ import annotations

import numpy as np


def derived_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, none negative."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
