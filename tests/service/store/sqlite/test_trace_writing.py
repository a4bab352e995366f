"""Parts of traces as rows: each once, and a request is shown as soon as a worker's trace is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, TracedRequest, TraceQuery
from moescope.service.store.sqlite.store import SqliteStore
from tests.service.store.accounts import BORN
from tests.service.trace_parts import part


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path, Retention())) as opened:
        yield opened


def _count(store: SqliteStore, table: str) -> int:
    [count] = store._writer.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


def _shown(store: SqliteStore) -> list[TracedRequest]:
    return store.traced_requests(TraceQuery())


def test_a_part_that_comes_again_changes_nothing(store: SqliteStore) -> None:
    both = [ArrivedPart(part(1, part=n, parts=2), BORN + n) for n in (0, 1)]
    store.save([both[0], both[0]])
    store.save([both[0]])
    assert (_count(store, "trace_part"), _count(store, "segment"), _shown(store)) == (1, 1, [])
    store.save(both)
    store.save(both)
    assert (_count(store, "trace_part"), _count(store, "segment")) == (2, 2)
    [found] = _shown(store)
    assert (found.tokens, found.stored_at) == (20, BORN)


def test_a_request_s_tokens_are_those_of_one_stage(store: SqliteStore) -> None:
    """Workers of one stage share its tokens out; each stage has all of them."""
    for pp_rank, tp_rank, tokens in ((0, 0, 6), (0, 1, 4), (1, 0, 6), (1, 1, 4)):
        who = {"pp_rank": pp_rank, "pp_size": 2, "tp_rank": tp_rank, "tp_size": 2}
        store.save([ArrivedPart(part(1, tokens=tokens, who=who), BORN)])
    [found] = _shown(store)
    assert found.tokens == 10
    assert len(store.traces(found.number, None)) == 4
    assert (_count(store, "request"), _count(store, "trace")) == (1, 4)


def test_a_request_has_all_its_names_and_its_last_end(store: SqliteStore) -> None:
    first, last = (part(1, part=n, parts=2, ended_at_ns=int((BORN + 5 + n) * 1e9)) for n in (0, 1))
    store.save([ArrivedPart(last, BORN), ArrivedPart(first, BORN + 1)])
    [found] = _shown(store)
    assert found.ended_at == BORN + 6
    assert set(found.names) == {first.request_id, *first.client_ids}
    for name in found.names:
        assert [item.number for item in store.traced_requests(TraceQuery(name=name))] == [found.number]


def test_traces_of_one_shape_share_its_row(store: SqliteStore) -> None:
    store.save([ArrivedPart(part(n), BORN) for n in (1, 2, 3)])
    assert (_count(store, "shape"), _count(store, "trace")) == (1, 3)
