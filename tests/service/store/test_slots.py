"""Slots per expert of whole requests, in every store."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import NO_EXPERT
from moescope.service.settings import Settings
from moescope.service.store.interface import Store
from moescope.service.store.open import open_store as open_setting
from moescope.service.store.records import ArrivedPart, TraceQuery
from moescope.service.store.slots import MAX_EXPERTS, RequestSlots, SlotSum, slots_of_workers
from moescope.service.traces.routing import slots_of
from tests.service.store.accounts import BORN
from tests.service.trace_parts import LAYERS, experts_of, part

ALL = TraceQuery(limit=1000)


@pytest.fixture
def store(store_setting: str) -> Iterator[Store]:
    opened = open_setting(Settings(store=store_setting))  # type: ignore[arg-type]
    yield opened
    opened.close()


def counts_of(experts: list[np.ndarray], layers: list[MoeLayer]) -> np.ndarray:
    """By another way than the store: a comparison for each expert."""
    return np.concatenate(
        [
            (ids.reshape(-1, 1) == np.arange(layer.num_experts)).sum(axis=0)
            for ids, layer in zip(experts, layers, strict=True)
        ]
    )


def read_apart(store: Store, number: int) -> RequestSlots:
    found = slots_of_workers(number, store.traces(number, None), lambda: None)
    assert found is not None
    return found


def test_slots_are_those_of_the_tokens_packed_or_not(store: Store) -> None:
    """Twenty of 150 tokens fill a block and more, so that some are packed and some wait."""
    tokens = {trace: 150 if trace <= 20 else trace - 20 for trace in range(1, 31)}
    for trace, count in tokens.items():
        store.save([ArrivedPart(part(trace, tokens=count), BORN + trace)])
    found = store.listed(ALL)
    assert [item.tokens for item in found] == [tokens[trace] for trace in range(30, 0, -1)]
    assert {(item.server, item.model, item.traces) for item in found} == {("prod", "tiny", 1)}
    numbers = [item.number for item in reversed(found)]
    assert [item.number for item in store.traced_requests(ALL)][::-1] == numbers
    wanted = numbers[::3]
    for one in store.slots(wanted):
        trace = 1 + numbers.index(one.number)
        assert one.layers == tuple(LAYERS)
        np.testing.assert_array_equal(one.counts, counts_of(experts_of(trace, tokens[trace]), LAYERS))
        apart = read_apart(store, one.number)
        assert apart.layers == one.layers
        np.testing.assert_array_equal(apart.counts, one.counts)
    assert [one.number for one in store.slots(wanted)] == wanted
    assert store.slots([numbers[-1] + 1]) == []


def test_slots_of_several_workers_are_added_up(store: Store) -> None:
    """Two TP workers of the first stage have some of the tokens each, one of the second has its layer."""
    low, high = [MoeLayer(1, 16, 2)], [MoeLayer(5, 32, 2)]
    workers = [
        ({"tp_rank": 0}, 5, low),
        ({"tp_rank": 1}, 4, low),
        ({"pp_rank": 1}, 9, high),
    ]
    experts = [experts_of(10 + n, tokens, layers) for n, (_, tokens, layers) in enumerate(workers)]
    for n, (who, tokens, layers) in enumerate(workers):
        made = part(1, tokens=tokens, experts=experts[n], layers=layers, who=who)
        store.save([ArrivedPart(made, BORN)])
        [listed] = store.listed(ALL)
        assert listed.traces == n + 1
    [one] = store.slots([listed.number])
    assert one.layers == (*low, *high)
    together = [np.concatenate([experts[0][0], experts[1][0]]), experts[2][0]]
    np.testing.assert_array_equal(one.counts, counts_of(together, [*low, *high]))


def test_masked_slots_are_of_no_expert(store: Store) -> None:
    layers = [MoeLayer(0, 300, 2)]
    ids = np.array([[299, NO_EXPERT], [299, 7]], "<u2")
    store.save([ArrivedPart(part(1, tokens=2, experts=[ids], layers=layers, id_bytes=2), BORN)])
    [listed] = store.listed(ALL)
    [one] = store.slots([listed.number])
    assert {expert: int(one.counts[expert]) for expert in np.flatnonzero(one.counts)} == {7: 1, 299: 2}


def test_listing_and_searching_by_number(store: Store) -> None:
    for trace in range(1, 6):
        store.save([ArrivedPart(part(trace, tokens=trace, who={"server": f"s{trace % 2}"}), BORN + trace)])
    numbers = [item.number for item in store.listed(ALL)]
    assert [item.number for item in store.listed(TraceQuery(server="s1", min_tokens=2))] == [
        numbers[0],
        numbers[2],
    ]
    chosen = TraceQuery(numbers=(numbers[1], numbers[3]))
    assert [item.tokens for item in store.traced_requests(chosen)] == [4, 2]
    assert store.listed(TraceQuery(numbers=())) == []


def test_an_incomplete_trace_is_not_counted(store: Store) -> None:
    store.save([ArrivedPart(part(1, tokens=3), BORN)])
    store.save([ArrivedPart(part(1, tokens=3, parts=2, who={"tp_rank": 1}), BORN)])
    [listed] = store.listed(ALL)
    [one] = store.slots([listed.number])
    counts = slots_of(store.traces(listed.number, None))
    np.testing.assert_array_equal(one.counts, np.concatenate([counts[layer.layer] for layer in LAYERS]))
    assert one.counts.sum() == 3 * sum(layer.top_k for layer in LAYERS)


def test_what_can_be_counted_is_bounded() -> None:
    with pytest.raises(ValueError, match=f"{MAX_EXPERTS} at most are counted"):
        SlotSum([[MoeLayer(n, 1 << 15, 1) for n in range(9)]])
