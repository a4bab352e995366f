"""Slots per expert of many requests: each block is unpacked once for all of them that are in it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Generator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from moescope.capture.wire import MoeLayer
from moescope.service.store.damage import DamageLog
from moescope.service.store.records import TraceQuery
from moescope.service.store.slots import ListedRequest, RequestSlots, SlotSum, count_slots
from moescope.service.store.sqlite.segments import read_packed, read_quick
from moescope.service.store.sqlite.trace_listing import as_json, conditions
from moescope.service.store.worker_trace import Told, Worker, newest_life

BATCH: Final = 64
"""Requests that are read at once: they share a few blocks if they were stored one after the other."""
_OLD_TOKENS: Final = 1000  # of a segment, in stores up to schema 3
_DAMAGED: Final = "some of its tokens are not where they should be"

_layers_decoder = msgspec.msgpack.Decoder(list[MoeLayer])

_LISTED: Final = (
    "SELECT json_group_array(json_array(id, server, model, tokens, lora, "
    "(SELECT count(*) FROM trace WHERE request = found.id AND complete))) "
    "FROM (SELECT * FROM request WHERE {} ORDER BY id DESC LIMIT ?) AS found"
)
_TRACES: Final = (
    "SELECT request, trace.id, tokens, trace.id_bytes, coalesce(shape.layers, trace.layers), pp_rank, "
    "tp_rank, epoch, number, started_step, started_ms, ended_ms FROM trace "
    "LEFT JOIN shape ON shape.id = trace.shape WHERE complete "
    "AND request IN (SELECT value FROM json_each(?)) ORDER BY request, pp_rank, tp_rank, trace.id"
)
_PIECES: Final = (
    "SELECT block, json_group_array(json_array(trace, first, tokens)) FROM piece "
    "WHERE trace IN (SELECT value FROM json_each(?)) GROUP BY block"
)
_BLOCK: Final = "SELECT id_bytes, layers, tokens, experts FROM block WHERE id = ?"
_SEGMENTS: Final = (
    "SELECT trace, coalesce(segment.tokens, min(?2, trace_part.tokens - ?2 * number)), "
    "segment.tokens NOT NULL, experts FROM segment JOIN trace_part USING (trace, part) "
    "WHERE trace IN (SELECT value FROM json_each(?1))"
)


def listed(connection: sqlite3.Connection, query: TraceQuery) -> list[ListedRequest]:
    """See :class:`moescope.service.store.interface.Store`."""
    clauses, values = conditions(query)
    rows = as_json(connection, _LISTED.format(" AND ".join(clauses)), [*values, query.limit])
    return [ListedRequest(*row) for row in sorted(rows, reverse=True)]


def slots(connection: sqlite3.Connection, numbers: Sequence[int], damage: DamageLog) -> list[RequestSlots]:
    """Those of some requests, :data:`BATCH` at most, that are whole; see the interface of stores."""
    traces = _traces(connection, numbers)
    sums = _sums(traces, damage)
    of_trace = {
        trace: _OfTrace(sums[request], id_bytes, tuple(_layers_decoder.decode(layers)))
        for request, trace, _, id_bytes, layers in traces
        if request in sums
    }
    wanted = _ids(list(of_trace))
    for block, pieces in connection.execute(_PIECES, (wanted,)).fetchall():
        places = [(of_trace[trace], first, tokens) for trace, first, tokens in msgspec.json.decode(pieces)]
        row = connection.execute(_BLOCK, (block,)).fetchone()
        with _told(f"block {block}", damage):
            _add_block(row, places)
    for trace, tokens, quick, experts in connection.execute(_SEGMENTS, (wanted, _OLD_TOKENS)).fetchall():
        with _told(f"a segment of trace {trace}", damage):
            _add_segment(of_trace[trace], experts, tokens, quick)
    expected: Counter[int] = Counter()
    for request, _, tokens, _, _ in traces:
        expected[request] += tokens
    return [found.of(request) for request, found in sorted(sums.items()) if found.tokens == expected[request]]


def _traces(connection: sqlite3.Connection, numbers: Sequence[int]) -> list[Any]:
    """Request, trace, tokens, bytes of an id and layers of the traces that count."""
    rows = connection.execute(_TRACES, (_ids(numbers),)).fetchall()
    found: list[Any] = []
    for _, grouped in groupby(rows, itemgetter(0)):
        of_request = list(grouped)
        told = [Told(Worker(*row[5:8]), *row[8:]) for row in of_request]
        found += [of_request[at][:5] for at in newest_life(told)]
    return found


class _OfTrace(NamedTuple):
    """Where what is read of a trace is added."""

    slots: SlotSum
    id_bytes: int
    layers: tuple[MoeLayer, ...]


def _add_block(row: Any, places: Sequence[tuple[_OfTrace, int, int]]) -> None:
    """Add pieces of a block: whose, first token, tokens."""
    id_bytes, layers_blob, of, blob = row
    layers = _layers_decoder.decode(layers_blob)
    ids = read_packed(blob, layers, id_bytes, of, None)
    if any(first + tokens > of for _, first, tokens in places):
        raise ValueError(_DAMAGED)
    among = [np.concatenate([one[first : first + tokens] for _, first, tokens in places]) for one in ids]
    counted = count_slots(among, layers, [tokens for _, _, tokens in places])
    for (place, _, tokens), counts in zip(places, counted, strict=True):
        place.slots.add(layers, counts, tokens)


def _add_segment(place: _OfTrace, blob: bytes, tokens: int, quick: bool) -> None:
    """Add a segment, which has tokens of one trace only."""
    ids = (read_quick if quick else read_packed)(blob, place.layers, place.id_bytes, tokens, None)
    [counts] = count_slots(ids, place.layers, [tokens])
    place.slots.add(place.layers, counts, tokens)


def _sums(traces: Sequence[Any], damage: DamageLog) -> dict[int, SlotSum]:
    """An empty sum for each request whose layers can be counted."""
    layers: dict[int, list[list[MoeLayer]]] = {}
    for request, _, _, _, blob in traces:
        layers.setdefault(request, []).append(_layers_decoder.decode(blob))
    found: dict[int, SlotSum] = {}
    for request, of_workers in layers.items():
        with _told(f"request {request}", damage):
            found[request] = SlotSum(of_workers)
    return found


@contextlib.contextmanager
def _told(what: str, damage: DamageLog) -> Generator[None]:
    """What the block can't read is left out, and told."""
    try:
        yield
    except ValueError as error:
        damage.compared(what, error)


def _ids(numbers: Sequence[int]) -> str:
    return msgspec.json.encode(list(numbers)).decode()
