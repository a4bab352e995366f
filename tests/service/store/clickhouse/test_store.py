"""What only a store of several services has: what one of them keeps, the others know."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.store.clickhouse import account_rows, history, trace_rows
from moescope.service.store.clickhouse.schema import MIGRATIONS
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.codec import encode_account, encode_totals
from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, StoreError, TraceQuery
from tests.service.conftest import Clock, Service
from tests.service.frames import EPOCH, frame
from tests.service.store.accounts import BORN, LATER, account_of, key, posted, posting, slots
from tests.service.trace_parts import part


def test_frames_of_one_producer_that_came_to_two_services(replicas: list[ClickHouseStore]) -> None:
    """Interleaved, doubled, over a restart, kept in the wrong order: of each epoch the newest counts."""
    one, two = replicas
    a, b = account_of((EPOCH, 1, 10), (EPOCH, 3, 30)), account_of((EPOCH, 2, 20), (LATER, 1, 4))
    two.save([posted(b.state(), 5)])
    one.save([posted(a.state(), 6)])
    one.save([posted(account_of((EPOCH, 1, 10)).state(), 7)])
    two.save([posted(b.state(), 5)])
    assert slots(list(one.accounts())) == [34]
    [merged] = two.accounts()
    assert [(item.epoch, item.seq) for item in merged.account.epochs] == [(EPOCH, 3), (LATER, 1)]
    assert merged.account.totals.tokens == 17
    assert merged.account.epochs_seen == 2


def test_news_is_what_others_kept(replicas: list[ClickHouseStore]) -> None:
    one, two = replicas
    one.save([posting([4, 0, 0, 0], 5)])
    two.save([posting([6, 0, 0, 0], 6, dp_rank=1)])
    assert [item.key for item in one.news()] == [key(1)]
    assert [item.key for item in two.news()] == [key(0)]
    assert one.news() == []
    two.save([posting([8, 0, 0, 0], 7, dp_rank=1)])
    assert slots(one.news()) == [8]


def test_a_newer_schema_is_refused(replicas: list[ClickHouseStore], url: str) -> None:
    replicas[0]._connection.insert("schema_version", ("version",), [[99]])
    with pytest.raises(StoreError, match=r"schema 99.*upgrade"):
        ClickHouseStore(url, Retention())


def test_what_an_earlier_schema_has_is_there_after_an_upgrade(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a trace, too, whose other half comes after it; and a part that comes again."""
    monkeypatch.setattr("moescope.service.store.clickhouse.store.MIGRATIONS", MIGRATIONS[:2])
    old = ClickHouseStore(url, Retention())
    known = trace_rows.PART_COLUMNS.index("weights_version") + 1
    halves = [part(2, runs=[(10 * n, 10)], part=n, parts=2) for n in (0, 1)]
    parts = [ArrivedPart(item, BORN) for item in (part(1), halves[0])]
    routing, headers = trace_rows.rows_of(parts, trace_rows.Numbers())
    old._connection.insert("routing", trace_rows.ROUTING_COLUMNS, routing)
    old._connection.insert("trace_part", trace_rows.PART_COLUMNS[:known], [row[:known] for row in headers])
    old.close()
    monkeypatch.undo()
    store = ClickHouseStore(url, Retention())
    [found] = store.traced_requests(TraceQuery())
    assert (found.tokens, found.role, found.taken_over) == (10, "", ())
    store.save([ArrivedPart(item, BORN + 1) for item in (part(1, lora="new"), halves[1])])
    assert [item.tokens for item in store.traced_requests(TraceQuery())] == [20, 10]
    for item in store.traced_requests(TraceQuery()):
        [worker] = store.traces(item.number, None)
        assert worker.steps(0, 10).tolist() == [-1] * 10
        assert len(worker.positions) == item.tokens
    store.close()


