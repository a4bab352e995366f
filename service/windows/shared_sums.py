"""Sums over the totals of many ranks, for windows that have an end in common: each is made once.

A scrape wants of each deployment what was counted in the last window, and what was counted since the begin of
its counters. Both are what has been counted by now, less something.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.counts.totals import Totals


@dataclass(frozen=True, eq=False, slots=True)
class Sum:
    """The sum over some totals of one layout.

    Attributes:
        counts: slots per logical expert, int64 [sum of experts]; None: nobody asked for them.
        ep_slots: whole slots by EP rank, int64 [L, R], R as of the totals that have most.
        ep_parts: parts of a slot, int64 [L, R], which are not carried; see `EpSlots.parts`.
        unplaced, estimated: as in :class:`Totals`, int64 [L].
    """

    counts: Int64Array | None
    ep_slots: Int64Array
    ep_parts: Int64Array
    unplaced: Int64Array
    estimated: Int64Array


class SharedSums:
    """The last sum that was asked for. What it was made from is known by weak references."""

    def __init__(self) -> None:
        self._of: tuple[weakref.ReferenceType[Totals], ...] = ()
        self._last: Sum | None = None

    def of(self, totals: Sequence[Totals], *, experts: bool) -> Sum:
        """The sum over totals of one layout; one at least. It is shared: don't change its arrays.

        Args:
            totals: what to add up.
            experts: whether counts by expert are wanted.
        """
        wanted, last = tuple(map(weakref.ref, totals)), self._last
        if last is not None and (last.counts is not None or not experts) and wanted == self._of:
            return last
        made = _sum(totals, experts=experts)
        self._of, self._last = wanted, made
        return made


def _sum(totals: Sequence[Totals], *, experts: bool) -> Sum:
    layers, ranks = len(totals[0].rows), max(item.ep_slots.ranks for item in totals)
    counts = np.zeros_like(totals[0].counts, dtype=np.int64) if experts else None
    whole, parts = np.zeros((layers, ranks), dtype=np.int64), np.zeros((layers, ranks), dtype=np.int64)
    unplaced, estimated = np.zeros(layers, dtype=np.int64), np.zeros(layers, dtype=np.int64)
    for item in totals:
        if counts is not None:
            counts += item.counts
        whole[:, : item.ep_slots.ranks] += item.ep_slots.whole
        if item.ep_slots.parts is not None:
            parts[:, : item.ep_slots.ranks] += item.ep_slots.parts
        unplaced += item.unplaced
        estimated += item.estimated
    return Sum(counts, whole, parts, unplaced, estimated)
