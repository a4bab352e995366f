"""Traces in the embedded store: SQL only; transactions and errors are :mod:`.sqlite`'s."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Any, Final

import msgspec
import numpy as np

from moescope.capture.trace_wire import Run, TracePart
from moescope.capture.wire import MoeLayer
from moescope.service.store.records import ArrivedPart, TracedRequest, TraceQuery, TraceShape, WorkerTrace
from moescope.service.store.segments import (
    SEGMENT_TOKENS,
    SegmentWriter,
    hit_bit,
    hits_of,
    merge_hits,
    read_segment,
)

_layers_decoder = msgspec.msgpack.Decoder(list[MoeLayer])
_runs_decoder = msgspec.msgpack.Decoder(list[Run])
_encoder = msgspec.msgpack.Encoder()

_COLUMNS: Final = (
    "id, server, model, dp_rank, request_id, outcome, prompt_tokens, cached_tokens, preemptions, "
    "started_ms, ended_ms, stored_ms, tokens"
)


def prepare(connection: sqlite3.Connection) -> None:
    """Make the function ``moescope_hit(layers, hits, layer, expert)`` known to a reading connection."""
    connection.create_function("moescope_hit", 4, _Hits().taken, deterministic=True)


class _Hits:
    """Looks bits of ``trace.hits`` up; most traces have the same layers, which are decoded once."""

    def __init__(self) -> None:
        self._known: dict[bytes, list[MoeLayer]] = {}

    def taken(self, layers: bytes, hits: bytes, layer: int, expert: int) -> bool:
        if layers not in self._known:
            self._known = {layers: _layers_decoder.decode(layers)}
        bit = hit_bit(self._known[layers], layer, expert)
        return bit is not None and bool(hits[bit >> 3] >> (bit & 7) & 1)


def save_part(connection: sqlite3.Connection, arrived: ArrivedPart, writer: SegmentWriter) -> None:
    """Keep a part once; a trace whose parts are all there becomes visible."""
    part = arrived.part
    request = _upsert_request(connection, part, round(arrived.at * 1000))
    experts = [part.ids_of(i) for i in range(len(part.layers))]
    trace, hits = _upsert_trace(connection, request, part, hits_of(experts, part.layers))
    if connection.execute(
        "SELECT 1 FROM trace_part WHERE trace = ? AND part = ?", (trace, part.part)
    ).fetchone():
        return
    connection.execute(
        "INSERT INTO trace_part VALUES (?, ?, ?, ?)",
        (trace, part.part, part.tokens, _encoder.encode(part.runs)),
    )
    connection.executemany(
        "INSERT INTO segment (trace, part, number, experts) VALUES (?, ?, ?, ?)",
        [
            (trace, part.part, number, writer.write([ids[at : at + SEGMENT_TOKENS] for ids in experts]))
            for number, at in enumerate(range(0, part.tokens, SEGMENT_TOKENS))
        ],
    )
    connection.execute(
        "UPDATE trace SET tokens = tokens + ?, hits = ? WHERE id = ?", (part.tokens, hits, trace)
    )
    [stored] = connection.execute("SELECT count(*) FROM trace_part WHERE trace = ?", (trace,)).fetchone()
    if stored == part.parts:
        connection.execute("UPDATE trace SET complete = 1 WHERE id = ?", (trace,))
        # Tensor-parallel workers share a request's tokens out; pipeline-parallel ones have all of them each.
        connection.execute(
            "UPDATE request SET tokens = (SELECT max(shared) FROM (SELECT sum(tokens) AS shared FROM trace "
            "WHERE request = ?1 AND complete GROUP BY pp_rank)) WHERE id = ?1",
            (request,),
        )


def shape_of(connection: sqlite3.Connection, part: TracePart) -> TraceShape | None:
    """The shape of a part's trace by what is kept of it; None if nothing is."""
    who = part.producer
    row = connection.execute(
        "SELECT parts, id_bytes, layers FROM trace JOIN request ON request = request.id "
        "WHERE request_id = ? AND server = ? AND model = ? AND dp_rank = ? "
        "AND pp_rank = ? AND tp_rank = ? AND epoch = ? AND number = ?",
        (
            *(part.request_id, who.server, who.model, who.dp_rank),
            *(who.pp_rank, who.tp_rank, part.epoch, part.trace),
        ),
    ).fetchone()
    if row is None:
        return None
    parts, id_bytes, layers = row
    return TraceShape(parts, id_bytes, tuple(_layers_decoder.decode(layers)))


def traced_requests(connection: sqlite3.Connection, query: TraceQuery) -> list[TracedRequest]:
    """See :class:`moescope.service.store.interface.Store`."""
    clauses, values = _conditions(query)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM request WHERE {' AND '.join(clauses)} ORDER BY id DESC LIMIT ?",
        (*values, query.limit),
    ).fetchall()
    return [_traced(row, _names(connection, row)) for row in rows]


