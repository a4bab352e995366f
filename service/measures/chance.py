"""What chance alone makes of loads."""

from __future__ import annotations

import math


def above_mean_by_chance(loads: float, number: int) -> float:
    """How far above their mean the largest of ``number`` sums is by chance, as a multiple of the mean.

    ``loads`` single loads, each of which falls anywhere, are in these sums: the expected largest of so many
    normal deviates, sqrt(2 ln number), times the standard deviation of a sum.
    """
    mean = loads / number
    return math.sqrt(2 * math.log(number) / mean) if mean > 0 else math.inf
