"""The ids of a trace's tokens, and their steps, read from where they are in the embedded store."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.capture.wire.traces import ExpertArray
from moescope.service.store.codec import no_ids
from moescope.service.store.records import StoreError
from moescope.service.store.sqlite.connections import Readers
from moescope.service.store.sqlite.recent import Ids, Place
from moescope.service.store.sqlite.segments import read_quick
from moescope.service.store.steps import read_steps
from moescope.service.store.worker_trace import REMOVED, Worker, pieces_between, side_by_side

_MISPLACED: Final = "a damaged trace: some of its tokens are not where they should be"

# Where a piece begins among how many tokens, in a quick blob or not, and the block, or the segment's blob.
_PIECE: Final = (
    "SELECT first, block.tokens, FALSE, block.id, NULL FROM piece JOIN block ON block.id = piece.block "
    "WHERE trace = ?1 AND part = ?2 AND number = ?3 UNION ALL "
    "SELECT 0, coalesce(tokens, ?4), tokens NOT NULL, NULL, experts FROM segment "
    "WHERE trace = ?1 AND part = ?2 AND number = ?3"
)
_BLOCK: Final = "SELECT experts FROM block WHERE id = ?"


@dataclass(frozen=True, slots=True)
class Where:
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


def read_steps_of(
    readers: Readers, place: Where, parts: Sequence[tuple[int, ...]], start: int, end: int
) -> Int64Array:
    """The steps of tokens ``start`` to before ``end``, from the parts (part, tokens, ...)."""
    found = [np.empty(0, np.int64)]
    with reading(readers, place) as connection:
        for at, a, b in pieces_between(np.array([row[1] for row in parts]), start, end):
            part, tokens = parts[at][:2]
            [stored] = connection.execute(
                "SELECT steps FROM trace_part WHERE trace = ? AND part = ?", (place.trace, part)
            ).fetchone()
            found.append(read_steps(stored, tokens, a, b))
    return np.concatenate(found)


@contextmanager
def reading(readers: Readers, place: Where) -> Generator[sqlite3.Connection]:
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


class _Some(NamedTuple):
    """Ids of a block or a segment, of which tokens ``first`` to before ``end`` are meant."""

    ids: Ids
    first: int
    end: int


def _found(readers: Readers, place: Where, pieces: Int64Array, start: int, end: int) -> Iterator[_Some]:
    """Where the ids of tokens ``start`` to before ``end`` are, from pieces [P, (part, number, tokens)]."""
    with reading(readers, place) as connection:
        for at, a, b in pieces_between(pieces[:, 2], start, end):
            part, number, tokens = pieces[at].tolist()
            row = connection.execute(_PIECE, (place.trace, part, number, tokens)).fetchone()
            if row is None:
                raise ValueError(_MISPLACED)
            first, of, quick, block, blob = row
            if quick:
                ids = Ids(read_quick(blob, place.layers, place.id_bytes, of, place.wanted), None)
            else:
                ids = _unpacked(readers, connection, place, block, blob, of)
            if ids.of_layers and ids.tokens < first + tokens:
                raise ValueError(_MISPLACED)
            yield _Some(ids, first + a, first + b)


def read_ids_of(
    readers: Readers, place: Where, pieces: Int64Array, start: int, end: int
) -> tuple[ExpertArray, ...]:
    """The ids of tokens ``start`` to before ``end``, layer by layer."""
    found = [
        [of_layer[some.first : some.end] for of_layer in some.ids.of_layers]
        for some in _found(readers, place, pieces, start, end)
    ]
    if not found:
        found = [[no_ids(place.id_bytes, layer.top_k) for layer in place.read_layers]]
    columns = zip(*found, strict=True)
    experts: tuple[ExpertArray, ...] = (
        tuple(found[0]) if len(found) == 1 else tuple(np.concatenate(column) for column in columns)
    )
    if any(len(of_layer) != end - start for of_layer in experts):
        raise ValueError(_MISPLACED)
    return experts


def read_side_by_side(
    readers: Readers, place: Where, pieces: Int64Array, start: int, end: int
) -> ExpertArray:
    """The same with the layers side by side, which have one top-k."""
    found: list[Any] = []
    for ids, first, last in _found(readers, place, pieces, start, end):
        if ids.side_by_side is None:
            found.append(side_by_side([of_layer[first:last] for of_layer in ids.of_layers]))
        else:
            found.append(ids.side_by_side[first:last])
    if sum(map(len, found)) != end - start:
        raise ValueError(_MISPLACED)
    together: ExpertArray = found[0] if len(found) == 1 else np.concatenate(found)
    return together


def _unpacked(
    readers: Readers, connection: sqlite3.Connection, place: Where, block: int | None, blob: bytes, of: int
) -> Ids:
    """The ids of a block of `of` tokens, or of an old segment, whose blob is there."""
    if block is None:
        return readers.recent.read(lambda: blob, place.layers, place.id_bytes, of, place.wanted)
    [version] = connection.execute("PRAGMA data_version").fetchone()
    at = Place(connection, version, block)

    def load() -> bytes:
        [found] = connection.execute(_BLOCK, (block,)).fetchone()
        return bytes(found)

    return readers.recent.read(load, place.layers, place.id_bytes, of, place.wanted, at)
