"""Windows one after the other, with few totals of the store in memory at a time.

The totals of hundreds of ranks at one instant are over 100 MiB, half of that in narrow arrays. Memory shares
those that it has; what comes from the store is read for each question. So each way of reading here says first
how much it will hold; see :mod:`moescope.service.live.large`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from moescope.service.counts.narrow import narrowed
from moescope.service.live.large import claim, is_counted
from moescope.service.live.past import Archive, Remembered, improve, improve_all
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
        NoRoomError: too much would be held.
        UnwantedError: nobody waits for it any more.
    """
    _claim(archive, found, 2)
    ends = []
    for state, memory in found:
        instants, at = (memory.instants[0], memory.instants[-1]), (memory.found[0], memory.found[-1])
        ends.append((state, replace(memory, instants=instants, found=at)))
    return _all_improved(archive, ends)


def all_of(archive: Archive | None, found: Looked) -> Iterator[tuple[ProducerState, Remembered]]:
    """Each producer with its totals at all boundaries, one producer after the other.

    Raises:
        StoreError: the archive can't be read.
        NoRoomError: too much would be held, together with :func:`ends_of` the same.
        UnwantedError: nobody waits for it any more.
    """
    _claim(archive, found, 2, of_one=True)
    for state, memory in found:
        yield state, _improved(archive, state, memory)


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
        NoRoomError: too much would be held.
        UnwantedError: nobody waits for it any more.
    """
    # While boundaries are read, those that were read with the one before are held, and one before them.
    at_once = len(found[0][1].instants) if archive is None and found else _at_once(found)
    _claim(archive, found, 2 * at_once + 1 + (0 if ends is None else 2))
    before: list[Snapshot] = []
    for i, row in enumerate(_rows(archive, found, ends, at_once)):
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


def _rows(
    archive: Archive | None, found: Looked, ends: Looked | None, at_once: int
) -> Iterator[Sequence[Snapshot]]:
    """The producers' totals at one boundary after the other, of which some are read at once."""
    if not found:
        return
    count = len(found[0][1].instants)
    first, last = (0, count) if ends is None else (1, count - 1)
    if ends is not None:
        yield [memory.found[0] for _, memory in ends]
    for begin in range(first, last, at_once):
        some = slice(begin, min(begin + at_once, last))
        pieces = (
            found
            if some == slice(0, count)
            else [
                (state, replace(memory, instants=memory.instants[some], found=memory.found[some]))
                for state, memory in found
            ]
        )
        yield from zip(*(memory.found for _, memory in _all_improved(archive, pieces)), strict=True)
    if ends is not None:
        yield [memory.found[1] for _, memory in ends]


def _at_once(found: Looked) -> int:
    """How many boundaries are read of an archive at once; see :data:`HELD_BYTES`."""
    nbytes = sum(state.totals.nbytes for state, _ in found)
    return max(1, min(MOST_AT_ONCE, HELD_BYTES // max(1, nbytes)))


def _claim(archive: Archive | None, found: Looked, boundaries: int, *, of_one: bool = False) -> None:
    """Wait until the totals of some boundaries may be held, as far as they come from the archive.

    A producer's totals were never larger than they are now, so the bound is: producers x bytes of their
    narrow totals x boundaries. Each producer has layers x experts counts of one to eight bytes, as many for
    decode, and twice layers x EP ranks.

    Args:
        archive: what was kept; None: nothing.
        found: what memory has.
        boundaries: how many are held of all producers.
        of_one: all boundaries of one producer are held besides, and of the one before while it is read.
    """
    if archive is None:
        return
    wanted = [(state.totals, sum(map(memory.wants, memory.instants))) for state, memory in found]

    def nbytes(sizes: Iterable[tuple[int, int]]) -> int:
        held = [(size, count) for size, count in sizes if count]
        most = max((size * count for size, count in held), default=0)
        return (2 * most if of_one else 0) + sum(size * min(count, boundaries) for size, count in held)

    if is_counted(nbytes((totals.nbytes, count) for totals, count in wanted)):
        claim(nbytes((narrowed(totals).nbytes, count) for totals, count in wanted if count))


def _improved(archive: Archive | None, state: ProducerState, memory: Remembered) -> Remembered:
    """A producer's totals at some boundaries, which the archive is asked for at once, if they are wanted."""
    check_wanted()
    return memory if archive is None else improve(archive, state.latest.producer.key, memory)


def _all_improved(archive: Archive | None, found: Looked) -> list[tuple[ProducerState, Remembered]]:
    """Producers with their totals at some boundaries, for all of which the archive is asked together."""
    check_wanted()
    if archive is None:
        return list(found)
    better = improve_all(archive, [(state.latest.producer.key, memory) for state, memory in found])
    return [(state, memory) for (state, _), memory in zip(found, better, strict=True)]


def _later(before: Snapshot | None, now: Snapshot) -> Snapshot:
    """The later of two; from one boundary to the next totals never go back, nor fall.

    A snapshot that is read again at the next boundary is the same object there, so that whoever looks sees
    that nothing came between (:attr:`Span.is_empty`). Not with straggler costs: the newest snapshot gets more
    of them when other workers' frames come.
    """
    if before is None:
        return now
    if (
        now.totals.tokens < before.totals.tokens
    ):  # what memory never knew, of a frame that was not acknowledged
        return before
    if now.at > before.at:
        return now
    may_differ = now.totals.stragglers is not None or before.totals.stragglers is not None
    return now if now.at == before.at and may_differ else before
