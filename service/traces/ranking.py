"""Many requests ranked by a measure. All are ranked in float32; those that are answered are measured again in
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from moescope.service.measures.requests import Floats
from moescope.service.traces.slot_table import Group
from moescope.service.wanted import check_wanted

SPARE: Final = 16
"""Requests that are measured again beyond those wanted, since ranks in float32 may be wrong by rounding."""
_BYTES_AT_ONCE: Final = 512 << 10  # of counts as float32: they stay in a core's cache


@dataclass(frozen=True, slots=True)
class Row:
    """A request among those of its group, and what it was ranked by."""

    group: Group
    at: int
    value: float

    @property
    def number(self) -> int:
        """The request's."""
        return int(self.group.numbers[self.at])


def highest(groups: Sequence[Group], values: Callable[[Group, slice], Floats], limit: int) -> list[Row]:
    """The requests of the highest values, highest first, the newest among equals; none whose value is NaN."""
    found: list[Row] = []
    for group in groups:
        measured = np.concatenate([values(group, rows) for rows in _slices(group)])
        known = np.flatnonzero(~np.isnan(measured))
        best = known[np.lexsort((-group.numbers[known], -measured[known]))][:limit]
        found += [Row(group, at, float(measured[at])) for at in best.tolist()]
    return sorted(found, key=lambda row: (-row.value, -row.number))[:limit]


def _slices(group: Group) -> Iterator[slice]:
    size = max(1, _BYTES_AT_ONCE // (4 * group.counts.shape[1]))
    for start in range(0, len(group.numbers), size):
        check_wanted()
        yield slice(start, start + size)
