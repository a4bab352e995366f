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
    """The last sum that was asked for of each kind. What they were made from is known by weak references."""

    def __init__(self) -> None:
        self._known: dict[bool, tuple[tuple[weakref.ReferenceType[Totals], ...], Sum]] = {}

    def of(self, totals: Sequence[Totals], *, experts: bool, begins: bool = False) -> Sum:
        """The sum over totals of one layout; one at least. It is shared: don't change its arrays.

        Args:
            totals: what to add up.
            experts: whether counts by expert are wanted.
            begins: which kind: these are what windows begin with; else what they end with.
        """
        wanted = tuple(map(weakref.ref, totals))
        before, last = self._known.get(begins, ((), None))
        if last is not None and (last.counts is not None or not experts) and wanted == before:
            return last
        made = _sum(totals, experts=experts)
        self._known[begins] = wanted, made
        return made

    def drop_ends(self) -> None:
        """Let go what windows ended with: the next ones end later."""
        self._known.pop(False, None)


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
