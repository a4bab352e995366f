"""What is known of the law of rows at a pipeline stage: its last comparison, and when it was broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from moescope.service.counts.row_comparison import Comparison, off_before


@dataclass(frozen=True, slots=True)
class Breach:
    """A time in which a layer's rows and the tokens drew apart, on the service's clock.

    ``kinds`` says which rows did, in the order of :data:`KINDS`.
    """

    since: float
    until: float
    kinds: tuple[bool, bool, bool]


MAX_BREACHES: Final = 16
"""Breaches that are remembered of a layer; beyond that the two oldest become one, with the time between."""


@dataclass(frozen=True, eq=False, slots=True)
class RowLaw:
    """What is known of the law at one pipeline stage of one DP rank.

    Attributes:
        compared: the newest comparison of one step, or None.
        doubted: what the newest snapshots of different steps show beyond ``compared``; None: nothing.
        breaches: layer to its breaches, oldest first, over all starts that this service saw.
    """

    compared: Comparison | None = None
    doubted: Comparison | None = None
    breaches: Mapping[int, tuple[Breach, ...]] = field(default_factory=dict)

    @property
    def newest(self) -> Comparison | None:
        """The comparison that shows most."""
        return self.doubted or self.compared

    def with_compared(self, found: Comparison, since: float) -> RowLaw:
        """Add a comparison of one step; ``since``: the start of the workers, if there was none before."""
        return replace(self._noted(found, since), compared=found, doubted=None)

    def with_newest(self, found: Comparison, since: float) -> RowLaw:
        """Take note of a comparison of different steps, made with ``before=self.compared``."""
        if np.array_equal(found.off, off_before(self.compared, found.layout)):
            return self if self.doubted is None else replace(self, doubted=None)
        return replace(self._noted(found, since), doubted=found)

    def started_again(self) -> RowLaw:
        """The workers began anew from zero; what was broken before is remembered."""
        return RowLaw(breaches=self.breaches)

    def _noted(self, found: Comparison, since: float) -> RowLaw:
        """With the breaches of the time since the last exact comparison."""
        if found.holds and (self.compared is None or self.compared.holds):
            return self
        changed = found.off != off_before(self.compared, found.layout)
        changed[1:] &= found.phased
        if not changed.any():
            return self
        since = since if self.compared is None else self.compared.at
        breaches = dict(self.breaches)
        for at in np.flatnonzero(changed.any(axis=0)).tolist():
            layer = found.layout.layers[at].layer
            all_rows, prefill, decode = changed[:, at].tolist()
            new = Breach(since, found.at, (all_rows, prefill, decode))
            breaches[layer] = _joined([*breaches.get(layer, ()), new])
        return replace(self, breaches=breaches)


def _joined(breaches: list[Breach]) -> tuple[Breach, ...]:
    """The breaches, with the last one joined to the one before if they touch, and not too many."""
    if len(breaches) > 1 and breaches[-1].since <= breaches[-2].until:
        breaches[-2:] = [_both(*breaches[-2:])]
    if len(breaches) > MAX_BREACHES:
        breaches[:2] = [_both(*breaches[:2])]
    return tuple(breaches)


def _both(first: Breach, second: Breach) -> Breach:
    a, b = first.kinds, second.kinds
    kinds = (a[0] or b[0], a[1] or b[1], a[2] or b[2])
    return Breach(min(first.since, second.since), max(first.until, second.until), kinds)
