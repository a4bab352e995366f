"""Parts of traces into the embedded store: SQL only. Transactions and errors are the store's."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

import msgspec

from moescope.capture.wire.traces import TracePart
from moescope.service.store.records import ArrivedPart
from moescope.service.store.sqlite.packing import Packer, Piece, Shape, Waiting, pieces_of

_encoder = msgspec.msgpack.Encoder()


def save_parts(connection: sqlite3.Connection, arrived: Sequence[ArrivedPart], packer: Packer) -> Waiting:
    """Keep parts, each once; a trace whose parts are all there becomes visible.

    Returns what the packer is to be told when the transaction is committed.
    """
    shapes: dict[tuple[int, bytes], Shape] = {}
    pieces: dict[Shape, list[Piece]] = {}
    for item in arrived:
        part = item.part
        layers = _encoder.encode(part.layers)
        kind = part.id_bytes, layers
        if kind not in shapes:
            shapes[kind] = Shape(_upsert_shape(connection, *kind), part.id_bytes, tuple(part.layers))
        shape = shapes[kind]
        trace = _save_part(connection, item, shape)
        if trace is not None:
            pieces.setdefault(shape, []).extend(pieces_of(trace, part))
    waiting: Waiting = {}
    for shape, new in pieces.items():
        waiting |= packer.write(connection, shape, new)
    return waiting


def _save_part(connection: sqlite3.Connection, arrived: ArrivedPart, shape: Shape) -> int | None:
    """The rows of a part but for its ids; its trace, or None if it was there already."""
    part = arrived.part
    request = _upsert_request(connection, part, round(arrived.at * 1000))
    trace = _upsert_trace(connection, request, part, shape)
    tokens = part.tokens
    new = connection.execute(
        "INSERT INTO trace_part (trace, part, tokens, runs, weights_version) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO NOTHING",
        (trace, part.part, tokens, _encoder.encode(part.runs), part.weights_version),
    ).rowcount
    if not new:
        return None
    [complete] = connection.execute(
        "UPDATE trace SET tokens = tokens + ?1, complete = "
        "(parts = (SELECT count(*) FROM trace_part WHERE trace = ?2)) WHERE id = ?2 RETURNING complete",
        (tokens, trace),
    ).fetchone()
    if complete:
        connection.execute(_SUM, (request,))
    return trace


# Tensor-parallel workers share a request's tokens out; pipeline-parallel ones have all of them each.
_SUM: Final = (
    "UPDATE request SET tokens = (SELECT max(shared) FROM (SELECT sum(tokens) AS shared FROM trace "
    "WHERE request = ?1 AND complete GROUP BY pp_rank)) WHERE id = ?1"
)


def _upsert_shape(connection: sqlite3.Connection, id_bytes: int, layers: bytes) -> int:
    [shape] = connection.execute(
        "INSERT INTO shape (id_bytes, layers) VALUES (?, ?) "
        "ON CONFLICT (id_bytes, layers) DO UPDATE SET id_bytes = excluded.id_bytes RETURNING id",
        (id_bytes, layers),
    ).fetchone()
    return int(shape)


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


def _upsert_trace(connection: sqlite3.Connection, request: int, part: TracePart, shape: Shape) -> int:
    who = part.producer
    [trace] = connection.execute(
        "INSERT INTO trace (request, pp_rank, tp_rank, epoch, number, parts, id_bytes, layers, hits, shape) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, x'', x'', ?) ON CONFLICT (request, pp_rank, tp_rank, epoch, number) "
        "DO UPDATE SET parts = parts RETURNING id",
        (
            request,
            who.pp_rank,
            who.tp_rank,
            part.epoch,
            part.trace,
            part.parts,
            part.id_bytes,
            shape.number,
        ),
    ).fetchone()
    return int(trace)
