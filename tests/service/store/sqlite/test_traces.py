"""Traces in the embedded store: time to live, the disk's limit, sums, a crash between parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, TraceQuery
from moescope.service.store.sqlite.store import SqliteStore
from tests.service.store.accounts import BORN, key, posting
from tests.service.trace_parts import part


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path, Retention(trace_s=1000, max_bytes=2 << 20))
    yield made
    made.close()


def kept(store: SqliteStore) -> list[str]:
    return [found.names[-1] for found in store.traced_requests(TraceQuery(limit=10_000))]


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