def traces(connection: sqlite3.Connection, number: int, wanted: Collection[int] | None) -> list[WorkerTrace]:
    """See :class:`moescope.service.store.interface.Store`."""
    rows = connection.execute(
        "SELECT id, layers, id_bytes FROM trace WHERE request = ? AND complete ORDER BY pp_rank, tp_rank, id",
        (number,),
    ).fetchall()
    return [
        _worker(connection, trace, _layers_decoder.decode(blob), size, wanted) for trace, blob, size in rows
    ]


def _upsert_request(connection: sqlite3.Connection, part: TracePart, stored_ms: int) -> int:
    who = part.producer
    [request] = connection.execute(
        "INSERT INTO request (server, model, dp_rank, request_id, outcome, prompt_tokens, cached_tokens, "
        "preemptions, started_ms, ended_ms, stored_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (request_id, server, model, dp_rank) DO UPDATE SET "
        "ended_ms = max(ended_ms, excluded.ended_ms) RETURNING id",
        (
            who.server,
            who.model,
            who.dp_rank,
            part.request_id,
            part.outcome,
            part.prompt_tokens,
            part.cached_tokens,
            part.preemptions,
            part.started_at_ns // 1_000_000,
            part.ended_at_ns // 1_000_000,
            stored_ms,
        ),
    ).fetchone()
    connection.executemany(
        "INSERT OR IGNORE INTO request_name VALUES (?, ?)",
        [(name, request) for name in (part.request_id, *part.client_ids)],
    )
    return int(request)


def _upsert_trace(
    connection: sqlite3.Connection, request: int, part: TracePart, hits: bytes
) -> tuple[int, bytes]:
    """The trace's row, new or not, and the experts hit so far with those of this part."""
    who = part.producer
    trace, before = connection.execute(
        "INSERT INTO trace (request, pp_rank, tp_rank, epoch, number, parts, id_bytes, layers, hits) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (request, pp_rank, tp_rank, epoch, number) "
        "DO UPDATE SET parts = parts RETURNING id, hits",
        (
            request,
            who.pp_rank,
            who.tp_rank,
            part.epoch,
            part.trace,
            part.parts,
            part.id_bytes,
            _encoder.encode(part.layers),
            hits,
        ),
    ).fetchone()
    return int(trace), merge_hits(before, hits)


def _conditions(query: TraceQuery) -> tuple[list[str], list[Any]]:
    clauses, values = ["tokens >= ?"], [max(1, query.min_tokens)]  # type: tuple[list[str], list[Any]]
    for clause, value in (
        ("server = ?", query.server),
        ("model = ?", query.model),
        ("dp_rank = ?", query.dp_rank),
        ("id IN (SELECT request FROM request_name WHERE name = ?)", query.name),
        ("stored_ms >= ?", None if query.start is None else query.start * 1000),
        ("stored_ms <= ?", None if query.end is None else query.end * 1000),
        ("id < ?", query.before),
    ):
        if value is not None:
            clauses.append(clause)
            values.append(value)
    if query.layer is not None and query.expert is not None:
        clauses.append(
            "EXISTS (SELECT 1 FROM trace WHERE request = request.id AND complete "
            "AND moescope_hit(layers, hits, ?, ?))"
        )
        values += [query.layer, query.expert]
    return clauses, values


def _names(connection: sqlite3.Connection, row: tuple[Any, ...]) -> tuple[str, ...]:
    found = connection.execute("SELECT name FROM request_name WHERE request = ?", (row[0],)).fetchall()
    return tuple(sorted((name for (name,) in found), key=lambda name: (-len(name), name)))


def _traced(row: tuple[Any, ...], names: tuple[str, ...]) -> TracedRequest:
    number, server, model, dp_rank, request_id, outcome, prompt, cached, preemptions, *rest = row
    started_ms, ended_ms, stored_ms, tokens = rest
    return TracedRequest(
        number=number,
        server=server,
        model=model,
        dp_rank=dp_rank,
        request_id=request_id,
        names=names,
        outcome=outcome,
        prompt_tokens=prompt,
        cached_tokens=cached,
        preemptions=preemptions,
        started_at=started_ms / 1000,
        ended_at=ended_ms / 1000,
        stored_at=stored_ms / 1000,
        tokens=tokens,
    )


def _worker(
    connection: sqlite3.Connection,
    trace: int,
    layers: list[MoeLayer],
    id_bytes: int,
    wanted: Collection[int] | None,
) -> WorkerTrace:
    runs = connection.execute(
        "SELECT runs FROM trace_part WHERE trace = ? ORDER BY part", (trace,)
    ).fetchall()
    blobs = connection.execute(
        "SELECT experts FROM segment WHERE trace = ? ORDER BY part, number", (trace,)
    ).fetchall()
    segments = [read_segment(blob, layers, id_bytes, wanted) for (blob,) in blobs]
    positions = [
        np.arange(run.first, run.first + run.count) for (blob,) in runs for run in _runs_decoder.decode(blob)
    ]
    kept = tuple(layer for layer in layers if wanted is None or layer.layer in wanted)
    return WorkerTrace(
        layers=kept,
        positions=np.concatenate(positions),
        experts=tuple(np.concatenate(column) for column in zip(*segments, strict=True)),
    )
