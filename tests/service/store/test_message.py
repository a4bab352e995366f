"""Messages written in pieces are the bytes that msgspec writes, and come back, however large."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.service.store.blobs import Planes, compress_pieces, decompress, ints, packed_ints
from moescope.service.store.message import Message, pieces_of
from moescope.service.store.packed import Once, pack
from tests.service.store.accounts import full_account


class _Item(Message, frozen=True):
    array: Any
    name: str = "x"


class _All(Message, frozen=True):
    items: list[_Item]
    one: _Item | None
    numbers: list[int]


class _Long(Message, frozen=True):
    """As many fields as need a head of more than one byte."""

    a: int
    b: int
    c: int
    d: int
    e: int
    f: int
    g: int
    h: int
    i: int
    j: int
    k: int
    m: int
    n: int
    o: int
    p: int
    q: Any


def plain(value: object) -> Any:
    """With bytes in place of planes."""
    if isinstance(value, Planes):
        return bytes(value)
    if isinstance(value, Message):
        return type(value)(*[plain(getattr(value, name)) for name in value.__struct_fields__])
    return [plain(item) for item in value] if isinstance(value, list) else value


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40), max_size=20))
def test_they_are_the_bytes_of_msgspec(arrays: list[list[int]]) -> None:
    items = [_Item(packed_ints(np.array(array, np.int64))) for array in arrays]
    message = _All(items, items[0] if items else None, [1, 2**40])
    assert b"".join(pieces_of(message)) == msgspec.msgpack.encode(plain(message))
    for item, array in zip(items, arrays, strict=True):
        assert ints(bytes(item.array), len(array)).tolist() == array


@pytest.mark.parametrize("count", [15, 16, 65_535, 65_536])
def test_heads_of_lists_and_of_bytes_of_every_size(count: int) -> None:
    array = packed_ints(np.arange(count // 8 + 1))
    for message in (_All([_Item(None)] * count, None, []), _Long(*range(15), array)):
        assert b"".join(pieces_of(message)) == msgspec.msgpack.encode(plain(message))


def test_totals_of_workers_are_the_bytes_of_msgspec() -> None:
    packed = pack(full_account().totals)
    assert b"".join(pieces_of(packed)) == msgspec.msgpack.encode(plain(packed))


def test_an_array_that_totals_share_is_packed_once() -> None:
    once, values = Once(), np.arange(3)
    assert once.ints(values) is once.ints(values)
    assert once.ints(values) is not once.ints(values.copy())


@pytest.mark.parametrize("repeats", [False, True])
def test_a_large_message_comes_back_and_is_never_in_memory_as_a_whole(repeats: bool) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 16, 1 << 20)
    array = packed_ints(values)
    message = _All([_Item(array), _Item(array)], None, [])
    tracemalloc.start()
    try:
        blob = compress_pieces(list(pieces_of(message)), repeats=repeats)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(blob) + (1 << 20) < 2 * len(array)
    assert decompress(blob) == msgspec.msgpack.encode(plain(message))
    once = compress_pieces(list(pieces_of(_All([_Item(array)], None, []))), repeats=repeats)
    assert (len(blob) < 1.1 * len(once)) == repeats
