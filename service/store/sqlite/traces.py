"""One trace from the embedded store, put together from where its tokens are."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Final

import msgspec
import numpy as np

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import ExpertArray, TracePart
from moescope.service.store.codec import positions_of
from moescope.service.store.damage import DamageLog
from moescope.service.store.records import TraceShape, WorkerTrace
from moescope.service.store.sqlite.segments import read_packed, read_quick

_OLD_TOKENS: Final = 1000  # of a segment, in stores up to schema 3

_layers_decoder = msgspec.msgpack.Decoder(list[MoeLayer])

_LAYERS: Final = "coalesce((SELECT layers FROM shape WHERE id = trace.shape), layers)"
# Part, number, tokens, where they begin among how many, in a quick blob or not; an old segment has 1000.
_PIECES: Final = (
    "SELECT part, number, piece.tokens, first, block.tokens, FALSE, experts FROM piece "
    "JOIN block ON block.id = piece.block WHERE trace = ?1 UNION ALL "
    "SELECT part, number, held, 0, held, quick, experts FROM (SELECT part, number, experts, "
    "segment.tokens NOT NULL AS quick, coalesce(segment.tokens, min(?2, trace_part.tokens - ?2 * number)) "
    "AS held FROM segment JOIN trace_part USING (trace, part) WHERE trace = ?1)"
)


def shape_of(connection: sqlite3.Connection, part: TracePart, damage: DamageLog) -> TraceShape | None:
    """The shape of a part's trace by what is kept of it; None if nothing is, or it can't be read."""
    who = part.producer
    row = connection.execute(
        f"SELECT parts, id_bytes, {_LAYERS} FROM trace JOIN request ON request = request.id "
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
    try:
        return TraceShape(parts, id_bytes, tuple(_layers_decoder.decode(layers)))
    except ValueError as error:
        damage.shape(part.request_id, error)
        return None


def traces(connection: sqlite3.Connection, number: int, wanted: Collection[int] | None) -> list[WorkerTrace]:
    """See :class:`moescope.service.store.interface.Store`."""
    rows = connection.execute(
        f"SELECT id, {_LAYERS}, id_bytes FROM trace WHERE request = ? AND complete "
        "ORDER BY pp_rank, tp_rank, id",
        (number,),
    ).fetchall()
    return [
        _worker(connection, trace, _layers_decoder.decode(blob), size, wanted) for trace, blob, size in rows
    ]


def still_there(connection: sqlite3.Connection, numbers: Collection[int]) -> set[int]:
    """Those of the numbers that are a trace's."""
    wanted = msgspec.json.encode(sorted(numbers)).decode()
    rows = connection.execute("SELECT id FROM trace WHERE id IN (SELECT value FROM json_each(?))", (wanted,))
    return {number for (number,) in rows.fetchall()}


def _worker(
    connection: sqlite3.Connection,
    trace: int,
    layers: list[MoeLayer],
    id_bytes: int,
    wanted: Collection[int] | None,
) -> WorkerTrace:
    parts = connection.execute(
        "SELECT runs, tokens, weights_version FROM trace_part WHERE trace = ? ORDER BY part", (trace,)
    ).fetchall()
    rows = connection.execute(_PIECES, (trace, _OLD_TOKENS)).fetchall()
    positions = positions_of([runs for runs, _, _ in parts], sum(row[2] for row in rows))
    pieces: list[list[ExpertArray]] = []
    for _, _, tokens, first, of, quick, blob in sorted(rows, key=lambda row: row[:2]):
        found = (read_quick if quick else read_packed)(blob, layers, id_bytes, of, wanted)
        pieces.append([ids[first : first + tokens] for ids in found])
    experts = tuple(np.concatenate(column) for column in zip(*pieces, strict=True))
    if any(len(ids) != len(positions) for ids in experts):
        raise ValueError("a damaged trace: some of its tokens are not where they should be")
    return WorkerTrace(
        layers=tuple(layer for layer in layers if wanted is None or layer.layer in wanted),
        positions=positions,
        experts=experts,
        weights=tuple((tokens, version) for _, tokens, version in parts),
    )
