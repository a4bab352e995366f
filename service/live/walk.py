"""Windows one after the other, with few totals of the store in memory at a time.

The totals of hundreds of ranks at one instant are over 100 MiB. Memory shares those that it has; what comes
from the store is read for each question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from moescope.service.live.past import Archive, Remembered, improve
from moescope.service.live.producers import ProducerSpan, ProducerState
from moescope.service.live.spans import Snapshot, between
from moescope.service.wanted import check_wanted

HELD_BYTES: Final = 64 << 20
"""Stored totals that one question reads ahead; beyond that it holds those of two or three boundaries."""
MOST_AT_ONCE: Final = 64
Looked = Sequence[tuple[ProducerState, Remembered]]
"""Each producer with what memory has of it at the boundaries of windows."""
OneByOne = Callable[[], Iterator[tuple[ProducerState, Remembered]]]
"""Yields each producer with its totals at all boundaries; let each go before the next one."""


def ends_of(archive: Archive | None, found: Looked) -> list[tuple[ProducerState, Remembered]]:
    """Each producer with its totals at the first and at the last boundary only.

    Raises:
        StoreError: the archive can't be read.
        UnwantedError: nobody waits for it any more.
    """
    ends = []
    for state, memory in found:
        check_wanted()
        instants, at = (memory.instants[0], memory.instants[-1]), (memory.found[0], memory.found[-1])
        only = replace(memory, instants=instants, found=at)
        ends.append((state, only if archive is None else improve(archive, state.latest.producer.key, only)))
    return ends


def all_of(archive: Archive | None, found: Looked) -> Iterator[tuple[ProducerState, Remembered]]:
    """Each producer with its totals at all boundaries, one producer after the other.

    Raises:
        StoreError: the archive can't be read.
        UnwantedError: nobody waits for it any more.
    """
    for state, memory in found:
        check_wanted()
        key = state.latest.producer.key
        yield state, memory if archive is None else improve(archive, key, memory)


def walk(archive: Archive | None, found: Looked, ends: Looked | None = None) -> Iterator[list[ProducerSpan]]:
    """What each producer counted between neighbouring boundaries, interval by interval.

    It is what :meth:`Remembered.spans` says once the store was asked for all boundaries; but the totals
    of few boundaries are held, whatever their number. Let each interval go before the next one.

    Args:
        archive: what was kept; None: nothing.
        found: what memory has.
        ends: see :func:`ends_of`; given: what the first interval begins with, and the last one ends with.

    Raises:
        StoreError: the archive can't be read.
        UnwantedError: nobody waits for it any more.
    """
    before: list[Snapshot] = []
    for i, row in enumerate(_rows(archive, found, ends)):
        now = [_later(before[n] if before else None, item) for n, item in enumerate(row)]
        if before:
            yield [
                ProducerSpan(
                    state,
                    between(memory.birth, first, last, memory.instants[i - 1], memory.instants[i]),
                )
                for (state, memory), first, last in zip(found, before, now, strict=True)
            ]
        before = now


def _rows(archive: Archive | None, found: Looked, ends: Looked | None) -> Iterator[Sequence[Snapshot]]:
    """The producers' totals at one boundary after the other, some read ahead; see :data:`HELD_BYTES`."""
    if not found:
        return
    count = len(found[0][1].instants)
    first, last = (0, count) if ends is None else (1, count - 1)
    if ends is not None:
        yield [memory.found[0] for _, memory in ends]
    at_once = max(1, min(MOST_AT_ONCE, HELD_BYTES // sum(state.totals.nbytes for state, _ in found)))
    for begin in range(first, last, at_once):
        some = slice(begin, min(begin + at_once, last))
        parts = [_improved(archive, state, memory, some) for state, memory in found]
        yield from zip(*parts, strict=True)
    if ends is not None:
        yield [memory.found[1] for _, memory in ends]


def _improved(
    archive: Archive | None, state: ProducerState, memory: Remembered, some: slice
) -> tuple[Snapshot, ...]:
    """A producer's totals at some boundaries, which the archive is asked for at once."""
    check_wanted()
    part = replace(memory, instants=memory.instants[some], found=memory.found[some])
    return (part if archive is None else improve(archive, state.latest.producer.key, part)).found


def _later(before: Snapshot | None, now: Snapshot) -> Snapshot:
    return now if before is None or now.at >= before.at else before
