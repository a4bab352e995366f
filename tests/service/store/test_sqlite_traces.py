"""Traces in the embedded store: time to live, the disk's limit, sums, a crash between parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moescope.service.routing import slots_of
from moescope.service.store.records import ArrivedPart, TraceQuery
from moescope.service.store.retention import Retention
from moescope.service.store.sqlite import SqliteStore
from tests.service.store.accounts import BORN, key, posting
from tests.service.traces import LAYERS, experts_of, part


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path, Retention(trace_s=1000, max_bytes=2 << 20))
    yield made
    made.close()


def kept(store: SqliteStore) -> list[str]:
    return [found.names[-1] for found in store.traced_requests(TraceQuery(limit=10_000))]


def test_traces_live_as_long_as_they_should(store: SqliteStore) -> None:
    store.save([ArrivedPart(part(1), BORN), ArrivedPart(part(2), BORN + 500)])
    store.maintain(BORN + 999)
    assert kept(store) == ["x2", "x1"]
    store.maintain(BORN + 1001)
    assert kept(store) == ["x2"]
    assert store.traces(1, None) == []
    store.maintain(BORN + 1501)
    assert store.usage().traces == 0


def test_over_the_limit_the_oldest_of_all_go_first(store: SqliteStore) -> None:
    store.save([posting([2 * n, 0, 0, 0], n) for n in range(100)])
    store.save([ArrivedPart(part(n, tokens=2000), BORN + 10 * n) for n in range(1, 300)])
    assert store.usage().nbytes > 2 << 20
    store.maintain(BORN + 3000 - 2500)
    assert store.usage().nbytes <= 2 << 20
    names = kept(store)
    assert names == [f"x{n}" for n in range(299, 299 - len(names), -1)]
    assert 50 < len(names) < 299
    assert store.totals_at(key(), [BORN + 200]) != [None]  # the newest totals stay


def test_slots_of_a_trace(store: SqliteStore) -> None:
    store.save([ArrivedPart(part(1, tokens=1234), BORN)])
    counts = slots_of(store.traces(1, None))
    for layer, ids in zip(LAYERS, experts_of(1, 1234), strict=True):
        np.testing.assert_array_equal(
            counts[layer.layer], np.bincount(ids.reshape(-1), minlength=layer.num_experts)
        )
