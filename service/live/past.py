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

from moescope.service.live.narrow import narrowed
from moescope.service.live.spans import Snapshot, Span, between
from moescope.service.store.records import Key, StoredTotals

READ_BYTES: Final = 16 << 20
"""Totals of one producer that are read at once; they are held in narrow arrays."""


class Archive(Protocol):
    """What windows read of a store; see :class:`moescope.service.store.interface.Store`."""

    def totals_at(self, key: Key, instants: Sequence[float]) -> list[StoredTotals | None]:
        """For each instant the newest totals at or before it."""

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
    """The later of two; from one boundary to the next totals never go back."""
    return after if after.at >= before.at else before


def improve(archive: Archive, key: Key, memory: Remembered) -> Remembered:
    """What memory has, with the archive's totals at each boundary where those are nearer to its instant.

    Totals that are nearest to several instants are held once, in narrow arrays (see :func:`narrowed`).

    Raises:
        StoreError: the archive can't be read.
    """
    wanted = [(i, t) for i, t in enumerate(memory.instants) if t is not None and memory.wants(t)]
    if not wanted:
        return memory
    result = list(memory.found)
    at_once = max(1, READ_BYTES // max(1, memory.found[-1].totals.nbytes))
    stored = _read(archive, key, [instant for _, instant in wanted], at_once)
    oldest: StoredTotals | None = None
    shape = memory.found[-1].totals.layout
    for (i, instant), candidate in zip(wanted, stored, strict=True):
        if candidate is not None and candidate.totals.layout.conflict(shape) is not None:
            continue  # of a former model, which another service has kept since
        if candidate is None:
            oldest = oldest or archive.oldest(key)
            if oldest is not None and oldest.totals.layout.conflict(shape) is not None:
                continue
            if oldest is not None and oldest.at < result[i].at:
                result[i] = Snapshot(oldest.at, narrowed(oldest.totals))
        elif instant < memory.told_until or not candidate.at <= result[i].at <= instant:
            same = i > 0 and result[i - 1].at == candidate.at
            result[i] = result[i - 1] if same else Snapshot(candidate.at, narrowed(candidate.totals))
    return replace(memory, found=tuple(result))


def _read(
    archive: Archive, key: Key, instants: Sequence[float], at_once: int
) -> Iterable[StoredTotals | None]:
    """The archive's totals at each instant, a few of them read at a time."""
    for begin in range(0, len(instants), at_once):
        yield from archive.totals_at(key, instants[begin : begin + at_once])
