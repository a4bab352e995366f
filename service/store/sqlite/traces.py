"""One trace from the embedded store, put together from where its tokens are."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.capture.wire.traces import ExpertArray, TracePart
from moescope.service.store.codec import no_ids, runs_of
from moescope.service.store.damage import DamageLog
from moescope.service.store.records import StoreError, TraceShape
from moescope.service.store.sqlite.connections import Readers
from moescope.service.store.sqlite.recent import Place
from moescope.service.store.sqlite.segments import read_quick
from moescope.service.store.steps import read_steps
from moescope.service.store.worker_trace import (
    REMOVED,
    Told,
    Worker,
    WorkerTrace,
    newest_life,
    pieces_between,
)

_MISPLACED: Final = "a damaged trace: some of its tokens are not where they should be"
_OLD_TOKENS: Final = 1000  # of a segment, in stores up to schema 3

_layers_decoder = msgspec.msgpack.Decoder(list[MoeLayer])


@lru_cache(maxsize=64)
def _layers_of(blob: bytes) -> tuple[MoeLayer, ...]:
    """The layers of a trace, of which a store has few different ones.

    Raises:
        ValueError: they are damaged.
    """
    return tuple(_layers_decoder.decode(blob))


_LAYERS: Final = "coalesce((SELECT layers FROM shape WHERE id = trace.shape), layers)"
# Part, number, tokens of each piece, wherever it is; an old segment has 1000.
_PIECES: Final = (
    "SELECT part, number, tokens FROM piece WHERE trace = ?1 UNION ALL "
    "SELECT part, number, coalesce(segment.tokens, min(?2, trace_part.tokens - ?2 * number)) "
    "FROM segment JOIN trace_part USING (trace, part) WHERE trace = ?1 ORDER BY part, number"
)
# Where a piece begins among how many tokens, in a quick blob or not, and the block, or the segment's blob.
_PIECE: Final = (
    "SELECT first, block.tokens, FALSE, block.id, NULL FROM piece JOIN block ON block.id = piece.block "
    "WHERE trace = ?1 AND part = ?2 AND number = ?3 UNION ALL "
    "SELECT 0, coalesce(tokens, ?4), tokens NOT NULL, NULL, experts FROM segment "
    "WHERE trace = ?1 AND part = ?2 AND number = ?3"
)
_BLOCK: Final = "SELECT experts FROM block WHERE id = ?"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a worker's trace is.

    Attributes:
        request, trace: their rows' numbers; that of the trace may be another's when this one is gone.
        layers: all that it has.
        wanted: the layers to read; None: all.
        worker: whose trace it is.
    """

    request: int
    trace: int
    layers: tuple[MoeLayer, ...]
    id_bytes: int
    wanted: Collection[int] | None
    worker: Worker

    @property
    def read_layers(self) -> tuple[MoeLayer, ...]:
        """Those of its layers that are wanted."""
        return tuple(layer for layer in self.layers if self.wanted is None or layer.layer in self.wanted)


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


def traces(
    connection: sqlite3.Connection, readers: Readers, number: int, wanted: Collection[int] | None
) -> list[WorkerTrace]:
    """See :class:`moescope.service.store.interface.Store`; what is read later takes one of ``readers``."""
    rows = connection.execute(
        f"SELECT id, {_LAYERS}, id_bytes, pp_rank, tp_rank, epoch, number, started_step, started_ms, "
        "ended_ms FROM trace WHERE request = ? AND complete ORDER BY pp_rank, tp_rank, id",
        (number,),
    ).fetchall()
    found = []
    for at in newest_life([Told(Worker(*row[3:6]), *row[6:]) for row in rows]):
        trace, layers, id_bytes, *who = rows[at]
        shape = _layers_of(layers)
        place = _Place(number, trace, shape, id_bytes, wanted, Worker(*who[:3]))
        found.append(_worker(connection, readers, place))
    return found


def trace_of(connection: sqlite3.Connection, readers: Readers, request: int, trace: int) -> WorkerTrace:
    """One row of ``trace`` as far as it is kept, complete or not; later reads take one of ``readers``.

    Raises:
        ValueError: it is damaged.
    """
    layers, id_bytes, *who = connection.execute(
        f"SELECT {_LAYERS}, id_bytes, pp_rank, tp_rank, epoch FROM trace WHERE id = ?", (trace,)
    ).fetchone()
    return _worker(
        connection, readers, _Place(request, trace, _layers_of(layers), id_bytes, None, Worker(*who))
    )


def still_there(connection: sqlite3.Connection, numbers: Collection[int]) -> set[int]:
    """Those of the numbers that are a trace's."""
    wanted = msgspec.json.encode(sorted(numbers)).decode()
    rows = connection.execute("SELECT id FROM trace WHERE id IN (SELECT value FROM json_each(?))", (wanted,))
    return {number for (number,) in rows.fetchall()}


