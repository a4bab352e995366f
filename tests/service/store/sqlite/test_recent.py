"""Blocks that are held give what unpacking them would, within their bound."""

from __future__ import annotations

import sqlite3
from functools import partial

import numpy as np
import pytest

from moescope.service.store.sqlite import recent
from moescope.service.store.sqlite.recent import Place, RecentBlocks
from moescope.service.store.sqlite.segments import SegmentWriter, read_packed
from tests.service.trace_parts import LAYERS, experts_of


def block(trace: int, tokens: int = 20) -> bytes:
    return SegmentWriter().packed([ids.tobytes() for ids in experts_of(trace, tokens)])


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The blocks that were unpacked."""
    seen: list[bytes] = []

    def read(blob: bytes, *arguments: object) -> object:
        seen.append(blob)
        return read_packed(blob, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(recent, "read_packed", read)
    return seen


def test_a_block_is_unpacked_once_for_each_question(unpacked: list[bytes]) -> None:
    blocks, one = RecentBlocks(), block(1)
    for _ in range(3):
        for wanted in (None, [3], [1]):
            found = blocks.read(lambda: bytes(bytearray(one)), LAYERS, 1, 20, wanted).of_layers
            expected = [
                ids
                for layer, ids in zip(LAYERS, experts_of(1, 20), strict=True)
                if wanted in (None, [layer.layer])
            ]
            assert len(found) == len(expected)
            for ids, of_layer in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ids, of_layer)
                assert not ids.flags.writeable
    assert len(unpacked) == 3
    blocks.forget()
    blocks.read(lambda: one, LAYERS, 1, 20, None)
    assert len(unpacked) == 4


def test_what_is_held_is_bounded_and_the_oldest_goes(unpacked: list[bytes]) -> None:
    made = [block(n) for n in range(4)]
    each = len(made[0]) + 20 * 6
    blocks = RecentBlocks(2 * each + 40)
    for blob in (made[0], made[1], made[0], made[2], made[0], made[1]):
        blocks.read(partial(bytes, blob), LAYERS, 1, 20, None)
    assert [made.index(blob) for blob in unpacked] == [0, 1, 2, 1]
    large = block(9, tokens=200)
    for _ in range(2):
        blocks.read(lambda: large, LAYERS, 1, 200, None)
    blocks.read(lambda: made[1], LAYERS, 1, 20, None)
    assert unpacked[4:] == [large, large]


def test_damage_is_an_error_each_time() -> None:
    blocks, one = RecentBlocks(), block(1)
    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            blocks.read(lambda: one[:-3], LAYERS, 1, 20, None)


def test_a_block_is_read_once_until_something_is_committed(unpacked: list[bytes]) -> None:
    loaded: list[bytes] = []

    def load(blob: bytes) -> bytes:
        loaded.append(blob)
        return blob

    one, other = block(1), block(2)
    connection = sqlite3.connect(":memory:")
    blocks = RecentBlocks()

    def read(blob: bytes, place: Place) -> np.ndarray:
        return blocks.read(lambda: load(blob), LAYERS, 1, 20, None, place).of_layers[1]

    for _ in range(3):
        np.testing.assert_array_equal(read(one, Place(connection, 1, 7)), experts_of(1, 20)[1])
    assert (len(loaded), len(unpacked)) == (1, 1)
    read(one, Place(connection, 2, 7))  # a commit: the same bytes need not be unpacked
    assert (len(loaded), len(unpacked)) == (2, 1)
    read(one, Place(connection, 2, 7))
    assert len(loaded) == 2
    # Another commit: the number is another block's now.
    np.testing.assert_array_equal(read(other, Place(connection, 3, 7)), experts_of(2, 20)[1])
    other_connection = sqlite3.connect(":memory:")
    np.testing.assert_array_equal(read(other, Place(other_connection, 2, 7)), experts_of(2, 20)[1])
    for opened in (connection, other_connection):
        opened.close()
