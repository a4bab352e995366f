"""95 % intervals of means, by Student's t."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def half_interval_of(values: Sequence[float]) -> float:
    """Half of the interval of the mean of one sample, of two values at least."""
    return student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def half_interval(mine: Sequence[float], others: Sequence[float]) -> float:
    """Half of the interval of the difference of the means of two samples, of two values each at least."""
    variance = (statistics.variance(mine) + statistics.variance(others)) / 2
    spread = math.sqrt(variance * (1 / len(mine) + 1 / len(others)))
    return student(len(mine) + len(others) - 2) * spread


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by Cornish and Fisher's expansion; 1 % off at 3, less beyond."""
    z = 1.959964
    terms = (
        z,
        (z**3 + z) / (4 * freedom),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3),
    )
    return sum(terms)
