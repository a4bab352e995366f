"""Many requests one after the other: which ones, and their routing piece by piece.

An export goes from the newest request to the oldest, by the number that the store gave each. So what arrives
meanwhile changes nothing, and the number of the last whole request is a cursor: older ones follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.store.interface import Store
from moescope.service.store.records import DamagedError, StoreError, TracedRequest, TraceQuery
from moescope.service.store.slots import LONG
from moescope.service.traces.forms import Shaped
from moescope.service.traces.routing import Rows
from moescope.service.traces.weights import Computed

MOST_REQUESTS: Final = 10_000
"""Most requests of one answer: their numbers are held, 8 bytes each."""
PAGE: Final = 256
"""Requests that are listed at once."""
_AHEAD: Final = 32
"""Requests that are read together, all but their ids."""
_AHEAD_TOKENS: Final = 1 << 14
"""Tokens that these have together at most: what is read of them grows with it."""
_UNLIKE: Final = (
    "its layers differ from those of the other requests, and a table has one shape: choose server and model, "
    "or take format=ndjson"
)


class UnreadableError(Exception):
    """A request's routing can't be given; the message says why."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The requests of one answer.

    Attributes:
        numbers: of the requests, falling.
        tokens: computed for all of them.
        models: their models, with the deployments that ran them.
        next_before: where the next answer goes on, see ``TraceQuery.before``; None: there are no more.
    """

    numbers: Int64Array
    tokens: int
    models: dict[str, set[str]]
    next_before: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """The routing of a request, of which no row was read yet.

    Attributes:
        found: the request.
        routing: its rows.
        versions: which versions of the weights computed which positions, in the order of computing.
        told: where the rows come from, as JSON, if they are joined from several traces; else empty.
    """

    found: TracedRequest
    routing: Shaped
    versions: Sequence[Computed]
    told: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some positions of a request.

    Attributes:
        of: the request, and all of its routing, of which ``rows`` are a part.
        first: the position of the first of ``rows``.
        rows: see there.
        last: no more pieces of this request follow.
    """

    of: Reading
    first: int
    rows: Rows
    last: bool

    @property
    def found(self) -> TracedRequest:
        """The request."""
        return self.of.found

    @property
    def routing(self) -> Shaped:
        """All of its routing."""
        return self.of.routing


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A request that is not in the export, or not to its end, and why.

    ``found`` is None where nothing but its number is known any more.
    """

    number: int
    found: TracedRequest | None
    why: str


def choose(store: Store, query: TraceQuery, lora: str | None, most_tokens: int) -> Chosen:
    """The newest requests that match: ``query.limit`` at most, of ``most_tokens`` at most, but one at least.

    Args:
        store: where they are.
        query: what they must match; ``before`` is the cursor.
        lora: only requests of this adapter, empty: without one; None: all.
        most_tokens: see above.
    """
    numbers: list[int] = []
    models: dict[str, set[str]] = {}
    tokens = 0
    for found in _listed(store, query, lora):
        if len(numbers) == query.limit or (numbers and tokens + found.tokens > most_tokens):
            return Chosen(np.array(numbers, np.int64), tokens, models, numbers[-1])
        numbers.append(found.number)
        tokens += found.tokens
        models.setdefault(found.model, set()).add(found.server)
    return Chosen(np.array(numbers, np.int64), tokens, models, None)


def layers_of(store: Store, numbers: Int64Array, most: int = 16) -> tuple[MoeLayer, ...]:
    """The layers of the requests as far as some of them tell, rising: those of one may be incomplete."""
    known: dict[int, MoeLayer] = {}
    for at in np.unique(np.linspace(0, len(numbers) - 1, min(most, len(numbers))).astype(int)).tolist():
        try:
            workers = store.traces(int(numbers[at]), None)
        except DamagedError:
            continue  # others tell; it is told of where its own rows would be
        for layer in (layer for worker in workers for layer in worker.layers):
            known.setdefault(layer.layer, layer)
    return tuple(known[number] for number in sorted(known))


def pieces(
    store: Store,
    query: TraceQuery,
    chosen: Chosen,
    read: Callable[[TracedRequest], Reading | None],
    positions: Callable[[Shaped], int],
    layers: Sequence[MoeLayer] | None,
    expect: Callable[[Sequence[TracedRequest]], None] = lambda _: None,
) -> Iterator[Piece | LeftOut]:
    """The routing of the requests in their order, each in pieces. None of them ends the others.

    Args:
        store: where they are.
        query: what they were chosen by.
        chosen: which ones.
        read: a request's routing; None: another one's routing has it. :class:`UnreadableError` and
            ``StoreError`` leave it out.
        positions: how many of a request to make at once.
        layers: only requests of these layers, or of some of them; None: of any.
        expect: is told which short requests are read next, before they are.
    """
    known = None if layers is None else frozenset(layers)
    for number, found in _told_ahead(_again(store, query, chosen.numbers), expect):
        if found is None:
            yield LeftOut(
                number, None, "it was removed before it was read: its time was over, or the disk full"
            )
            continue
        try:
            reading = read(found)
            if reading is None:
                continue
            if known is not None and not known.issuperset(reading.routing.layers):
                raise UnreadableError(_UNLIKE)
            yield from _of_one(reading, positions(reading.routing))
        except (UnreadableError, StoreError) as error:
            yield LeftOut(number, found, str(error))


def _of_one(reading: Reading, positions: int) -> Iterator[Piece]:
    routing = reading.routing
    first, end = routing.first, routing.first + routing.shape[0]
    for rows in routing.chunks(positions):
        after = first + len(rows.times)
        yield Piece(reading, first, rows, after >= end)
        first = after


def _told_ahead(
    items: Iterable[tuple[int, TracedRequest | None]], expect: Callable[[Sequence[TracedRequest]], None]
) -> Iterator[tuple[int, TracedRequest | None]]:
    """The same items. What comes next is told, some short requests at a time; long ones come untold."""
    together: list[tuple[int, TracedRequest | None]] = []
    tokens = 0
    for number, found in items:
        more = 0 if found is None or found.tokens >= LONG else found.tokens
        if together and (len(together) == _AHEAD or tokens + more > _AHEAD_TOKENS):
            expect([each for _, each in together if each is not None and each.tokens < LONG])
            yield from together
            together, tokens = [], 0
        together.append((number, found))
        tokens += more
    expect([each for _, each in together if each is not None and each.tokens < LONG])
    yield from together


def _listed(store: Store, query: TraceQuery, lora: str | None) -> Iterator[TracedRequest]:
    """All that match, page by page, newest first."""
    page = replace(query, limit=PAGE, taken_over=False)
    while True:
        found = store.traced_requests(page)
        yield from (item for item in found if lora is None or item.lora == lora)
        if len(found) < PAGE:
            return
        page = replace(page, before=found[-1].number)


def _again(
    store: Store, query: TraceQuery, numbers: Int64Array
) -> Iterator[tuple[int, TracedRequest | None]]:
    """The requests of these numbers, which fall; None for one that is gone."""
    wanted = numbers.tolist()
    at = 0
    while at < len(wanted):
        page = store.traced_requests(replace(query, before=wanted[at] + 1, limit=PAGE, taken_over=False))
        there = {item.number: item for item in page}
        reached = page[-1].number if len(page) == PAGE else 0
        while at < len(wanted) and wanted[at] >= reached:
            yield wanted[at], there.get(wanted[at])
            at += 1
