"""Which tokens go into a block together."""

from __future__ import annotations

import numpy as np

from moescope.service.store.sqlite.packing import BLOCK_TOKENS, MAX_LANES, Piece, blocks_of, pieces_of
from tests.service.trace_parts import LAYERS, experts_of, part


def sizes(groups: list[list[Piece]]) -> list[list[int]]:
    return [[piece.tokens for piece in group] for group in groups]


def pieces(*tokens: int) -> list[Piece]:
    return [Piece(number, 0, 0, count, []) for number, count in enumerate(tokens)]


def test_a_block_is_full_when_it_has_enough_tokens() -> None:
    third = BLOCK_TOKENS // 3 + 1
    full, rest = blocks_of(pieces(*[third] * 7))
    assert sizes(full) == [[third] * 3] * 2
    assert [piece.trace for piece in rest] == [6]


def test_a_large_piece_is_a_block_of_its_own() -> None:
    full, rest = blocks_of(pieces(10, BLOCK_TOKENS, 20))
    assert sizes(full) == [[BLOCK_TOKENS]]
    assert [piece.tokens for piece in rest] == [10, 20]


def test_tiny_pieces_fill_a_block_by_their_number() -> None:
    full, rest = blocks_of(pieces(*[1] * (MAX_LANES + 1)))
    assert sizes(full) == [[1] * MAX_LANES]
    assert len(rest) == 1


def test_a_long_part_is_cut_and_nothing_is_lost() -> None:
    tokens = 2 * BLOCK_TOKENS + 7
    cut = pieces_of(5, part(1, tokens=tokens))
    assert [(piece.trace, piece.number, piece.tokens) for piece in cut] == [
        (5, 0, BLOCK_TOKENS),
        (5, 1, BLOCK_TOKENS),
        (5, 2, 7),
    ]
    for index, expected in enumerate(experts_of(1, tokens, LAYERS)):
        joined = b"".join(piece.experts[index] for piece in cut)
        np.testing.assert_array_equal(np.frombuffer(joined, np.uint8).reshape(expected.shape), expected)
