"""Parts of traces into the embedded store: SQL only. Transactions and errors are the store's."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

import msgspec

from moescope.capture.wire.traces import TracePart
from moescope.service.store.records import ArrivedPart, life_of, pack_taken_over
from moescope.service.store.sqlite.packing import Packer, Piece, Shape, Waiting, pieces_of
from moescope.service.store.steps import encode_steps

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
        "INSERT INTO trace_part (trace, part, tokens, runs, weights_version, steps) "
        "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            *(trace, part.part, tokens, _encoder.encode(part.runs), part.weights_version),
            encode_steps(part.steps),
        ),
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
# What other workers of a stage had computed is missing as long as their traces are not complete. Of a worker
# with several traces (see `newest_life`) the newest counts: with max() SQLite takes the row that has it.
_SUM: Final = (
    "UPDATE request SET (tokens, missing_stages, missing_tokens) = ("
    "SELECT max(shared), max(0, request.pp_size - count(*)), sum(max(0, computed - shared)) FROM ("
    "SELECT sum(tokens) AS shared, max(computed_tokens) AS computed FROM ("
    "SELECT pp_rank, tokens, computed_tokens, max(started_ms) FROM trace "
    "WHERE request = ?1 AND complete GROUP BY pp_rank, tp_rank) GROUP BY pp_rank)) WHERE id = ?1"
)


def _upsert_shape(connection: sqlite3.Connection, id_bytes: int, layers: bytes) -> int:
    [shape] = connection.execute(
        "INSERT INTO shape (id_bytes, layers) VALUES (?, ?) "
        "ON CONFLICT (id_bytes, layers) DO UPDATE SET id_bytes = excluded.id_bytes RETURNING id",
        (id_bytes, layers),
    ).fetchone()
    return int(shape)


# Workers of one request may tell more than others of it: a pipeline's last stage why it ended, for example.
_UPSERT: Final = (
    "INSERT INTO request (server, model, dp_rank, request_id, life, outcome, prompt_tokens, cached_tokens, "
    "preemptions, started_ms, ended_ms, stored_ms, role, pool, lora, finish_reason, accepted_drafts, "
    "rejected_drafts, taken_over, pp_size) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (request_id, server, model, dp_rank, life) DO UPDATE SET "
    "outcome = iif(excluded.outcome = 'ended', outcome, excluded.outcome), "
    "preemptions = max(preemptions, excluded.preemptions), "
    "started_ms = min(started_ms, excluded.started_ms), ended_ms = max(ended_ms, excluded.ended_ms), "
    "lora = max(lora, excluded.lora), finish_reason = max(finish_reason, excluded.finish_reason), "
    "accepted_drafts = max(accepted_drafts, excluded.accepted_drafts), "
    "rejected_drafts = max(rejected_drafts, excluded.rejected_drafts), "
    "taken_over = iif(length(excluded.taken_over) > length(taken_over), excluded.taken_over, taken_over), "
    "pp_size = max(pp_size, excluded.pp_size) RETURNING id"
)
# A trace that came, or began to, when nothing told requests of one id apart; parts may come twice.
_BEGUN: Final = (
    "SELECT request.id FROM request JOIN trace ON trace.request = request.id WHERE request_id = ? "
    "AND server = ? AND model = ? AND dp_rank = ? AND life = 0 "
    "AND pp_rank = ? AND tp_rank = ? AND epoch = ? AND number = ?"
)


def _upsert_request(connection: sqlite3.Connection, part: TracePart, stored_ms: int) -> int:
    who = part.producer
    life = life_of(part)
    if life:
        trace = (who.pp_rank, who.tp_rank, part.epoch, part.trace)
        begun = connection.execute(
            _BEGUN, (part.request_id, who.server, who.model, who.dp_rank, *trace)
        ).fetchone()
        life = life if begun is None else 0
    [request] = connection.execute(
        _UPSERT,
        (
            *(who.server, who.model, who.dp_rank, part.request_id, life),
            *(part.outcome, part.prompt_tokens, part.cached_tokens, part.preemptions),
            *(part.started_at_ns // 1_000_000, part.ended_at_ns // 1_000_000, stored_ms),
            *(who.role, who.pool, part.lora, part.finish_reason),
            *(part.accepted_drafts, part.rejected_drafts, pack_taken_over(part.taken_over), who.pp_size),
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
        "INSERT INTO trace (request, pp_rank, tp_rank, epoch, number, parts, id_bytes, layers, hits, shape, "
        "started_step, started_ms, ended_ms, computed_tokens) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, x'', x'', ?, ?, ?, ?, ?) "
        "ON CONFLICT (request, pp_rank, tp_rank, epoch, number) DO UPDATE SET parts = parts RETURNING id",
        (
            *(request, who.pp_rank, who.tp_rank, part.epoch, part.trace),
            *(part.parts, part.id_bytes, shape.number, part.started_step),
            *(part.started_at_ns // 1_000_000, part.ended_at_ns // 1_000_000, part.computed_tokens),
        ),
    ).fetchone()
    return int(trace)
