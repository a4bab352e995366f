"""The hard cap on the number of series.

A family that does not fit is left out whole: half of one would add up to sums and ratios that look like
data. Families without labels always fit; then coarser levels come first, and the catalogue's order decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moescope.service.metrics.catalogue import CATALOGUE


@dataclass(frozen=True, slots=True)
class Admission:
    """What may be shown.

    Attributes:
        families: names of the families that fit.
        series: how many series these have in all.
        overflow: series of each family that does not fit.
    """

    families: frozenset[str]
    series: int
    overflow: Mapping[str, int]


def admit(sizes: Mapping[str, int], limit: int) -> Admission:
    """Choose families until ``limit`` series are reached.

    Args:
        sizes: series of each family that has any.
        limit: most series in all.
    """
    order = sorted(sizes, key=lambda name: (bool(CATALOGUE[name].labels), CATALOGUE[name].rank))
    chosen, series, overflow = set(), 0, {}
    for name in order:
        if CATALOGUE[name].labels and series + sizes[name] > limit:
            overflow[name] = sizes[name]
            continue
        chosen.add(name)
        series += sizes[name]
    return Admission(frozenset(chosen), series, overflow)
