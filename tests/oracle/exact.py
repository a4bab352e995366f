"""The measures of docs/measures.md over loads, exact but for roots, logarithms and e."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from tests.oracle.ledger import Number

HOT = 3
"""An expert or rank with so many means or more is hot."""


def measures(loads: Sequence[Number]) -> dict[str, Number | float] | None:
    """Each measure by its name; None where all loads are 0."""
    total, count = sum(loads), len(loads)
    if total == 0:
        return None
    mean, most = Fraction(total) / count, max(loads)
    shares = [float(Fraction(x) / total) for x in loads if x]
    entropy = -math.fsum(p * math.log(p) for p in shares)
    pairs = Fraction(sum(abs(a - b) for a in loads for b in loads)) / (count * count)
    dead = sum(x == 0 for x in loads)
    tenth = -(-count // 10)
    return {
        "imbalance_ratio": most / mean,
        "balancedness": mean / most,
        "max_vio": (most - mean) / mean,
        "coefficient_of_variation": math.sqrt(
            Fraction(sum((x * count - total) ** 2 for x in loads)) / count / total**2
        ),
        "normalised_entropy": math.exp(entropy) / count,
        "gini": pairs / (2 * mean),
        "dead": dead,
        "dead_fraction": Fraction(dead, count),
        "hot": sum(x * count >= HOT * total for x in loads),
        "top_tenth_share": Fraction(sum(sorted(loads, reverse=True)[:tenth])) / total,
    }


def percentile(values: Sequence[Number], percent: int) -> Number:
    """Between the two nearest ranks in proportion: 0 is the least value, 100 the largest."""
    ordered = sorted(values)
    place = Fraction(percent * (len(ordered) - 1), 100)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(layers: Sequence[tuple[int, Sequence[Number]]]) -> dict[str, Any]:
    """The imbalance ratio over the layers with a sample, each as index and loads."""
    if not layers:
        return {**dict.fromkeys(("worst", "worst_layer", "p50", "p90", "ratio_of_sums")), "layers": 0}
    ratios = [Fraction(max(loads) * len(loads)) / sum(loads) for _, loads in layers]
    worst = max(range(len(ratios)), key=lambda place: (ratios[place], -place))
    return {
        "worst": ratios[worst],
        "worst_layer": ... if ratios.count(ratios[worst]) > 1 else layers[worst][0],  # equal but for rounding
        "p50": percentile(ratios, 50),
        "p90": percentile(ratios, 90),
        "ratio_of_sums": sum(max(loads) for _, loads in layers)
        / sum(Fraction(sum(loads)) / len(loads) for _, loads in layers),
        "layers": len(layers),
    }


def divergence(first: Sequence[Number], second: Sequence[Number]) -> float:
    """Jensen-Shannon divergence of the shares of two lists of loads, bits."""
    p = [Fraction(x) / sum(first) for x in first]
    q = [Fraction(x) / sum(second) for x in second]
    terms = []
    for a, b in zip(p, q, strict=True):
        middle = (a + b) / 2
        terms += [float(x) * math.log2(x / middle) / 2 for x in (a, b) if x]
    return math.fsum(terms)


def moved(first: Sequence[Number], second: Sequence[Number]) -> Fraction:
    """Total variation distance of the shares of two lists of loads."""
    total, base = Fraction(sum(first)), Fraction(sum(second))
    return sum((abs(a / total - b / base) for a, b in zip(first, second, strict=True)), Fraction(0)) / 2


def sampling_noise(first: Sequence[Number], second: Sequence[Number]) -> float:
    """What two samples of one distribution would diverge by: M counts the experts with a slot in either."""
    experts = sum(1 for a, b in zip(first, second, strict=True) if a or b)
    return (experts - 1) * (1 / float(sum(first)) + 1 / float(sum(second))) / (8 * math.log(2))