def test_history_that_an_earlier_moescope_kept_goes_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It told totals of all starts together; accounts had no parts by start."""
    monkeypatch.setattr("moescope.service.store.clickhouse.store.MIGRATIONS", MIGRATIONS[:3])
    old = ClickHouseStore(url, Retention())
    states = [account_of((EPOCH, 1, 10)).state(), account_of((EPOCH, 1, 10), (LATER, 1, 4)).state()]
    for after_s, state in zip((5, 70), states, strict=True):
        life, at_ms = state.latest, round((BORN + after_s) * 1000)
        which = [*key(), life.epoch, life.seq]
        old._connection.insert(
            "account",
            account_rows.COLUMNS,
            [[*which, round(BORN * 1000), at_ms, "old", encode_account(state)]],
        )
        row = [*key(), at_ms // 1000, at_ms, life.epoch, life.seq, encode_totals(state.totals)]
        columns = (*history.KEY, "second", "at_ms", "epoch", "seq", "totals")
        old._connection.insert("snapshot", columns, [row])
    old.close()
    monkeypatch.undo()
    store = ClickHouseStore(url, Retention())
    state = LiveState(Settings(store=url), lambda: BORN + 100, store)
    state.restore(store.accounts())
    state.ingest(frame({1: [6, 0]}, epoch=LATER, seq=2))
    store.save(state.take_records())
    again = ClickHouseStore(url, Retention())
    assert slots(list(again.accounts())) == [16]
    found = again.totals_at(key(), [BORN + second for second in (1, 6, 80, 100)])
    assert [item and int(item.totals.counts[0]) for item in found] == [None, 10, 14, 16]
    assert [item.at for item in (again.oldest(key()),) if item] == [BORN + 5]
    assert [again.news(), again.news()][1] == []
    for item in (store, again):
        item.close()


def test_services_show_what_came_to_the_others(
    start_service: Callable[..., Service], url: str, clock: Clock
) -> None:
    """Also to one that is started later; and a producer that moves goes on where it was."""
    one, two = (start_service(store=url, min_tokens=1) for _ in range(2))
    clock.now = EPOCH / 1e9 + 5
    one.push(frame({0: [10, 0]}, seq=1, after_s=1))
    one.push(frame({0: [30, 0]}, seq=2, after_s=2))
    two.push(frame({0: [40, 0]}, seq=3, after_s=3))
    two.push(frame({0: [6, 0]}, seq=1, epoch=LATER, after_s=4))
    for service in (one, two):
        _until(lambda service=service: _counts(service) == [46, 0])  # type: ignore[misc]
    one.push(frame({0: [8, 0]}, seq=2, epoch=LATER, after_s=5))
    third = start_service(store=url, min_tokens=1)
    assert _counts(third) == [48, 0]
    _until(lambda: _counts(two) == [48, 0])


def test_an_old_start_that_only_one_service_heard_of_is_not_lost(replicas: list[ClickHouseStore]) -> None:
    """The other one has forgotten later starts, so that it can't tell by their time alone that it is news."""
    states = [LiveState(Settings(max_epochs=2), lambda: BORN + 60, store) for store in replicas]
    states[0].ingest(frame({1: [10, 0]}))
    for start in range(1, 5):
        states[1].ingest(frame({1: [2, 0]}, epoch=EPOCH + start))
    for store, state in zip(replicas, states, strict=True):
        store.save(state.take_records())
    for turn in range(3):
        for store, state in zip(replicas, states, strict=True):
            state.adopt(store.news())
            [item] = state.producers()
            assert (item.totals.counts[0], item.restarts) == (18, 4), turn
            store.save(state.take_records())
    assert slots(list(replicas[0].accounts())) == [18]
    # It is in both sums now, and stays there once.
    for state in states:
        state.ingest(frame({1: [4, 0]}, epoch=EPOCH + 5))
    for store, state in zip(replicas, states, strict=True):
        store.save(state.take_records())
        state.adopt(store.news())
        assert state.producers()[0].totals.counts[0] == 22
    assert slots(list(replicas[1].accounts())) == [22]


def _counts(service: Service) -> list[int]:
    layers = service.get("/v1/histogram")["layers"]
    return list(layers[0]["counts"]) if layers else []


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
