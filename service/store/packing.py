"""Short traces share blocks: some thousands of tokens compress well, the tokens of one request don't.

A piece that comes alone is written as a segment of its own, which is durable at once, and remembered here.
When enough have come, they go into a block together, from memory, and their segments are removed. What is
remembered is lost when the process ends: those segments stay as they are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from moescope.capture.trace_wire import TracePart
from moescope.capture.wire import MoeLayer
from moescope.service.store.hits import taken_by, write_hits
from moescope.service.store.segments import SegmentWriter

BLOCK_TOKENS: Final = 2000
"""A block is written as soon as it has so many; a reader of one trace unpacks all of them."""
MAX_LANES: Final = 64
_MAX_SHAPES: Final = 4

_encoder = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class Shape:
    """What the pieces of a block have in common, and the number of its row."""

    number: int
    id_bytes: int
    layers: tuple[MoeLayer, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some tokens of a part of a trace.

    Attributes:
        trace, part, number: the row of ``trace``, the part, and which piece of it.
        experts: for each layer raw ids [tokens, top_k].
        stored: there is a segment of it.
    """

    trace: int
    part: int
    number: int
    tokens: int
    experts: Sequence[bytes]
    stored: bool = False


Waiting = dict[Shape, tuple[Piece, ...]]
"""Pieces with a segment of their own, by shape."""


def pieces_of(trace: int, part: TracePart) -> list[Piece]:
    """A part in pieces of a block's size, and the rest."""
    if part.tokens <= BLOCK_TOKENS:
        return [Piece(trace, part.part, 0, part.tokens, part.experts)]
    widths = [layer.top_k * part.id_bytes for layer in part.layers]
    return [
        Piece(
            *(trace, part.part, number, min(BLOCK_TOKENS, part.tokens - at)),
            [
                data[at * width : (at + BLOCK_TOKENS) * width]
                for data, width in zip(part.experts, widths, strict=True)
            ],
        )
        for number, at in enumerate(range(0, part.tokens, BLOCK_TOKENS))
    ]


def blocks_of(pieces: Sequence[Piece]) -> tuple[list[list[Piece]], list[Piece]]:
    """Pieces to those of each full block, and those that don't fill one."""
    full = [[piece] for piece in pieces if piece.tokens >= BLOCK_TOKENS]
    rest: list[Piece] = []
    for piece in pieces:
        if piece.tokens < BLOCK_TOKENS:
            rest.append(piece)
            if len(rest) == MAX_LANES or sum(item.tokens for item in rest) >= BLOCK_TOKENS:
                full.append(rest)
                rest = []
    return full, rest


class Packer:
    """Writes pieces of traces; for one thread."""

    def __init__(self) -> None:
        self._segments = SegmentWriter()
        self._waiting: Waiting = {}

    def write(self, connection: sqlite3.Connection, shape: Shape, pieces: Sequence[Piece]) -> Waiting:
        """Write new pieces of a shape, within a transaction; what waits once it is committed."""
        full, rest = blocks_of([*self._waiting.get(shape, ()), *pieces])
        for group in full:
            self._write_block(connection, shape, group)
        return {shape: tuple(self._write_segment(connection, piece) for piece in rest)}

    def committed(self, waiting: Waiting) -> None:
        """Go on from what :meth:`write` returned; shapes that didn't come for long are forgotten."""
        kept = {shape: pieces for shape, pieces in self._waiting.items() if shape not in waiting} | waiting
        self._waiting = {shape: kept[shape] for shape in list(kept)[-_MAX_SHAPES:] if kept[shape]}

    def forget_all_but(self, traces: Collection[int]) -> None:
        """Remember pieces of these traces only: the others are removed."""
        self._waiting = {
            shape: tuple(piece for piece in pieces if piece.trace in traces)
            for shape, pieces in self._waiting.items()
        }

    @property
    def remembered(self) -> set[int]:
        """Traces of which a piece is remembered."""
        return {piece.trace for pieces in self._waiting.values() for piece in pieces}

    def _write_segment(self, connection: sqlite3.Connection, piece: Piece) -> Piece:
        if piece.stored:
            return piece
        connection.execute(
            "INSERT INTO segment (trace, part, number, experts, tokens) VALUES (?, ?, ?, ?, ?)",
            (
                *(piece.trace, piece.part, piece.number),
                *(self._segments.quick(piece.experts), piece.tokens),
            ),
        )
        return Piece(piece.trace, piece.part, piece.number, piece.tokens, piece.experts, stored=True)

    def _write_block(self, connection: sqlite3.Connection, shape: Shape, pieces: Sequence[Piece]) -> None:
        experts = [b"".join(column) for column in zip(*(piece.experts for piece in pieces), strict=True)]
        counts = [piece.tokens for piece in pieces]
        hits = write_hits(taken_by(experts, counts, shape.layers, shape.id_bytes))
        [block] = connection.execute(
            "INSERT INTO block (shape, id_bytes, layers, tokens, hits, experts) VALUES (?, ?, ?, ?, ?, ?) "
            "RETURNING id",
            (
                *(shape.number, shape.id_bytes, _encoder.encode(shape.layers), sum(counts)),
                *(hits, self._segments.packed(experts)),
            ),
        ).fetchone()
        rows, first = [], 0
        for lane, piece in enumerate(pieces):
            rows.append((piece.trace, piece.part, piece.number, block, lane, first, piece.tokens))
            first += piece.tokens
        connection.executemany("INSERT INTO piece VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        connection.executemany(
            "DELETE FROM segment WHERE trace = ? AND part = ? AND number = ?",
            [(piece.trace, piece.part, piece.number) for piece in pieces if piece.stored],
        )