def _worker(connection: sqlite3.Connection, readers: Readers, place: _Place) -> WorkerTrace:
    rows = connection.execute(_PIECES, (place.trace, _OLD_TOKENS)).fetchall()
    try:
        pieces = np.array(rows, np.int64).reshape(-1, 3)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"a damaged trace: {error}") from error
    tokens = int(pieces[:, 2].sum())
    parts = connection.execute(
        "SELECT part, tokens, weights_version, length(runs), coalesce(length(steps), 0) FROM trace_part "
        "WHERE trace = ? ORDER BY part",
        (place.trace,),
    ).fetchall()
    in_parts = sum(row[1] for row in parts)
    if in_parts != tokens:
        raise ValueError(f"a damaged trace: {tokens} of its {in_parts} tokens are there")
    runs = [row[3] for row in parts]

    def read_runs() -> Int64Array:
        with _reading(readers, place) as connection:
            blobs = connection.execute(
                "SELECT runs FROM trace_part WHERE trace = ? ORDER BY part", (place.trace,)
            )
            return runs_of((blob for (blob,) in blobs), tokens)

    def read(start: int, end: int) -> tuple[ExpertArray, ...]:
        return _read(readers, place, pieces, start, end)

    def steps(start: int, end: int) -> Int64Array:
        return _steps(readers, place, parts, start, end)

    return WorkerTrace(
        place.read_layers,
        place.id_bytes,
        tokens,
        (sum(runs), max(runs, default=0)),
        read_runs,
        read,
        [row[1:3] for row in parts],
        place.worker,
        steps,
        max((row[4] for row in parts), default=0),
    )


def _steps(
    readers: Readers, place: _Place, parts: Sequence[tuple[int, ...]], start: int, end: int
) -> Int64Array:
    """The steps of tokens ``start`` to before ``end``, from the parts (part, tokens, ...)."""
    found = [np.empty(0, np.int64)]
    with _reading(readers, place) as connection:
        for at, a, b in pieces_between(np.array([row[1] for row in parts]), start, end):
            part, tokens = parts[at][:2]
            [stored] = connection.execute(
                "SELECT steps FROM trace_part WHERE trace = ? AND part = ?", (place.trace, part)
            ).fetchone()
            found.append(read_steps(stored, tokens, a, b))
    return np.concatenate(found)


@contextmanager
def _reading(readers: Readers, place: _Place) -> Generator[sqlite3.Connection]:
    """A connection that sees the trace.

    Raises:
        StoreError: it is gone.
    """
    with readers.one() as connection:
        found = connection.execute("SELECT request FROM trace WHERE id = ?", (place.trace,)).fetchone()
        # The numbers of traces are used again, those of requests never.
        if found != (place.request,):
            raise StoreError(REMOVED)
        yield connection


def _read(
    readers: Readers, place: _Place, pieces: Int64Array, start: int, end: int
) -> tuple[ExpertArray, ...]:
    """The ids of tokens ``start`` to before ``end``, from the pieces [P, (part, number, tokens)]."""
    found: list[list[ExpertArray]] = []
    with _reading(readers, place) as connection:
        for at, a, b in pieces_between(pieces[:, 2], start, end):
            part, number, tokens = pieces[at].tolist()
            row = connection.execute(_PIECE, (place.trace, part, number, tokens)).fetchone()
            if row is None:
                raise ValueError(_MISPLACED)
            first, of, quick, block, blob = row
            if quick:
                ids = read_quick(blob, place.layers, place.id_bytes, of, place.wanted)
            else:
                ids = _unpacked(readers, connection, place, block, blob, of)
            if any(len(of_layer) < first + tokens for of_layer in ids):
                raise ValueError(_MISPLACED)
            found.append([of_layer[first + a : first + b] for of_layer in ids])
    if not found:
        found = [[no_ids(place.id_bytes, layer.top_k) for layer in place.read_layers]]
    columns = zip(*found, strict=True)
    experts: tuple[ExpertArray, ...] = (
        tuple(found[0]) if len(found) == 1 else tuple(np.concatenate(column) for column in columns)
    )
    if any(len(of_layer) != end - start for of_layer in experts):
        raise ValueError(_MISPLACED)
    return experts


def _unpacked(
    readers: Readers, connection: sqlite3.Connection, place: _Place, block: int | None, blob: bytes, of: int
) -> list[ExpertArray]:
    """The ids of a block of `of` tokens, or of an old segment, whose blob is there."""
    if block is None:
        return readers.recent.read(lambda: blob, place.layers, place.id_bytes, of, place.wanted)
    [version] = connection.execute("PRAGMA data_version").fetchone()
    at = Place(connection, version, block)

    def load() -> bytes:
        [found] = connection.execute(_BLOCK, (block,)).fetchone()
        return bytes(found)

    return readers.recent.read(load, place.layers, place.id_bytes, of, place.wanted, at)
