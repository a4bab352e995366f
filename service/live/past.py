"""Boundaries of windows, from memory or from the store: whichever has totals nearer to the instant.

Memory has the recent past, and finer than the store. The store has what was before the service started, and
what memory has thinned out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, Protocol

from moescope.service.counts.narrow import narrowed
from moescope.service.live.spans import Snapshot, Span, between
from moescope.service.store.records import Key, StoredTotals
from moescope.service.wanted import check_wanted

READ_BYTES: Final = 16 << 20
"""Totals of one producer that are read at once; they are held in narrow arrays."""


class Archive(Protocol):
    """What windows read of a store; see :class:`moescope.service.store.interface.Store`."""

    def totals_at(self, key: Key, instants: Sequence[float]) -> list[StoredTotals | None]:
        """For each instant the newest totals at or before it."""

    def totals_of(self, keys: Sequence[Key], instants: Sequence[float]) -> list[list[StoredTotals | None]]:
        """The same for several producers."""

    def oldest_of(self, keys: Sequence[Key]) -> list[StoredTotals | None]:
        """The oldest totals that are kept of each producer."""

    def begins(self) -> Mapping[Key, float]:
        """When the oldest totals of each producer were true, seconds of Unix time."""

    def oldest(self, key: Key) -> StoredTotals | None:
        """The oldest totals that are kept."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What memory has of one producer, for the boundaries of windows.

    Attributes:
        birth: when its counting began.
        complete_since: from this instant on memory has all that the store can have.
        instants: B boundaries, rising; None is an open end.
        found: for each of the B instants the totals nearest at or before it.
        told_until: before this instant the archive's word counts, wherever it has one.
    """

    birth: float
    complete_since: float
    instants: tuple[float | None, ...]
    found: tuple[Snapshot, ...]
    told_until: float = -math.inf

    def spans(self) -> list[Span]:
        """The B - 1 spans between the boundaries."""
        rising = list(accumulate(self.found, _later))
        return [
            between(self.birth, rising[i], rising[i + 1], self.instants[i], self.instants[i + 1])
            for i in range(len(rising) - 1)
        ]

    def whole(self) -> Span:
        """The span from the first boundary to the last one: the sum of all spans."""
        rising = list(accumulate(self.found, _later))
        return between(self.birth, rising[0], rising[-1], self.instants[0], self.instants[-1])

    def wants(self, instant: float | None) -> bool:
        """Whether an archive may have totals nearer to this boundary."""
        return instant is not None and self.birth < instant < self.complete_since


def _later(before: Snapshot, after: Snapshot) -> Snapshot:
    """The later of two; from one boundary to the next totals never go back, nor fall.

    Memory may know less than the store had earlier, of a frame that was never acknowledged.
    """
    falls = after.at < before.at or after.totals.tokens < before.totals.tokens
    return before if falls else after


def improve(archive: Archive, key: Key, memory: Remembered) -> Remembered:
    """What memory has, with the archive's totals at each boundary where those are nearer to its instant.

    Totals that are nearest to several instants are held once, in narrow arrays (see :func:`narrowed`).

    Raises:
        StoreError: the archive can't be read.
        UnwantedError: nobody waits for it any more.
    """
    [found] = improve_all(archive, [(key, memory)])
    return found


def improve_all(archive: Archive, members: Sequence[tuple[Key, Remembered]]) -> list[Remembered]:
    """:func:`improve` for several producers; those that want the same instants are asked for together.

    Raises:
        StoreError: the archive can't be read.
        UnwantedError: nobody waits for it any more.
    """
    found = [memory for _, memory in members]
    alike: dict[tuple[float, ...], list[int]] = {}
    for place, memory in enumerate(found):
        wanted = tuple(t for t in memory.instants if t is not None and memory.wants(t))
        if wanted:
            alike.setdefault(wanted, []).append(place)
    for wanted, places in alike.items():
        # The archive's totals are wide; a part of them is held before they are made narrow.
        nbytes = max(1, *(found[place].found[-1].totals.nbytes for place in places))
        at_once = max(1, READ_BYTES // (nbytes * len(wanted)))
        for begin in range(0, len(places), at_once):
            check_wanted()
            some = places[begin : begin + at_once]
            better = _improved(archive, [members[place] for place in some], wanted)
            for place, memory in zip(some, better, strict=True):
                found[place] = memory
    return found


def _improved(
    archive: Archive, members: Sequence[tuple[Key, Remembered]], wanted: Sequence[float]
) -> list[Remembered]:
    keys = [key for key, _ in members]
    at_once = max(1, READ_BYTES // (len(keys) * max(1, members[0][1].found[-1].totals.nbytes)))
    stored: list[dict[float, Snapshot | None]] = [{} for _ in keys]
    for begin in range(0, len(wanted), at_once):
        some = wanted[begin : begin + at_once]
        for known, totals in zip(stored, archive.totals_of(keys, some), strict=True):
            known |= zip(some, _narrow(totals), strict=True)
    lacking = [place for place, known in enumerate(stored) if None in known.values()]
    oldest = archive.oldest_of([keys[place] for place in lacking]) if lacking else []
    first = dict(zip(lacking, _narrow(oldest), strict=True))
    return [
        _with(memory, known, first.get(place))
        for place, ((_, memory), known) in enumerate(zip(members, stored, strict=True))
    ]


def _narrow(totals: Iterable[StoredTotals | None]) -> list[Snapshot | None]:
    return [None if item is None else Snapshot(item.at, narrowed(item.totals)) for item in totals]


def _with(memory: Remembered, stored: Mapping[float, Snapshot | None], oldest: Snapshot | None) -> Remembered:
    """Of each boundary the totals that are nearest to its instant."""
    result = list(memory.found)
    shape = memory.found[-1].totals.layout
    if oldest is not None and oldest.totals.layout.conflict(shape) is not None:
        oldest = None  # of a former model, as below
    for i, instant in enumerate(memory.instants):
        if instant is None or instant not in stored:
            continue
        candidate = stored[instant]
        if candidate is not None and candidate.totals.layout.conflict(shape) is not None:
            continue  # of a former model, which another service has kept since
        if candidate is None:
            if oldest is not None and oldest.at < result[i].at:
                result[i] = oldest
        elif instant < memory.told_until or not candidate.at <= result[i].at <= instant:
            same = i > 0 and result[i - 1].at == candidate.at
            result[i] = result[i - 1] if same else candidate
    return replace(memory, found=tuple(result))
