"""Every store: what is saved is there, once, thinned as the settings say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.service.counts.account import Account
from moescope.service.store.interface import Store
from moescope.service.store.records import (
    ArrivedPart,
    Document,
    Forgotten,
    Posting,
    StoredTotals,
    StoreError,
    TraceQuery,
    TraceShape,
)
from moescope.service.store.writer import StoreWriter
from moescope.service.traces.routing import slots_of
from tests.service.frames import EPOCH, frame, producer
from tests.service.store.accounts import BORN, LATER, instants, key, posting
from tests.service.trace_parts import LAYERS, experts_of, part

Open = Callable[..., Store]


def test_what_was_saved_is_there_after_opening_again(open_store: Open) -> None:
    open_store().save([posting([4, 2, 1, 1], 5), posting([6, 6, 6, 6], 7, dp_rank=1)])
    store = open_store()
    saved = {item.key: item for item in store.accounts()}
    assert set(saved) == {key(0), key(1)}
    assert (saved[key(1)].birth, saved[key(1)].at) == (BORN, BORN + 7)
    np.testing.assert_array_equal(saved[key(1)].account.totals.counts, [6] * 8)
    [found] = store.totals_at(key(0), [BORN + 6])
    assert found is not None
    np.testing.assert_array_equal(found.totals.counts, [4, 2, 1, 1, 4, 2, 1, 1])


def test_documents_are_kept_by_name_until_they_are_removed(open_store: Open) -> None:
    open_store().save(
        [
            Document("a", "two", b"2"),
            Document("a", "one", b"1"),
            Document("b", "one", b""),
            Document("a", "x", b"x"),
        ]
    )
    store = open_store()
    store.save([Document("a", "two", b"22"), Document("a", "x", None), Document("a", "absent", None)])
    assert open_store().documents("a") == [("one", b"1"), ("two", b"22")]
    assert open_store().documents("b") == [("one", b"")]
    assert open_store().documents("c") == []


def test_totals_are_the_newest_at_or_before_an_instant(open_store: Open) -> None:
    store = open_store()
    store.save([posting([2 * n, 0, 0, 0], n) for n in (2, 4, 6)])
    found = store.totals_at(key(), [BORN + s for s in (1, 2, 5, 60)])
    assert [item and int(item.totals.counts[0]) for item in found] == [None, 4, 8, 12]
    oldest = store.oldest(key())
    assert oldest is not None
    assert oldest.at == BORN + 2
    assert store.totals_at(key(1), [BORN + 5]) == [None]
    assert store.oldest(key(1)) is None


def test_the_begin_of_what_is_kept_of_each_producer(open_store: Open) -> None:
    store = open_store()
    assert store.begins() == {}
    store.save([posting([2, 4], after_s=second, dp_rank=rank) for rank, second in ((0, 5), (0, 9), (1, 7))])
    assert store.begins() == {key(0): BORN + 5, key(1): BORN + 7}


def test_a_second_keeps_its_last_totals(open_store: Open) -> None:
    store = open_store()
    for tenth in range(25):
        store.save([posting([2 * tenth, 0, 0, 0], tenth / 10)])
    assert store.usage().snapshots == 3
    found = store.totals_at(key(), [BORN + 0.95, BORN + 1.95, BORN + 2.95])
    assert [item and int(item.totals.counts[0]) for item in found] == [18, 38, 48]


def test_saving_twice_is_saving_once(open_store: Open) -> None:
    store = open_store()
    for _ in range(2):
        store.save([posting([2, 0, 0, 0], 5)])
    assert store.usage().snapshots == 1
    assert len(list(store.accounts())) == 1


def test_all_or_nothing(open_store: Open) -> None:
    store = open_store()
    broken = posting([2, 0, 0, 0], 5, dp_rank=1)
    object.__setattr__(broken, "key", ("prod", "tiny", object(), 0, 0))
    with pytest.raises(StoreError):
        store.save([posting([2, 0, 0, 0], 5), broken])
    assert list(store.accounts()) == []
    store.save([posting([2, 0, 0, 0], 5)])
    assert len(list(store.accounts())) == 1


def test_a_forgotten_producer_goes_with_its_history(open_store: Open) -> None:
    store = open_store()
    store.save([posting([2, 0, 0, 0], 5), posting([2, 0, 0, 0], 5, dp_rank=1)])
    store.save([Forgotten(key(0), ((EPOCH, 5001),), BORN + 6)])
    assert [item.key for item in store.accounts()] == [key(1)]
    assert store.usage().snapshots == 1


def test_another_shape_begins_a_new_history(open_store: Open) -> None:
    store = open_store()
    who, account = producer(dp_size=2), Account(max_epochs=4)
    for counts, epoch, after_s in (([2, 0, 0, 0], EPOCH, 5), ([2, 0], LATER, 9)):
        before = account.generation
        account.post(frame({1: counts, 3: counts}, who=who, epoch=epoch), at=BORN + after_s)
        began_again = account.generation != before
        store.save([Posting(who.key, BORN, BORN + after_s, account.state(), began_again)])
    assert instants(store, 20) == [9]


def test_history_is_rolled_up_and_ends(open_store: Open) -> None:
    store = open_store(keep_1s_s=100, keep_10s_s=1000, keep_5min_s=3000)
    base = 100 * 36  # a whole number of 300 s after Unix time 1.7e9 is at 100, 400, ...
    store.save([posting([2, 0, 0, 0], second) for second in range(base, base + 400)])
    store.maintain(BORN + base + 400)
    recent = instants(store, base + 400)
    assert [s for s in recent if s >= base + 300] == list(range(base + 300, base + 400))
    assert [s for s in recent if s < base + 300] == list(range(base + 9, base + 300, 10))
    store.maintain(BORN + base + 1500)
    assert [s for s in instants(store, base + 400) if s < base + 400] == [base + 99, base + 399]
    store.maintain(BORN + base + 1500)
    assert instants(store, base + 400) == [base + 99, base + 399]
    store.maintain(BORN + base + 3600)
    assert instants(store, base + 400) == [base + 399]  # the newest stays: it is the totals themselves


def test_a_clock_that_jumps_forward_costs_no_history(open_store: Open) -> None:
    clock = _Clock(BORN + 200)
    wanted = list(range(200))
    store = open_store(keep_1s_s=1000)
    store.save([posting([2, 0, 0, 0], second) for second in wanted])
    for started in range(2):  # also if the service starts again meanwhile
        writer = StoreWriter(store, clock, maintenance_s=0.02)
        clock.wait_for(3)
        clock.now = BORN + 365 * 86400
        clock.wait_for(3)
        assert instants(store, 200) == wanted, started
        writer.close()
        store = open_store(keep_1s_s=1000)


class _Clock:
    """Unix time, which counts how often it is looked at."""

    def __init__(self, now: float) -> None:
        self.now, self.looks = now, 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now

    def wait_for(self, more: int) -> None:
        until, deadline = self.looks + more, time.monotonic() + 60
        while self.looks < until:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def kept(store: Store) -> list[str]:
    return [found.names[-1] for found in store.traced_requests(TraceQuery(limit=10_000))]


def test_traces_live_as_long_as_they_should(open_store: Open) -> None:
    store = open_store(keep_traces_s=1000)
    store.save([ArrivedPart(part(1), BORN), ArrivedPart(part(2), BORN + 500)])
    store.maintain(BORN + 999)
    assert kept(store) == ["x2", "x1"]
    first = store.traced_requests(TraceQuery(name="x1"))[0]
    store.maintain(BORN + 1001)
    assert kept(store) == ["x2"]
    assert store.traces(first.number, None) == []
    store.maintain(BORN + 1501)
    assert store.usage().traces == 0


def test_shapes_are_those_of_the_parts_that_are_kept(open_store: Open) -> None:
    store = open_store()
    wide = part(
        2,
        part=1,
        parts=3,
        layers=[MoeLayer(7, 300, 2)],
        experts=[np.full((4, 2), 299, "<u2")],
        runs=[(0, 4)],
        id_bytes=2,
    )
    kept_parts = [part(1, part=0, parts=2), wide]
    assert store.shapes([]) == []
    assert store.shapes(kept_parts) == [None, None]
    store.save([ArrivedPart(made, BORN) for made in kept_parts])
    assert open_store().shapes([wide, part(3), *kept_parts]) == [
        TraceShape(3, 2, (MoeLayer(7, 300, 2),)),
        None,
        TraceShape(2, 1, tuple(LAYERS)),
        TraceShape(3, 2, (MoeLayer(7, 300, 2),)),
    ]
    assert open_store().shapes([part(1, epoch=EPOCH + 1)]) == [None]


def test_a_part_that_comes_again_with_other_tokens_leaves_what_can_be_read(open_store: Open) -> None:
    store = open_store()
    for made in (part(1, tokens=10), part(1, tokens=6)):
        store.save([ArrivedPart(made, BORN)])
    [found] = store.traced_requests(TraceQuery())
    assert found.tokens == 10
    for worker in store.traces(found.number, None):
        assert len(worker.positions) == 10
        assert all(len(ids) == 10 for ids in worker.experts)


def test_slots_of_a_trace(open_store: Open) -> None:
    store = open_store()
    store.save([ArrivedPart(part(1, tokens=1234), BORN)])
    [found] = store.traced_requests(TraceQuery())
    counts = slots_of(store.traces(found.number, None))
    for layer, ids in zip(LAYERS, experts_of(1, 1234), strict=True):
        np.testing.assert_array_equal(
            counts[layer.layer], np.bincount(ids.reshape(-1), minlength=layer.num_experts)
        )


def test_a_search_by_numbers_beyond_all_that_is_kept(open_store: Open) -> None:
    store = open_store()
    store.save([ArrivedPart(part(1), BORN)])
    layer, experts = LAYERS[0].layer, experts_of(1, part(1).tokens)[0]
    taken = int(experts.max())
    for number, query in (
        (1, TraceQuery(layer=layer, expert=taken)),
        (0, TraceQuery(layer=layer, expert=65536 + taken)),
        (1, TraceQuery(end=1e300)),
        (0, TraceQuery(start=1e300)),
    ):
        assert len(store.traced_requests(query)) == number, query


def test_only_complete_traces_are_found_by_what_is_in_them(open_store: Open) -> None:
    """A request whose one worker's trace is whole, and whose other worker's first part never came."""
    store = open_store()
    here, elsewhere = (np.tile(np.array(ids, np.uint8), (10, 1)) for ids in ((5, 7), (6, 7)))
    others = experts_of(1, 10)[1:]
    whole = part(1, experts=[here, *others], who={"tp_size": 2}, weights_version=3)
    half = part(
        1,
        part=1,
        parts=2,
        experts=[elsewhere, *others],
        who={"tp_size": 2, "tp_rank": 1},
        weights_version=4,
    )
    store.save([ArrivedPart(whole, BORN), ArrivedPart(half, BORN)])
    layer = LAYERS[0].layer

    def found(**wanted: int) -> int:
        return len(store.traced_requests(TraceQuery(**wanted)))  # type: ignore[arg-type]

    assert [found(weights_version=version) for version in (3, 4)] == [1, 0]
    assert [found(layer=layer, expert=expert) for expert in (5, 6)] == [1, 0]
    first = part(1, parts=2, who={"tp_size": 2, "tp_rank": 1}, experts=[here, *others], weights_version=4)
    store.save([ArrivedPart(first, BORN)])
    assert [found(weights_version=version) for version in (3, 4)] == [1, 1]
    assert [found(layer=layer, expert=expert) for expert in (5, 6)] == [1, 1]


def test_several_producers_are_asked_for_at_once(open_store: Open) -> None:
    store = open_store()
    for rank in range(2):
        store.save([posting([2 * second, 0, 0, 0], second, dp_rank=rank) for second in (1, 2, 5 + rank)])
    keys, asked = [key(0), key(9), key(1)], [BORN + second for second in (0, 1, 3, 5, 60)]
    assert _times(store.totals_of(keys, asked)) == _times([store.totals_at(each, asked) for each in keys])
    assert _times(store.totals_of(keys, asked))[2] == [None, 1, 2, 2, 6]
    assert _times([store.oldest_of(keys)]) == [[1, None, 1]]
    assert store.totals_of([], asked) == []
    assert store.oldest_of([]) == []


def _times(found: Sequence[Sequence[StoredTotals | None]]) -> list[list[int | None]]:
    return [[None if item is None else round(item.at - BORN) for item in items] for items in found]
