"""Short traces share blocks: some thousands of tokens compress well, the tokens of one request don't.

A piece that comes alone is written as a segment of its own, which is durable at once, and remembered here.
When enough have come, they go into a block together, from memory, and their segments are removed. What is
remembered is lost when the process ends: those segments stay as they are.

A block takes two jobs of about the same length, which let go of the interpreter's lock: its tokens are
compressed and written by the store's thread, the map of its hits is made by another meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import msgspec

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import TracePart
from moescope.service.store.limits import SEGMENT_BYTES, SEGMENT_TOKENS
from moescope.service.store.sqlite.hits import MAX_LANES, most_lanes, planes_of, write_hits
from moescope.service.store.sqlite.segments import SegmentWriter

BLOCK_TOKENS: Final = SEGMENT_TOKENS
"""A block is written as soon as it has so many; a reader of one trace unpacks all of them."""
_BLOCK_BYTES: Final = SEGMENT_BYTES
"""It is also written when its ids take so many bytes, so that what waits for others is bounded."""
_MAX_SHAPES: Final = 4
_AHEAD: Final = 4
"""Blocks that wait, with all their ids, for the store's thread while the helper goes on."""

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

    @property
    def nbytes(self) -> int:
        """Bytes of its ids."""
        return sum(map(len, self.experts))


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Pieces that are packed together.

    Attributes:
        experts: for each layer raw ids of all pieces, one after the other.
        tokens: of each piece.
    """

    pieces: Sequence[Piece]
    experts: Sequence[bytes]
    tokens: Sequence[int]

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Block:
        """The block of these pieces, which have one shape."""
        experts = [b"".join(column) for column in zip(*(piece.experts for piece in pieces), strict=True)]
        return cls(pieces, experts, [piece.tokens for piece in pieces])

    def hits(self, shape: Shape) -> bytes:
        """The map of which piece took which expert."""
        return write_hits(planes_of(self.experts, self.tokens, shape.layers, shape.id_bytes))


Waiting = dict[Shape, tuple[Piece, ...]]
"""Pieces with a segment of their own, by shape."""


def pieces_of(trace: int, part: TracePart) -> list[Piece]:
    """A part in pieces of a block's size, and the rest."""
    total = part.tokens  # a sum over all runs
    widths = [layer.top_k * part.id_bytes for layer in part.layers]
    most = min(BLOCK_TOKENS, max(1, _BLOCK_BYTES // sum(widths)))
    if total <= most:
        return [Piece(trace=trace, part=part.part, number=0, tokens=total, experts=part.experts)]
    return [
        Piece(
            trace=trace,
            part=part.part,
            number=number,
            tokens=min(most, total - at),
            experts=[
                data[at * width : (at + most) * width]
                for data, width in zip(part.experts, widths, strict=True)
            ],
        )
        for number, at in enumerate(range(0, total, most))
    ]


def blocks_of(pieces: Sequence[Piece], lanes: int = MAX_LANES) -> tuple[list[list[Piece]], list[Piece]]:
    """Pieces to those of each full block, and those that don't fill one; ``lanes`` pieces fill any."""
    full: list[list[Piece]] = []
    rest: list[Piece] = []
    for piece in pieces:
        if _fills(piece):
            full.append([piece])
            continue
        rest.append(piece)
        if len(rest) == lanes or _fills(*rest):
            full.append(rest)
            rest = []
    return full, rest


def _fills(*pieces: Piece) -> bool:
    """Whether these are a block's tokens, or its bytes."""
    return (
        sum(piece.tokens for piece in pieces) >= BLOCK_TOKENS
        or sum(piece.nbytes for piece in pieces) >= _BLOCK_BYTES
    )


class Packer:
    """Writes pieces of traces; for one thread, with a helper that :meth:`close` ends."""

    def __init__(self) -> None:
        self._segments = SegmentWriter()
        self._helper = ThreadPoolExecutor(1, "moescope-hits")
        self._waiting: Waiting = {}

    def write(self, connection: sqlite3.Connection, shape: Shape, pieces: Sequence[Piece]) -> Waiting:
        """Write new pieces of a shape, within a transaction.

        Returns what waits once it is committed, for :meth:`committed`.
        """
        full, rest = blocks_of([*self._waiting.get(shape, ()), *pieces], most_lanes(shape.layers))
        for block, hits in self._blocks(shape, full):
            self._write_block(connection, shape, block, hits)
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

    def close(self) -> None:
        """End the helper."""
        self._helper.shutdown()

    @property
    def remembered(self) -> set[int]:
        """Traces of which a piece is remembered."""
        return {piece.trace for pieces in self._waiting.values() for piece in pieces}

    def _blocks(
        self, shape: Shape, groups: Sequence[Sequence[Piece]]
    ) -> Iterator[tuple[Block, Future[bytes]]]:
        """The blocks of groups with the maps that the helper makes; it is some blocks ahead."""
        ahead: deque[tuple[Block, Future[bytes]]] = deque()
        for group in groups:
            block = Block.of(group)
            ahead.append((block, self._helper.submit(block.hits, shape)))
            if len(ahead) > _AHEAD:
                yield ahead.popleft()
        yield from ahead

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

    def _write_block(
        self, connection: sqlite3.Connection, shape: Shape, block: Block, hits: Future[bytes]
    ) -> None:
        packed = self._segments.packed(block.experts)
        [number] = connection.execute(
            "INSERT INTO block (shape, id_bytes, layers, tokens, hits, experts) VALUES (?, ?, ?, ?, ?, ?) "
            "RETURNING id",
            (
                *(shape.number, shape.id_bytes, _encoder.encode(shape.layers), sum(block.tokens)),
                *(hits.result(), packed),
            ),
        ).fetchone()
        rows, first = [], 0
        for lane, piece in enumerate(block.pieces):
            rows.append((piece.trace, piece.part, piece.number, number, lane, first, piece.tokens))
            first += piece.tokens
        connection.executemany("INSERT INTO piece VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        connection.executemany(
            "DELETE FROM segment WHERE trace = ? AND part = ? AND number = ?",
            [(piece.trace, piece.part, piece.number) for piece in block.pieces if piece.stored],
        )
