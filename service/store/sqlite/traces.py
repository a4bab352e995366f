"""Traces from the embedded store, put together from where its tokens are."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.capture.wire.traces import TracePart
from moescope.service.store.codec import runs_of
from moescope.service.store.damage import DamageLog
from moescope.service.store.records import TraceShape
from moescope.service.store.sqlite.connections import Readers, failures
from moescope.service.store.sqlite.trace_ids import (
    Where,
    read_ids_of,
    read_side_by_side,
    read_steps_of,
    reading,
)
from moescope.service.store.worker_trace import Told, Worker, WorkerTrace, newest_life

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
_THESE: Final = "(SELECT value FROM json_each(?1))"
_TRACES: Final = (
    f"SELECT request, id, {_LAYERS}, id_bytes, pp_rank, tp_rank, epoch, number, started_step, started_ms, "
    f"ended_ms FROM trace WHERE request IN {_THESE} AND complete ORDER BY request, pp_rank, tp_rank, id"
)
# Trace, part, number, tokens of each piece, wherever it is; an old segment has 1000.
_PIECES: Final = (
    f"SELECT trace, part, number, tokens FROM piece WHERE trace IN {_THESE} UNION ALL "
    "SELECT trace, part, number, coalesce(segment.tokens, min(?2, trace_part.tokens - ?2 * number)) "
    f"FROM segment JOIN trace_part USING (trace, part) WHERE trace IN {_THESE} ORDER BY trace, part, number"
)
# The fields of :class:`_Part`, with runs that are short.
_PARTS: Final = (
    "SELECT trace, part, tokens, weights_version, length(runs), coalesce(length(steps), 0), "
    f"iif(length(runs) <= ?2, runs, NULL) FROM trace_part WHERE trace IN {_THESE} ORDER BY trace, part"
)
_SHORT_RUNS: Final = 64
"""Bytes of a part's runs that are read with the part: more than twenty of them."""


class _Part(NamedTuple):
    """A part of a trace, without its ids; ``runs`` as they are stored, None if they take many bytes."""

    trace: int
    part: int
    tokens: int
    version: int
    runs_bytes: int
    steps_bytes: int
    runs: bytes | None


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
    """See :class:`moescope.service.store.interface.Store`; what is read later takes one of ``readers``.

    Raises:
        ValueError: a trace is damaged.
    """
    return _Rows(connection, [number]).workers(readers, number, wanted)


def traces_of(
    connection: sqlite3.Connection, readers: Readers, numbers: Sequence[int], wanted: Collection[int] | None
) -> dict[int, list[WorkerTrace]]:
    """Those of several requests, without requests of which a trace is damaged."""
    rows = _Rows(connection, numbers)
    found = {}
    for number in numbers:
        with suppress(ValueError):
            found[number] = rows.workers(readers, number, wanted)
    return found


def trace_of(connection: sqlite3.Connection, readers: Readers, request: int, trace: int) -> WorkerTrace:
    """One row of ``trace`` as far as it is kept, complete or not; later reads take one of ``readers``.

    Raises:
        ValueError: it is damaged.
    """
    layers, id_bytes, *who = connection.execute(
        f"SELECT {_LAYERS}, id_bytes, pp_rank, tp_rank, epoch FROM trace WHERE id = ?", (trace,)
    ).fetchone()
    where = Where(request, trace, _layers_of(layers), id_bytes, None, Worker(*who))
    of_trace = _json([trace])
    return _worker(readers, where, _pieces(connection, of_trace)[trace], _parts(connection, of_trace)[trace])


def still_there(connection: sqlite3.Connection, numbers: Collection[int]) -> set[int]:
    """Those of the numbers that are a trace's."""
    rows = connection.execute(f"SELECT id FROM trace WHERE id IN {_THESE}", (_json(sorted(numbers)),))
    return {number for (number,) in rows.fetchall()}


class _Rows:
    """What is stored of the traces of some requests, without ids: three questions, however many they are.

    Args:
        connection: sees one moment.
        numbers: of the requests.
    """

    def __init__(self, connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
        self._traces: dict[int, list[Any]] = {}
        for request, *row in connection.execute(_TRACES, (_json(numbers),)).fetchall():
            self._traces.setdefault(request, []).append(row)
        traces = _json([row[0] for of_request in self._traces.values() for row in of_request])
        self._pieces = _pieces(connection, traces)
        self._parts = _parts(connection, traces)

    def workers(self, readers: Readers, number: int, wanted: Collection[int] | None) -> list[WorkerTrace]:
        """The traces of a request.

        Raises:
            ValueError: one is damaged.
        """
        rows = self._traces.get(number, [])
        found = []
        for at in newest_life([Told(Worker(*row[3:6]), *row[6:]) for row in rows]):
            trace, layers, id_bytes, *who = rows[at]
            place = Where(number, trace, _layers_of(layers), id_bytes, wanted, Worker(*who[:3]))
            found.append(_worker(readers, place, self._pieces[trace], self._parts[trace]))
        return found


def _pieces(connection: sqlite3.Connection, traces: str) -> defaultdict[int, list[list[int]]]:
    """The pieces (part, number, tokens) of each of these traces, whose numbers are JSON."""
    found = defaultdict(list)
    for trace, *piece in connection.execute(_PIECES, (traces, _OLD_TOKENS)).fetchall():
        found[trace].append(piece)
    return found


def _parts(connection: sqlite3.Connection, traces: str) -> defaultdict[int, list[_Part]]:
    """The parts of each of these traces, whose numbers are JSON."""
    found = defaultdict(list)
    for row in connection.execute(_PARTS, (traces, _SHORT_RUNS)).fetchall():
        found[row[0]].append(_Part(*row))
    return found


def _json(numbers: Sequence[int]) -> str:
    return msgspec.json.encode(list(numbers)).decode()


def _worker(
    readers: Readers, place: Where, pieces: Sequence[Sequence[int]], parts: Sequence[_Part]
) -> WorkerTrace:
    """A worker's trace of these pieces (part, number, tokens), and parts, in their order.

    Raises:
        ValueError: it is damaged.
    """
    try:
        where = np.array(pieces, np.int64).reshape(-1, 3)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a damaged trace: {error}") from error
    tokens = int(where[:, 2].sum())
    in_parts = sum(part.tokens for part in parts)
    if in_parts != tokens:
        raise ValueError(f"a damaged trace: {tokens} of its {in_parts} tokens are there")
    runs = [part.runs_bytes for part in parts]
    known = [part.runs for part in parts if part.runs is not None]

    def read_runs() -> Int64Array:
        if len(known) == len(parts):
            with failures(readers.path):
                return runs_of(known, tokens)
        with reading(readers, place) as connection:
            blobs = connection.execute(
                "SELECT runs FROM trace_part WHERE trace = ? ORDER BY part", (place.trace,)
            )
            return runs_of((blob for (blob,) in blobs), tokens)

    return WorkerTrace(
        place.read_layers,
        place.id_bytes,
        tokens,
        (sum(runs), max(runs, default=0)),
        read_runs,
        partial(read_ids_of, readers, place, where),
        [(part.tokens, part.version) for part in parts],
        place.worker,
        partial(read_steps_of, readers, place, [(part.part, part.tokens) for part in parts]),
        max((part.steps_bytes for part in parts), default=0),
        partial(read_side_by_side, readers, place, where),
    )
