"""Snapshots of a producer's totals, and what was counted between two of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.counts.layers import Layout
from moescope.service.counts.narrow import widened
from moescope.service.counts.phase_split import Phase, of_phase
from moescope.service.counts.totals import Totals, no_totals, nothing_of


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Totals that were true at ``at``; all but a producer's newest are narrow, see :func:`narrowed`."""

    at: float
    totals: Totals


@dataclass(frozen=True, eq=False, slots=True)
class Rise:
    """What was counted between two instants, for whoever adds up many of them.

    Attributes:
        layout: what the arrays hold.
        rows: tokens counted in each layer, int64 [L].
        tokens: tokens computed.
        unphased_tokens: those of ``tokens`` whose phase is not known.
        plus: what had been counted at the end, in arrays of ``layout``, which may be narrow.
        minus: what had been counted at the begin, likewise; None: nothing.
        made: ``plus`` is a difference that was made, which nobody else holds.
    """

    layout: Layout
    rows: Int64Array
    tokens: int
    unphased_tokens: int
    plus: Totals
    minus: Totals | None = None
    made: bool = False

    @property
    def terms(self) -> tuple[tuple[Totals, np.ufunc], ...]:
        """The totals, each with whether to add or to subtract it."""
        return (
            ((self.plus, np.add),) if self.minus is None else ((self.plus, np.add), (self.minus, np.subtract))
        )


def rise_of(delta: Totals, made: bool = True) -> Rise:
    """A difference that was made, or totals that stand for one."""
    return Rise(delta.layout, delta.rows, delta.tokens, delta.unphased_tokens, delta, made=made)


@dataclass(frozen=True, slots=True)
class Span:
    """The part of one producer's past that answers a window.

    Attributes:
        first: the totals to subtract; None: nothing. Its arrays and those of ``last`` may be narrow.
        last: the totals to subtract them from.
        start: when ``first`` was true.
        end: when ``last`` was true.
        truncated: the window was to begin before what is remembered, so ``start`` is later than asked.
        late: the window was to end before what is remembered, so ``end`` is later than asked.
        until: when the window was to end; None: now.
        phase: the only phase that counts; None: both.
    """

    first: Totals | None
    last: Totals
    start: float
    end: float
    truncated: bool
    phase: Phase | None = None
    late: bool = False
    until: float | None = None

    @property
    def delta(self) -> Totals:
        """What was counted of the phase between the two instants.

        It is computed at each call. The differences of hundreds of producers take more memory than all else
        that answers a window: take one, use it and let it go.
        """
        whole = self._whole()
        return whole if self.phase is None else of_phase(whole, self.phase)

    @property
    def rise(self) -> Rise:
        """:attr:`delta` as terms to be added up: no difference of any large array is made."""
        if self.phase is not None or self.first is None or self.is_empty:
            delta = self.delta
            return rise_of(delta, made=delta is not self.last)
        first, last = self.first, self.last
        if first.layout is not last.layout and first.layout != last.layout:
            return rise_of(self._whole())
        return Rise(
            layout=last.layout,
            rows=np.subtract(last.rows, first.rows, dtype=np.int64),
            tokens=last.tokens - first.tokens,
            unphased_tokens=last.unphased_tokens - first.unphased_tokens,
            plus=last,
            minus=first,
        )

    def _whole(self) -> Totals:
        if self.is_empty:
            return self.last if self.first is None else nothing_of(self.last)
        last = widened(self.last)
        return last if self.first is None else last.minus(widened(self.first))

    @property
    def drops(self) -> dict[str, int]:
        """Those of ``delta``, which is not made for it."""
        before = {} if self.first is None else self.first.drops
        reasons = {**self.last.drops, **before}
        return {reason: self.last.drops.get(reason, 0) - before.get(reason, 0) for reason in reasons}

    @property
    def is_empty(self) -> bool:
        """Whether both boundaries are one snapshot: no frame came between, so nothing was counted."""
        nothing_before = self.last if self.first is not None else shared_zeros(self.last.layout)
        return self.start == self.end and nothing_before is (self.first or self.last)

    @property
    def tokens_before(self) -> int:
        """Tokens that were counted before it: of :attr:`last` those that are not in ``delta``."""
        return 0 if self.first is None else self.first.tokens

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts whose layers are in ``delta``."""
        return (self.last.layout,) if self.first is None else (self.last.layout, self.first.layout)


def between(
    birth: float, first: Snapshot, last: Snapshot, start: float | None, end: float | None = None
) -> Span:
    """What was counted from ``first`` to ``last``, for a window that was to go from ``start`` to ``end``."""
    truncated = start is not None and first.at > start and birth < start
    late = end is not None and last.at > end and birth < end
    if last.at < first.at:
        last = first
    since_birth = first.totals is shared_zeros(last.totals.layout)
    earlier = None if since_birth else first.totals
    return Span(earlier, last.totals, first.at, last.at, truncated, late=late, until=end)


@lru_cache(maxsize=16)
def shared_zeros(layout: Layout) -> Totals:
    """Zeros, which producers of equal layouts share."""
    return no_totals(layout)
