"""Short traces share blocks in the embedded store, and are read and kept apart as before."""

from __future__ import annotations

import sqlite3
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import NO_EXPERT
from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, StoreError, TraceQuery
from moescope.service.store.sqlite import packing
from moescope.service.store.sqlite.packing import BLOCK_TOKENS
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.store.accounts import BORN
from tests.service.store.sqlite.packed_traces import TOKENS, TTL, arrived, check, rows
from tests.service.trace_parts import LAYERS, experts_of, part


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path, Retention(trace_s=TTL))
    yield made
    made.close()


def test_traces_that_come_one_by_one_are_packed_when_there_are_enough(
    store: SqliteStore, tmp_path: Path
) -> None:
    for number in range(1, 13):
        store.save([arrived(number)])
        check(store, list(range(1, number + 1)))
        assert rows(tmp_path, "block") == number // 5
        assert rows(tmp_path, "segment") == number % 5


def test_traces_that_come_together_are_packed_at_once(store: SqliteStore, tmp_path: Path) -> None:
    store.save([arrived(number) for number in range(1, 12)])
    assert (rows(tmp_path, "block"), rows(tmp_path, "segment")) == (2, 1)
    check(store, list(range(1, 12)))


def test_many_blocks_at_once_have_the_hits_of_their_own_traces(store: SqliteStore, tmp_path: Path) -> None:
    numbers = list(range(1, 41))
    store.save([ArrivedPart(part(n, tokens=TOKENS, experts=_one_expert(n)), BORN) for n in numbers])
    assert rows(tmp_path, "block") == 8
    for number in numbers:
        found = store.traced_requests(TraceQuery(layer=LAYERS[1].layer, expert=number))
        assert [item.names[-1] for item in found] == [f"x{number}"]


def test_tiny_traces_of_many_experts_are_packed_within_a_bound(store: SqliteStore, tmp_path: Path) -> None:
    """What a block takes doesn't grow with traces x layers x experts, which no body's size bounds."""
    layers = [MoeLayer(i, 8192, 1) for i in range(128)]
    many = [
        part(n, layers=layers, tokens=1, id_bytes=2, experts=[np.full((1, 1), n, "<u2")] * len(layers))
        for n in range(1, 66)
    ]
    tracemalloc.start()
    store.save([ArrivedPart(item, BORN) for item in many])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (rows(tmp_path, "block"), rows(tmp_path, "segment")) == (1, 1)
    assert peak < 24 << 20  # a byte for each trace and expert would be 64 MiB
    [found] = store.traced_requests(TraceQuery(layer=100, expert=33))
    assert found.names[-1] == "x33"


def _one_expert(number: int) -> list[np.ndarray]:
    """Ids whose second layer has this expert alone."""
    first, second = experts_of(number, TOKENS)
    return [first, np.full_like(second, number)]


def test_a_failing_helper_fails_the_transaction_and_the_next_goes_on(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_hits", _broken)
        with pytest.raises(MemoryError):
            store.save([arrived(number) for number in range(1, 12)])
    assert [rows(tmp_path, table) for table in ("trace", "block", "segment", "piece")] == [0] * 4
    store.save([arrived(number) for number in range(1, 12)])
    check(store, list(range(1, 12)))


def _broken(taken: np.ndarray) -> bytes:
    raise MemoryError


def test_a_long_trace_in_parts(store: SqliteStore) -> None:
    tokens = 3 * BLOCK_TOKENS + 11
    experts, cut = experts_of(1, tokens), 2 * BLOCK_TOKENS + 5
    for number, (first, end) in enumerate([(cut, tokens), (0, cut)]):
        made = part(
            1,
            experts=[ids[first:end] for ids in experts],
            runs=[(first, end - first)],
            part=1 - number,
            parts=2,
        )
        store.save([ArrivedPart(made, BORN)])
    check(store, [1], tokens)


def test_what_fails_is_not_remembered(store: SqliteStore, tmp_path: Path) -> None:
    store.save([arrived(number) for number in (1, 2)])
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute("CREATE TRIGGER fail BEFORE INSERT ON block BEGIN SELECT raise(ABORT, 'no'); END")
    with pytest.raises(StoreError, match="no"):
        store.save([arrived(number) for number in (3, 4, 5)])
    check(store, [1, 2])
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute("DROP TRIGGER fail")
    store.save([arrived(number) for number in (3, 4, 5)])
    check(store, [1, 2, 3, 4, 5])
    assert (rows(tmp_path, "block"), rows(tmp_path, "segment")) == (1, 0)


def test_what_waits_survives_a_restart(store: SqliteStore, tmp_path: Path) -> None:
    store.save([arrived(number) for number in (1, 2, 3)])
    store.close()
    again = SqliteStore(tmp_path, Retention(trace_s=TTL))
    again.save([arrived(number) for number in (4, 5)])
    check(again, [1, 2, 3, 4, 5])
    again.close()


def test_traces_of_other_shapes_wait_apart(store: SqliteStore, tmp_path: Path) -> None:
    other = [MoeLayer(1, 300, 2), MoeLayer(3, 64, 4)]
    ids = [np.full((TOKENS, layer.top_k), 299 % layer.num_experts, "<u2") for layer in other]
    ids[0][3, 1] = NO_EXPERT
    for number in range(1, 11):
        odd = part(number, experts=ids, runs=[(0, TOKENS)], layers=other, id_bytes=2)
        store.save([ArrivedPart(odd, BORN) if number % 2 else arrived(number)])
    assert (rows(tmp_path, "block"), rows(tmp_path, "segment")) == (2, 0)
    for found in store.traced_requests(TraceQuery()):
        [trace] = store.traces(found.number, None)
        expected = ids if found.number % 2 else experts_of(found.number, TOKENS)
        for array, wanted in zip(trace.experts, expected, strict=True):
            np.testing.assert_array_equal(array, wanted)
    hit = store.traced_requests(TraceQuery(layer=1, expert=299))
    assert [found.number for found in hit] == [9, 7, 5, 3, 1]


def test_a_trace_that_goes_while_it_waits_is_not_packed(store: SqliteStore, tmp_path: Path) -> None:
    """SQLite gives the number of the last trace again: a new trace must not get the old one's tokens."""
    store.save([arrived(1)])
    store.maintain(BORN + TTL + 1)
    check(store, [])
    later = BORN + TTL
    for number in range(2, 7):
        store.save([arrived(number, later)])
    check(store, [2, 3, 4, 5, 6])
    assert (rows(tmp_path, "block"), rows(tmp_path, "segment")) == (1, 0)
