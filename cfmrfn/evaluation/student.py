"""The mean of a few measurements and its interval by Student's t, as for the seeds of training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95


class Mean(NamedTuple):
    """A mean and the ends of its interval; None: one value alone tells none."""

    value: float
    interval: tuple[float, float] | None

    @property
    def differs_from_0(self) -> bool:
        """Whether there is an interval, and 0 is not in it."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def mean(values: Sequence[float]) -> Mean:
    """The mean of values that are taken to be normal, and its interval."""
    middle = statistics.mean(values)
    if len(values) < 2:
        return Mean(middle, None)
    half = quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(middle, (middle - half, middle + half))


def quantile(freedom: int) -> float:
    """Half the width of the interval of `CONFIDENCE` around 0, for whole degrees of freedom."""
    low, high = 0.0, 1.0
    while _inside(high, freedom) < CONFIDENCE:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < CONFIDENCE else (low, middle)
    return high


def _inside(t: float, freedom: int) -> float:
    """P(|T| <= t), by the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = freedom % 2
    term = total = cosine if is_odd else 1.0
    for step in range(2 + is_odd, freedom - 1, 2):
        term *= (step - 1) / step * cosine**2
        total += term
    if not is_odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0))
