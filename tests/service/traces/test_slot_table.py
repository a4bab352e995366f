"""Slots of many requests in memory: bounded, read once, gone when their requests are."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, TraceQuery
from moescope.service.store.slots import LONG, ListedRequest
from moescope.service.store.sqlite.store import FILE, SqliteStore
from moescope.service.traces.slot_table import BATCH, Compared, Group, Reading, SlotTable, histogram_of
from moescope.service.wanted import UnwantedError, wanted_until
from tests.service.store.accounts import BORN
from tests.service.trace_parts import LAYERS, experts_of, part

ALL = TraceQuery(limit=10_000)
FOR_EVER = 1e9


class Counting(SqliteStore):
    """A store that notes whose slots were read."""

    def __init__(self, folder: Path, retention: Retention) -> None:
        super().__init__(folder, retention)
        self.read: list[int] = []

    def slots(self, numbers):  # type: ignore[no-untyped-def]
        self.read += numbers
        return super().slots(numbers)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Counting]:
    opened = Counting(tmp_path, Retention(trace_s=100))
    yield opened
    opened.close()


def save(store: SqliteStore, *numbers: int, tokens: int = 10, at: float = BORN) -> None:
    store.save([ArrivedPart(part(number, tokens=tokens), at) for number in numbers])


def gathered(table: SlotTable, listed: list[ListedRequest]) -> Compared:
    found = table.gather(listed, FOR_EVER, None)
    assert isinstance(found, Compared)
    return found


def numbers_of(found: Compared) -> list[int]:
    return sorted(number for group in found.groups for number in group.numbers.tolist())


def slots_of(trace: int, tokens: int = 10) -> np.ndarray:
    ids = experts_of(trace, tokens)
    return np.concatenate(
        [np.bincount(of.ravel(), minlength=layer.num_experts) for of, layer in zip(ids, LAYERS, strict=True)]
    )


def test_a_request_is_read_once(store: Counting) -> None:
    save(store, *range(1, 200))
    table = SlotTable(store, 1 << 20)
    first = gathered(table, store.listed(ALL))
    assert (first.requests, first.tokens, first.left_out, first.unreadable) == (199, 1990, 0, 0)
    for group in first.groups:
        for row, number in enumerate(group.numbers.tolist()):
            np.testing.assert_array_equal(group.counts[row], slots_of(number))
            np.testing.assert_array_equal(group.of_layer[row], [20, 40])
        assert len(group.numbers) <= 256
    save(store, 200)
    assert numbers_of(gathered(table, store.listed(ALL))) == list(range(1, 201))
    assert sorted(store.read) == list(range(1, 201))
    few = gathered(table, store.listed(TraceQuery(limit=3)))
    assert numbers_of(few) == [198, 199, 200]
    total = sum(slots_of(number) for number in range(198, 201))
    np.testing.assert_array_equal(np.concatenate(list(histogram_of(few.groups).values())), total)


def test_reading_tells_how_far_it_is_and_goes_on(store: Counting) -> None:
    save(store, *range(1, 2 * BATCH + 2))
    now = iter(range(1000))
    table = SlotTable(store, 1 << 20, lambda: float(next(now)))
    listed, told = store.listed(ALL), []
    found = table.gather(listed, 1.5, None)
    while isinstance(found, Reading):
        told.append((found.read, found.total))
        found = table.gather(listed, 1.5, found.total)
    assert told == [(BATCH, len(listed)), (2 * BATCH, len(listed))]
    assert found.requests == len(listed)
    assert len(store.read) == len(set(store.read))


def test_long_requests_are_read_apart_and_by_size(store: Counting) -> None:
    save(store, 1)
    layers = [MoeLayer(1, 4, 2)]
    for trace, tokens in ((2, LONG), (3, 70_000)):
        ids = np.tile(np.array([[0, 3]], np.uint8), (tokens, 1))
        store.save([ArrivedPart(part(trace, tokens=tokens, experts=[ids], layers=layers), BORN)])
    found = gathered(SlotTable(store, 1 << 20), store.listed(ALL))
    assert store.read == [1]
    by_number = {int(group.numbers[0]): group for group in found.groups}
    assert {number: group.counts.dtype.itemsize for number, group in by_number.items()} == {1: 1, 2: 2, 3: 4}
    assert by_number[3].counts.tolist() == [[70_000, 0, 0, 70_000]]


def test_the_newest_that_fit_are_kept(store: Counting) -> None:
    save(store, *range(1, 11))
    listed = store.listed(ALL)
    one = gathered(SlotTable(store, 1 << 20), listed[:1]).groups[0].nbytes
    table = SlotTable(store, 4 * one)
    found = gathered(table, listed)
    assert (numbers_of(found), found.left_out) == ([7, 8, 9, 10], 6)
    # What nobody asks about makes room.
    assert numbers_of(gathered(table, listed[6:])) == [1, 2, 3, 4]
    # So do older ones, where not all that are asked about fit.
    for newest_first, kept in ((listed, [7, 8, 9, 10]), (listed[2:], [5, 6, 7, 8])):
        again = gathered(table, newest_first)
        assert (numbers_of(again), again.left_out) == (kept, len(newest_first) - 4)
        assert sum(group.nbytes for group in table._groups) <= 4 * one


def test_what_left_the_store_is_not_kept(store: Counting) -> None:
    save(store, 1, 2)
    save(store, 3, at=BORN + 90)
    now = [0.0]
    table = SlotTable(store, 1 << 20, lambda: now[0])
    assert gathered(table, store.listed(ALL)).requests == 3
    store.maintain(BORN + 150)
    assert gathered(table, store.listed(ALL)).requests == 1
    now[0] = 61.0
    gathered(table, store.listed(ALL))
    assert numbers_of(Compared(tuple(table._groups), 0, 0, 0, 0)) == [3]


def test_more_workers_of_a_request_are_counted_when_they_come(store: Counting) -> None:
    save(store, 1)
    table = SlotTable(store, 1 << 20)
    gathered(table, store.listed(ALL))
    other = part(1, tokens=5, experts=experts_of(9, 5), who={"tp_rank": 1})
    store.save([ArrivedPart(other, BORN)])
    [group] = gathered(table, store.listed(ALL)).groups
    np.testing.assert_array_equal(group.counts, [slots_of(1) + slots_of(9, 5)])


def test_what_cannot_be_read_is_counted_and_not_read_again(
    store: Counting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(store, 1, 2)
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("UPDATE segment SET experts = randomblob(90) WHERE trace = 1")
    connection.close()
    table = SlotTable(store, 1 << 20)
    for _ in range(2):
        found = gathered(table, store.listed(ALL))
        assert (numbers_of(found), found.requests, found.unreadable, found.left_out) == ([2], 1, 1, 0)
    assert sorted(store.read) == [1, 2]


def test_nothing_is_read_for_a_client_that_left(store: Counting) -> None:
    save(store, 1)
    left = threading.Event()
    left.set()
    table = SlotTable(store, 1 << 20)
    with wanted_until(left), pytest.raises(UnwantedError):
        table.gather(store.listed(ALL), FOR_EVER, None)
    assert store.read == []
    assert gathered(table, store.listed(ALL)).requests == 1


def test_groups_are_summed_within_their_bytes() -> None:
    """256 rows of 255: more than two bytes hold would be one more row."""
    layer = MoeLayer(0, 2, 1)
    counts = np.full((256, 2), 255, np.uint8)
    sums = np.full((256, 1), 510, np.int64)
    group = Group((layer,), np.arange(256), counts, sums, np.zeros((256, 1)))
    assert histogram_of([group, group])[layer].tolist() == [2 * 256 * 255] * 2
