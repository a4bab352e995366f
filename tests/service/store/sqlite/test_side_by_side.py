"""Traces read in few questions, and ids of many layers at once, are what they are one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import NO_EXPERT
from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, StoreError, TraceQuery
from moescope.service.store.sqlite.store import SqliteStore
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.traces.routing import put_together
from moescope.service.traces.shares import Share
from tests.service.store.sqlite.damage import NOW
from tests.service.store.sqlite.packed_traces import TOKENS
from tests.service.trace_parts import LAYERS, part

ALIKE = [MoeLayer(1, 16, 4), MoeLayer(3, 300, 4), MoeLayer(4, 300, 4)]


def masked(trace: int, tokens: int) -> list[np.ndarray]:
    """Ids of two bytes, some of them of no expert."""
    rng = np.random.default_rng(trace)
    made = [
        np.argsort(rng.random((tokens, layer.num_experts)), axis=1)[:, :4].astype(np.uint16)
        for layer in ALIKE
    ]
    made[1][rng.random(made[1].shape) < 0.1] = NO_EXPERT
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Traces in a block that they share, in segments, in several blocks, and of layers of unlike top-k."""
    made = SqliteStore(tmp_path, Retention(max_bytes=1 << 40))
    sizes = [TOKENS] * 7 + [5000]
    alike = [
        part(n, tokens, masked(n, tokens), layers=ALIKE, id_bytes=2, runs=[(3, tokens)])
        for n, tokens in enumerate(sizes, 1)
    ]
    again = part(20, 9, masked(20, 9), layers=ALIKE, id_bytes=2, runs=[(0, 5), (2, 4)])
    for item in (*alike, again, part(30, TOKENS)):
        made.save([ArrivedPart(item, NOW)])
    yield made
    made.close()


def numbers(store: SqliteStore) -> list[int]:
    return [found.number for found in store.traced_requests(TraceQuery(limit=100))]


def test_layers_side_by_side_are_those_layer_by_layer(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = 0
    for number in numbers(store)[1:]:  # the newest is the one of unlike layers
        for wanted in (None, [3, 4], [1]):
            workers = store.traces(number, wanted)
            [worker] = workers
            for start, end in ((0, worker.tokens), (1, 8), (4, 4), (worker.tokens - 2, worker.tokens)):
                expected = np.stack(worker.read(start, end), axis=1)
                np.testing.assert_array_equal(worker.side_by_side(start, end), expected)
            routing = put_together(workers)
            found = list(routing.chunks(1500))
            with monkeypatch.context() as slowly:
                slowly.setattr(Share, "all_at_once", lambda *_: None)
                for rows, other in zip(found, routing.chunks(1500), strict=True):
                    np.testing.assert_array_equal(rows.experts, other.experts)
                    np.testing.assert_array_equal(rows.times, other.times)
                    assert rows.experts.dtype == other.experts.dtype == np.int16
            inside = Share(worker, 3, 9, worker.layers).all_at_once(4, 9, len(worker.layers), 4)
            quick += inside is not None
            if inside is not None and 3 in [layer.layer for layer in worker.layers]:
                whole = Share(worker, 3, 103, worker.layers).all_at_once(3, 103, len(worker.layers), 4)
                assert whole is not None
                assert (whole == -1).any()
    assert quick == 8 * 3  # all but the one with two runs


def test_a_trace_without_the_layers_that_are_wanted_is_not_damaged(store: SqliteStore) -> None:
    """As of another pipeline stage."""
    for number in numbers(store):
        for workers in (store.traces(number, [77]), store.traces_of([number], [77])[number]):
            [worker] = workers
            assert worker.layers == ()
            assert worker.read(0, worker.tokens) == worker.read(1, 2) == ()


def test_several_requests_at_once_are_what_each_is_alone(store: SqliteStore) -> None:
    for wanted in (None, [3]):
        found = store.traces_of(numbers(store), wanted)
        assert list(found) == numbers(store)
        for number, workers in found.items():
            assert [told(worker) for worker in workers] == [told(one) for one in store.traces(number, wanted)]
    assert store.traces_of([*numbers(store)[:1], 10_000], None)[10_000] == []
    assert store.traces_of([], None) == {}
    assert {layer.top_k for layer in LAYERS} == {2, 4}


def test_a_damaged_one_is_left_out_and_told_when_it_is_asked_for_alone(store: SqliteStore) -> None:
    first, second, *others = numbers(store)
    store._writer.execute(
        "DELETE FROM segment WHERE trace = (SELECT id FROM trace WHERE request = ?)", [second]
    )
    assert list(store.traces_of([first, second, *others], None)) == [first, *others]
    with pytest.raises(StoreError, match="can't be read: a damaged trace: 0 of its 9 tokens are there"):
        store.traces(second, None)


def test_runs_that_take_many_bytes_are_read_when_they_are_asked_for(store: SqliteStore) -> None:
    runs = [(3 * n, 1) for n in range(200)]
    store.save([ArrivedPart(part(40, 200, runs=runs), NOW)])
    number = numbers(store)[0]
    [worker] = store.traces_of([number], None)[number]
    store._writer.execute("DELETE FROM request WHERE id = ?", [number])
    with pytest.raises(StoreError, match="was removed while it was read"):
        _ = worker.runs


def told(worker: WorkerTrace) -> object:
    """All that a trace tells."""
    ids = [ids.tolist() for ids in worker.experts]
    return (
        *(worker.layers, worker.worker, worker.tokens, worker.weights, worker.runs_bytes),
        *(worker.runs.tolist(), ids, worker.steps(0, worker.tokens).tolist()),
    )
