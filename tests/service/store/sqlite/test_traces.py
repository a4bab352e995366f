"""Traces in the embedded store: the disk's limit, and damage to what says of what they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, StoreError, TraceQuery
from moescope.service.store.sqlite.store import SqliteStore
from tests.service.store.accounts import BORN, key, posting
from tests.service.store.sqlite.damage import NOW
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


def test_damaged_layers_of_a_trace_hold_up_nothing_else(
    waiting: SqliteStore, log: pytest.LogCaptureFixture
) -> None:
    """The parts of a batch are compared with those before them: what cannot be compared is kept unchecked."""
    waiting._writer.execute("UPDATE shape SET layers = x'c1'")
    rest, new = part(3, part=1, parts=2), part(4)
    assert waiting.shapes([rest, new]) == [None, None]
    [line] = [record.getMessage() for record in log.records]
    assert "the layers of a trace of request" in line
    waiting.save([ArrivedPart(item, NOW + 1) for item in (rest, new)])
    broken, whole = (waiting.traced_requests(TraceQuery(name=f"x{number}")) for number in (3, 4))
    assert len(waiting.traces(whole[0].number, None)) == 1
    with pytest.raises(StoreError, match="can't be read"):
        waiting.traces(broken[0].number, None)


def test_tokens_that_are_not_where_they_should_be(store: SqliteStore) -> None:
    store.save([ArrivedPart(part(n, tokens=2000), NOW) for n in (1, 2)])
    store._writer.execute("UPDATE piece SET first = 1999 WHERE trace = (SELECT min(trace) FROM piece)")
    whole, broken = store.traced_requests(TraceQuery())
    assert len(store.traces(whole.number, None)) == 1
    with pytest.raises(StoreError, match="can't be read: a damaged trace: some of its tokens"):
        store.traces(broken.number, None)[0].read(0, 2000)
