"""Traces whose parts came to several services, and what of them can be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moescope.service.store.clickhouse import trace_choosing, trace_slices
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.records import ArrivedPart, StoreError, TraceQuery, TraceShape
from moescope.service.store.worker_trace import WorkerTrace
from tests.service.frames import EPOCH
from tests.service.store.accounts import BORN
from tests.service.trace_parts import LAYERS, part


def test_a_trace_whose_parts_came_to_two_services(replicas: list[ClickHouseStore]) -> None:
    one, two = replicas
    whole = part(1, tokens=8)
    halves = [
        part(1, runs=[(4 * n, 4)], experts=[ids[4 * n : 4 * n + 4] for ids in _ids(whole)], part=n, parts=2)
        for n in range(2)
    ]
    two.save([ArrivedPart(halves[1], BORN + 1)])
    assert one.traced_requests(TraceQuery()) == []
    for store, at in ((one, 2), (two, 3)):
        store.save([ArrivedPart(halves[0], BORN + at)])
    [found] = one.traced_requests(TraceQuery())
    assert (found.tokens, found.stored_at) == (8, BORN + 1)
    [worker] = two.traces(found.number, None)
    np.testing.assert_array_equal(worker.positions, np.arange(8))
    for mine, ids in zip(worker.experts, _ids(whole), strict=True):
        np.testing.assert_array_equal(mine, ids)


@pytest.mark.parametrize("named", [4096, 1])
@pytest.mark.parametrize("query", [{}, {"layer": 3, "expert": 1}, {"weights_version": 2}, {"min_tokens": 6}])
def test_listed_slice_by_slice_it_is_what_it_is_in_one(
    replicas: list[ClickHouseStore], monkeypatch: pytest.MonkeyPatch, query: dict[str, Any], named: int
) -> None:
    """First parts come in one order, last ones in another: a request is in several slices, listed once."""
    one, two = replicas
    order = np.random.default_rng(1).permutation(24)
    for n, store in ((0, one), (1, two)):
        for number in (range(1, 25), order + 1)[n]:
            tokens, version = 2 + int(number) % 3, int(number) % 3
            runs, ids = [(n * tokens, tokens)], _ids(part(int(number), tokens=tokens))
            made = part(
                int(number), runs=runs, experts=ids, part=n, parts=2, weights_version=version, tokens=tokens
            )
            store.save([ArrivedPart(made, BORN + 60 * n + int(number) % 5)])

    def listed(limit: int, **more: Any) -> list[int]:
        return [item.number for item in one.traced_requests(TraceQuery(limit=limit, **query, **more))]

    whole = listed(100)
    assert len(whole) > 3
    monkeypatch.setattr(trace_choosing, "_MOST_NAMED", named)
    assert listed(100) == whole
    monkeypatch.setattr(trace_slices, "_LEAST", 2)
    monkeypatch.setattr(trace_slices, "_GROWTH", 1)
    assert listed(100) == whole
    pages: list[int] = []
    while page := listed(1, before=pages[-1] if pages else None):
        pages += page
    assert pages == whole
    assert listed(3, end=BORN + 1) == [number for number in whole if number in listed(100, end=BORN + 1)][:3]


@pytest.mark.parametrize("query", [{}, {"layer": 3, "expert": 1}, {"name": "all"}])
def test_many_requests_with_long_ids_are_listed(
    replicas: list[ClickHouseStore], query: dict[str, Any]
) -> None:
    """A server takes 128 KiB in a parameter: less than the ids of those whose parts are looked at at once."""
    store, _ = replicas
    ids, many = {"runs": [(0, 1)], "experts": _ids(part(1, tokens=1))}, 600
    made = [part(n, request_id=f"{n:0250d}", client_ids=["all"], **ids) for n in range(1, many)]
    store.save([ArrivedPart(item, BORN + item.trace) for item in made])
    expert = int(ids["experts"][1][0, 0])
    query = query | ({"expert": expert} if "expert" in query else {})
    found = store.traced_requests(TraceQuery(limit=many, **query))
    assert [item.request_id for item in found] == [item.request_id for item in made[::-1]]


@pytest.mark.parametrize("query", [{}, {"layer": 3, "expert": 1}])
def test_of_a_time_that_is_long_past_later_requests_are_not_looked_at(
    replicas: list[ClickHouseStore], monkeypatch: pytest.MonkeyPatch, query: dict[str, Any]
) -> None:
    """They may be millions."""
    store, _ = replicas
    ids = _ids(part(1))
    query = query | ({"expert": int(ids[1][0, 0])} if "expert" in query else {})
    store.save([ArrivedPart(part(n, experts=ids), BORN + n * 86_400) for n in range(1, 12)])
    looked: list[int] = []
    named = trace_choosing.named
    monkeypatch.setattr(
        trace_choosing, "named", lambda requests: looked.append(len(requests)) or named(requests)
    )
    found = store.traced_requests(TraceQuery(end=BORN + 2.5 * 86_400, **query))
    assert [item.stored_at for item in found] == [BORN + 2 * 86_400, BORN + 86_400]
    assert 0 < max(looked) <= 3  # parts of a request come within a day of each other


def test_requests_that_took_a_rare_expert_are_read_once_and_hardly_more_than_are_asked_for(
    replicas: list[ClickHouseStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was read whole for each slice of time that was looked at, and twice as many as were asked for."""
    store, _ = replicas
    rare, other = (
        [np.tile(np.arange(first, first + layer.top_k, dtype=np.uint8), (10, 1)) for layer in LAYERS]
        for first in (1, 2)
    )
    made = [part(n, experts=other if n % 4 else rare) for n in range(1, 121)]
    store.save([ArrivedPart(item, BORN + item.trace) for item in made])
    monkeypatch.setattr(trace_slices, "_LEAST", 4)
    asked: list[dict[str, Any]] = []
    rows = store._connection.rows

    def noted(sql: str, kinds: str, parameters: dict[str, Any] | None = None) -> list[Any]:
        if " FINAL " in sql:
            asked.append(parameters or {})
        return rows(sql, kinds, parameters)

    monkeypatch.setattr(store._connection, "rows", noted)
    query = TraceQuery(layer=LAYERS[1].layer, expert=1, limit=8)
    found = store.traced_requests(query)
    assert [round(item.stored_at - BORN) for item in found] == list(range(120, 120 - 4 * 8, -4))
    [only] = asked
    assert 8 <= len(only["ids"]) <= 9


