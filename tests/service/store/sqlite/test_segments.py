"""Experts as blobs, packed and quick."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.service.store.sqlite.segments import SegmentWriter, read_packed, read_quick

LAYERS = [MoeLayer(0, 300, 2), MoeLayer(3, 64, 4), MoeLayer(9, 8, 1)]
TOKENS = 250
WAYS = [(SegmentWriter.packed, read_packed), (SegmentWriter.quick, read_quick)]

Write = Callable[[SegmentWriter, Sequence[bytes]], bytes]
Read = Callable[..., list[np.ndarray]]


def ids_of(dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [
        rng.integers(0, min(layer.num_experts, 256), (TOKENS, layer.top_k)).astype(dtype) for layer in LAYERS
    ]


@pytest.mark.parametrize(("write", "read"), WAYS)
@pytest.mark.parametrize("dtype", ["u1", "<u2"])
def test_ids_come_back_in_their_order(write: Write, read: Read, dtype: str) -> None:
    ids = ids_of(dtype)
    blob = write(SegmentWriter(), [array.tobytes() for array in ids])
    size = np.dtype(dtype).itemsize
    for wanted in (None, [3], [9, 0], []):
        found = read(blob, LAYERS, size, TOKENS, wanted)
        expected = [
            a for a, layer in zip(ids, LAYERS, strict=True) if wanted is None or layer.layer in wanted
        ]
        assert len(found) == len(expected)
        for array, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize(("write", "read"), WAYS)
def test_damage_is_noticed(write: Write, read: Read) -> None:
    blob = write(SegmentWriter(), [array.tobytes() for array in ids_of("u1")])
    for at in range(0, len(blob), 7):
        broken = bytearray(blob)
        broken[at] ^= 0x10
        try:
            found = read(bytes(broken), LAYERS, 1, TOKENS, None)
        except ValueError as error:
            assert "damaged" in str(error)  # noqa: PT017 whether it is raised differs
        else:  # a bit that says nothing about the ids
            for array, other in zip(found, ids_of("u1"), strict=True):
                np.testing.assert_array_equal(array, other)
    for broken in (b"", blob[:9], blob[:-1], blob + b"x"):
        with pytest.raises(ValueError, match="damaged"):
            read(broken, LAYERS, 1, TOKENS, None)


@pytest.mark.parametrize(("write", "read"), WAYS)
def test_another_number_of_tokens_is_damage(write: Write, read: Read) -> None:
    blob = write(SegmentWriter(), [array.tobytes() for array in ids_of("u1")])
    with pytest.raises(ValueError, match="damaged"):
        read(blob, LAYERS, 1, TOKENS + 1, None)
