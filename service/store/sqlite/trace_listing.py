"""Searching traces in the embedded store.

Answers come as one row of JSON where they would be many rows: for each row SQLite is called again, which lets
go of the interpreter's lock and waits for it, milliseconds each time while the service is busy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from moescope.capture.wire import MoeLayer
from moescope.service.store.damage import DamageLog
from moescope.service.store.records import TracedRequest, TraceQuery
from moescope.service.store.sqlite.hits import lanes_hit, old_bit
from moescope.service.store.sqlite.segments import read_quick

_TAKEN_OVER: Final = 20  # its place in a row
_FIRST_LOOK: Final = 128
_LONGEST_LOOK: Final = 4096
_FAR: Final = 1 << 62

_layers_decoder = msgspec.msgpack.Decoder(list[MoeLayer])

# Columns as :meth:`TracedRequest.of_row` takes them; names are an array within the array, bytes hexadecimal.
_REQUESTS: Final = (
    "SELECT json_group_array(json_array(id, server, model, dp_rank, request_id, "
    "json((SELECT json_group_array(name) FROM request_name WHERE request = found.id)), outcome, "
    "prompt_tokens, cached_tokens, preemptions, started_ms, ended_ms, stored_ms, tokens, role, pool, lora, "
    "finish_reason, accepted_drafts, rejected_drafts, {}, missing_stages, missing_tokens)) "
    "FROM (SELECT * FROM request WHERE {} ORDER BY id DESC LIMIT ?) AS found"
)
_IDS: Final = "SELECT json_group_array(id) FROM (SELECT id FROM request WHERE {} ORDER BY id DESC LIMIT ?)"
# By block: which request has which lane of it.
_LANES: Final = (
    "SELECT id, layers, hits, (SELECT json_group_array(json_array(trace.request, piece.lane)) FROM piece "
    "JOIN trace ON trace.id = piece.trace WHERE piece.block = block.id AND trace.complete) "
    "FROM block WHERE id IN (SELECT DISTINCT piece.block FROM trace JOIN piece ON piece.trace = trace.id "
    "WHERE trace.request IN (SELECT value FROM json_each(?)))"
)
_SEGMENTS: Final = (
    "SELECT trace.request, trace.id_bytes, shape.layers, segment.tokens, segment.experts FROM trace "
    "JOIN segment ON segment.trace = trace.id JOIN shape ON shape.id = trace.shape "
    "WHERE trace.complete AND trace.request IN (SELECT value FROM json_each(?))"
)
_OF_WEIGHTS: Final = (
    "EXISTS (SELECT 1 FROM trace JOIN trace_part ON trace_part.trace = trace.id "
    "WHERE trace.request = request.id AND trace.complete AND weights_version = ?)"
)
_OLD: Final = (
    "SELECT request, layers, hits FROM trace "
    "WHERE shape IS NULL AND complete AND request IN (SELECT value FROM json_each(?))"
)


def traced_requests(
    connection: sqlite3.Connection, query: TraceQuery, damage: DamageLog
) -> list[TracedRequest]:
    """See :class:`moescope.service.store.interface.Store`."""
    clauses, values = conditions(query)
    if query.layer is None or query.expert is None:
        return _requests(connection, " AND ".join(clauses), [*values, query.limit], query, damage)
    found: list[int] = []
    before, look = _FAR, _FIRST_LOOK
    statement = _IDS.format(" AND ".join([*clauses, "id < ?"]))
    while len(found) < query.limit:
        looked_at = as_json(connection, statement, [*values, before, look])
        if not looked_at:
            break
        hit = _hit(connection, looked_at, query.layer, query.expert, damage)
        found += [request for request in sorted(looked_at, reverse=True) if request in hit]
        before, look = min(looked_at), min(4 * look, _LONGEST_LOOK)
    ids = msgspec.json.encode(found[: query.limit]).decode()
    where = "id IN (SELECT value FROM json_each(?))"
    return _requests(connection, where, [ids, query.limit], query, damage)


def _hit(
    connection: sqlite3.Connection, requests: Sequence[int], layer: int, expert: int, damage: DamageLog
) -> set[int]:
    """Those of the requests of which a token took the expert; what can't be read is left out."""
    ids = msgspec.json.encode(requests).decode()
    found: set[int] = set()
    known: dict[bytes, list[MoeLayer]] = {}

    def layers_of(blob: bytes) -> list[MoeLayer]:
        if blob not in known:
            known[blob] = _layers_decoder.decode(blob)
        return known[blob]

    for block, layers, hits, lanes in connection.execute(_LANES, (ids,)).fetchall():
        try:
            taken = lanes_hit(hits, layers_of(layers), layer, expert)
        except ValueError as error:
            damage.search(f"block {block}", error)
            continue
        found |= {
            request for request, lane in msgspec.json.decode(lanes) if lane < len(taken) and taken[lane]
        }
    for request, id_bytes, layers, tokens, experts in connection.execute(_SEGMENTS, (ids,)).fetchall():
        try:
            read = read_quick(experts, layers_of(layers), id_bytes, tokens, [layer])
        except ValueError as error:
            damage.search(f"a segment of request {request}", error)
            continue
        if read and (read[0] == expert).any():
            found.add(request)
    for request, layers, hits in connection.execute(_OLD, (ids,)).fetchall():
        try:
            taken_at_all = old_bit(hits, layers_of(layers), layer, expert)
        except ValueError as error:
            damage.search(f"a trace of request {request}", error)
            continue
        if taken_at_all:
            found.add(request)
    return found


def _requests(
    connection: sqlite3.Connection, where: str, values: Sequence[Any], query: TraceQuery, damage: DamageLog
) -> list[TracedRequest]:
    """The requests of these rows, newest first; what can't be read is left out."""
    references = "hex(taken_over)" if query.taken_over else "''"
    found: list[TracedRequest] = []
    for row in sorted(as_json(connection, _REQUESTS.format(references, where), values), reverse=True):
        try:
            row[_TAKEN_OVER] = bytes.fromhex(row[_TAKEN_OVER])
            found.append(TracedRequest.of_row(row))
        except ValueError as error:
            damage.request(row[4], error)
    return found


def as_json(connection: sqlite3.Connection, statement: str, values: Sequence[Any]) -> list[Any]:
    """What a statement finds, whose one row is one text of JSON."""
    [(text,)] = connection.execute(statement, values).fetchall()
    return msgspec.json.decode(text, type=list[Any])


def conditions(query: TraceQuery) -> tuple[list[str], list[Any]]:
    """What must be true of rows of ``request``, and the values in it."""
    clauses, values = ["tokens >= ?"], [max(1, query.min_tokens)]  # type: tuple[list[str], list[Any]]
    for clause, value in (
        ("server = ?", query.server),
        ("model = ?", query.model),
        ("dp_rank = ?", query.dp_rank),
        ("lora = ?", query.lora),
        ("pool = ?", query.pool),
        ("id IN (SELECT request FROM request_name WHERE name = ?)", query.name),
        ("stored_ms >= ?", None if query.start is None else query.start * 1000),
        ("stored_ms <= ?", None if query.end is None else query.end * 1000),
        ("id < ?", query.before),
        ("id IN (SELECT value FROM json_each(?))", _array(query.numbers)),
        (_OF_WEIGHTS, query.weights_version),
    ):
        if value is not None:
            clauses.append(clause)
            values.append(value)
    return clauses, values


def _array(numbers: Sequence[int] | None) -> str | None:
    return None if numbers is None else msgspec.json.encode(numbers).decode()