def test_several_requests_at_once_are_what_each_is_alone(
    replicas: list[ClickHouseStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export asked about each of them alone: three questions a request."""
    store, _ = replicas
    for trace, who, more in (
        (1, {}, {}),
        (2, {"tp_size": 2}, {}),
        (2, {"tp_size": 2, "tp_rank": 1, "pid": 7}, {}),
        (3, {}, {"started_at_ns": EPOCH - 3 * 86_400 * 10**9}),
        (4, {"server": "other"}, {"weights_version": 3}),
        (5, {}, {"parts": 2}),
        (6, {}, {"runs": [(2 * n, 1) for n in range(40)], "tokens": 40}),
    ):
        store.save([ArrivedPart(part(trace, who=who, **more), BORN + trace)])
    numbers = [item.number for item in store.traced_requests(TraceQuery())]
    assert len(numbers) == 5
    for wanted in (None, [3], [77]):
        found = store.traces_of(numbers, wanted)
        assert list(found) == numbers
        for number, workers in found.items():
            alone = store.traces(number, wanted)
            assert [_told(worker) for worker in workers] == [_told(worker) for worker in alone]
            assert workers
    assert store.traces_of([numbers[0], 10_000], None)[10_000] == []
    assert store.traces_of([], None) == {}
    asked = []
    rows = store._connection.rows
    monkeypatch.setattr(store._connection, "rows", lambda sql, *args: asked.append(sql) or rows(sql, *args))
    store.traces_of(numbers, None)
    assert len(asked) == 3


def test_a_damaged_one_of_several_is_left_out_and_told_when_it_is_asked_for_alone(
    replicas: list[ClickHouseStore],
) -> None:
    store, _ = replicas
    for trace in (1, 2, 3):
        store.save([ArrivedPart(part(trace), BORN + trace)])
    store._connection.command(
        "ALTER TABLE routing UPDATE top_k = 3 WHERE number = 2 AND layer = 3 SETTINGS mutations_sync = 1"
    )
    numbers = [item.number for item in store.traced_requests(TraceQuery())]
    assert list(store.traces_of(numbers, None)) == [numbers[0], numbers[2]]
    with pytest.raises(StoreError, match="can't be read"):
        store.traces(numbers[1], None)


def _told(worker: WorkerTrace) -> Any:
    ids = [array.tolist() for array in worker.experts]
    return worker.worker, worker.layers, worker.tokens, worker.runs.tolist(), worker.weights, ids


def _ids(made: Any) -> list[np.ndarray]:
    return [made.ids_of(i) for i in range(len(made.layers))]


def test_of_contradicting_parts_to_two_services_at_once_what_is_whole_is_read(
    replicas: list[ClickHouseStore],
) -> None:
    one, two = replicas
    one.save([ArrivedPart(part(1, part=0, parts=2), BORN)])
    two.save([ArrivedPart(part(1, part=1, parts=2, layers=LAYERS[:1], runs=[(10, 10)]), BORN)])
    [found] = one.traced_requests(TraceQuery())
    [worker] = one.traces(found.number, None)
    assert worker.layers == (LAYERS[0],)
    np.testing.assert_array_equal(worker.positions, np.arange(20))
    assert len(worker.experts[0]) == 20


def test_ids_of_which_some_are_gone(replicas: list[ClickHouseStore]) -> None:
    one, _ = replicas
    one.save([ArrivedPart(part(1), BORN), ArrivedPart(part(2), BORN + 1)])
    for layer in (item.layer for item in LAYERS):
        one._connection.command(
            "ALTER TABLE routing UPDATE ids8 = arraySlice(ids8, 2), ids16 = arraySlice(ids16, 2) "
            f"WHERE request_id = '{part(1).request_id}' AND layer = {layer} SETTINGS mutations_sync = 1"
        )
    whole, broken = one.traced_requests(TraceQuery())
    with pytest.raises(StoreError, match="can't be read: a damaged segment of a trace"):
        one.traces(broken.number, None)
    assert len(one.traces(whole.number, None)) == 1


def test_a_batch_of_more_parts_than_a_url_has_room_for(replicas: list[ClickHouseStore]) -> None:
    """Over 4,096 characters the client sends parameters as a form."""
    one, two = replicas
    parts = [part(number, tokens=2, request_id=f"{number:03}-{'x' * 60}") for number in range(1, 201)]
    one.save([ArrivedPart(item, BORN) for item in parts])
    shapes = two.shapes(parts)
    assert shapes == [TraceShape.of(item) for item in parts]
    kept = two.traced_requests(TraceQuery(limit=500))
    assert {item.request_id for item in kept} == {item.request_id for item in parts}
    found = two.slots(sorted(item.number for item in kept))
    assert [item.number for item in found] == sorted(item.number for item in kept)
