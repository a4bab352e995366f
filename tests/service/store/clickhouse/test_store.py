"""What only a store of several services has: replicas, retries, its URL; and accounts that are merged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest

from moescope.service.counts.account import Account
from moescope.service.counts.account_state import AccountState
from moescope.service.counts.merging import merge_accounts
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings, load_settings
from moescope.service.store.clickhouse.rowbinary import decode_rows, encode_rows
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.limits import Retention
from moescope.service.store.open import open_store
from moescope.service.store.records import ArrivedPart, Posting, StoreError, TraceQuery
from tests.service.conftest import Clock, Service
from tests.service.frames import EPOCH, frame, producer
from tests.service.store.accounts import BORN, key, posting
from tests.service.trace_parts import LAYERS, part

LATER = EPOCH + 10**9


def account(*frames: tuple[int, int, int], max_epochs: int = 4) -> Account:
    """After frames of (epoch, seq, slots of expert 0)."""
    made = Account(max_epochs)
    for epoch, seq, slots in frames:
        made.post(frame({1: [slots, 0]}, epoch=epoch, seq=seq))
    return made


def posted(state: AccountState, after_s: float) -> Posting:
    return Posting(state.latest.producer.key, BORN, BORN + after_s, state)


def slots(postings: Sequence[Posting]) -> list[int]:
    return [int(item.account.totals.counts[0]) for item in postings]


def test_frames_of_one_producer_that_came_to_two_services(replicas: list[ClickHouseStore]) -> None:
    """Interleaved, doubled, over a restart, kept in the wrong order: of each epoch the newest counts."""
    one, two = replicas
    a, b = account((EPOCH, 1, 10), (EPOCH, 3, 30)), account((EPOCH, 2, 20), (LATER, 1, 4))
    two.save([posted(b.state(), 5)])
    one.save([posted(a.state(), 6)])
    one.save([posted(account((EPOCH, 1, 10)).state(), 7)])
    two.save([posted(b.state(), 5)])
    assert slots(list(one.accounts())) == [34]
    [merged] = two.accounts()
    assert [(item.epoch, item.seq) for item in merged.account.epochs] == [(EPOCH, 3), (LATER, 1)]
    assert merged.account.totals.tokens == 17
    assert merged.account.epochs_seen == 2


def test_totals_never_fall_when_an_older_frame_is_kept_later(replicas: list[ClickHouseStore]) -> None:
    one, two = replicas
    one.save([posted(account((EPOCH, 1, 10)).state(), 1), posted(account((EPOCH, 5, 50)).state(), 5)])
    two.save([posted(account((EPOCH, 4, 40)).state(), 7)])
    found = one.totals_at(producer().key, [BORN + second for second in (0, 1, 4, 5, 7, 99)])
    assert [item and int(item.totals.counts[0]) for item in found] == [None, 10, 10, 50, 50, 50]


def test_news_is_what_others_kept(replicas: list[ClickHouseStore]) -> None:
    one, two = replicas
    one.save([posting([4, 0, 0, 0], 5)])
    two.save([posting([6, 0, 0, 0], 6, dp_rank=1)])
    assert [item.key for item in one.news()] == [key(1)]
    assert [item.key for item in two.news()] == [key(0)]
    assert one.news() == []
    two.save([posting([8, 0, 0, 0], 7, dp_rank=1)])
    assert slots(one.news()) == [8]


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


def test_a_server_that_is_away_for_a_moment(replicas: list[ClickHouseStore], clickhouse: str) -> None:
    one, two = replicas
    _fail(clickhouse, times=2)
    one.save([posting([4, 0, 0, 0], 5)])
    assert slots(list(two.accounts())) == [4]
    _fail(clickhouse, times=4)
    with pytest.raises(StoreError, match=r"clickhouse://127\.0\.0\.1.*is the server up"):
        one.save([posting([6, 0, 0, 0], 6)])
    one.save([posting([6, 0, 0, 0], 6)])
    assert slots(list(two.accounts())) == [6]


def test_a_newer_schema_is_refused(replicas: list[ClickHouseStore], url: str) -> None:
    replicas[0]._connection.insert("schema_version", ("version",), [[99]])
    with pytest.raises(StoreError, match=r"schema 99.*upgrade"):
        ClickHouseStore(url, Retention())


@pytest.mark.parametrize(
    "bad", ["clickhouse://127.0.0.1:1/x", "clickhouse://127.0.0.1/a;b", "clickhouse:///x"]
)
def test_a_url_that_leads_nowhere(bad: str) -> None:
    with pytest.raises(StoreError):
        ClickHouseStore(bad, Retention(), sleep=lambda _: None)


def test_the_password_is_in_no_text() -> None:
    settings = Settings(store="clickhouse://me:secret@host/db")
    assert "secret" not in repr(settings)
    with pytest.raises(ValueError, match="postgres:// is not known"):
        Settings(store="postgres://me:secret@host/db")


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


def test_merging_keeps_the_better_account() -> None:
    old, new = account((EPOCH, 1, 10)).state(), account((EPOCH, 1, 10), (EPOCH, 2, 20)).state()
    assert merge_accounts(old, new, 4) is new
    assert merge_accounts(new, old, 4) is new
    many = [account((EPOCH + n, 1, 2)).state() for n in range(6)]
    merged = many[0]
    for other in many[1:]:
        merged = merge_accounts(merged, other, 4)
    assert merged.totals.counts[0] == 12
    assert [item.epoch - EPOCH for item in sorted(merged.epochs, key=lambda item: item.epoch)] == [2, 3, 4, 5]
    assert merged.forgotten == (0, EPOCH, EPOCH + 1)
    assert merge_accounts(merged, many[0], 4) is merged


def test_merging_starts_from_the_sum_that_has_all_of_the_other_s() -> None:
    starts = [(EPOCH + n, 1, 2) for n in range(6)]
    whole = account(*starts[:5], max_epochs=2).state()
    newer = account(*starts[1:], max_epochs=2).state()  # has forgotten more, but never knew the first
    for merged in (merge_accounts(whole, newer, 2), merge_accounts(newer, whole, 2)):
        assert merged.totals.counts[0] == 12
        assert [item.epoch - EPOCH for item in merged.epochs] == [4, 5]
        assert merged.latest.epoch == EPOCH + 5
        assert merge_accounts(merged, newer, 2) is merged


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


def test_rows_as_bytes() -> None:
    row = [-5, "ä", b"\0\0", ["x", "y" * 200], np.array([0, 255, 0], np.uint8), np.array([0, 384], np.uint16)]
    [[number, text, data, names, ids8, ids16]] = decode_rows(encode_rows([row]), "itbTBH")
    assert [number, text, data, names, ids8.tolist(), ids16.tolist()] == [
        *row[:4],
        [0, 255, 0],
        [0, 384],
    ]
    with pytest.raises(ValueError, match="too early"):
        decode_rows(encode_rows([row])[:-1], "itbTBH")
    with pytest.raises(TypeError):
        encode_rows([[object()]])  # type: ignore[list-item]


def _ids(made: Any) -> list[np.ndarray]:
    return [made.ids_of(i) for i in range(len(made.layers))]


def _counts(service: Service) -> list[int]:
    layers = service.get("/v1/histogram")["layers"]
    return list(layers[0]["counts"]) if layers else []


def _fail(clickhouse: str, times: int) -> None:
    where = clickhouse.replace("clickhouse://", "http://")
    urlopen(Request(f"{where}/fail?times={times}&code=503", data=b"")).close()


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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


DAY_NS = 86_400 * 10**9


def three_days(store: ClickHouseStore) -> None:
    """A trace a day, by when its request began."""
    for day in range(3):
        began = EPOCH + day * DAY_NS
        made = part(day + 1, tokens=2000, started_at_ns=began, ended_at_ns=began + 10**9)
        store.save([ArrivedPart(made, began / 1e9 + 1)])


def kept_days(store: ClickHouseStore) -> list[str]:
    return [found.names[-1] for found in store.traced_requests(TraceQuery())]


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


def test_over_the_limit_the_oldest_days_of_traces_go(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("moescope"), "propagate", True)
    now = EPOCH / 1e9 + 3 * 86_400
    unlimited = ClickHouseStore(url, Retention())
    three_days(unlimited)
    unlimited.save([posting([2, 0], 1)])
    unlimited.maintain(now)
    assert kept_days(unlimited) == ["x3", "x2", "x1"]
    size = unlimited.usage().nbytes
    limited = [ClickHouseStore(url, Retention(), max_bytes=size - 1000) for _ in range(2)]
    for store in limited:
        store.maintain(now)
        assert kept_days(store) == ["x3", "x2"]
        assert store.usage().nbytes < size - 1000
        assert store.totals_at(key(), [now]) != [None]
    assert not caplog.records
    tiny = ClickHouseStore(url, Retention(), max_bytes=1)
    for _ in range(2):
        tiny.maintain(now)
        assert kept_days(tiny) == ["x3"]
    [line] = [record.getMessage() for record in caplog.records]
    assert "its newest day of traces, which stay" in line
    for store in (unlimited, *limited, tiny):
        store.close()


def test_the_limit_is_the_settings_where_it_is_given(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its default is for a folder: 4 GiB of a database that was never limited must not go."""
    for given, expected in (({}, []), ({"store_mib": 16}, [16 << 20])):
        asked: list[int] = []
        monkeypatch.setattr(
            "moescope.service.store.clickhouse.store.keep_within",
            lambda _, max_bytes, asked=asked: asked.append(max_bytes) or True,
        )
        store = open_store(load_settings(None, {"store": url, **given}))
        store.maintain(BORN)
        store.close()
        assert asked == expected
