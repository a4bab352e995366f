"""The limit on the size of the database."""

from __future__ import annotations

import logging

import pytest

from moescope.service.settings_sources import load_settings
from moescope.service.store.clickhouse import gone
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.limits import Retention
from moescope.service.store.open import open_store
from moescope.service.store.records import ArrivedPart, TraceQuery
from tests.service.frames import EPOCH
from tests.service.store.accounts import BORN, key, posting
from tests.service.trace_parts import part

DAY_NS = 86_400 * 10**9


def three_days(store: ClickHouseStore) -> None:
    """A trace a day, by when its request began."""
    for day in range(3):
        began = EPOCH + day * DAY_NS
        made = part(day + 1, tokens=2000, started_at_ns=began, ended_at_ns=began + 10**9)
        store.save([ArrivedPart(made, began / 1e9 + 1)])


def kept_days(store: ClickHouseStore) -> list[str]:
    return [found.names[-1] for found in store.traced_requests(TraceQuery())]


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


def test_a_clock_of_the_far_future_keeps_the_real_days(url: str) -> None:
    """Its day is the newest by name; all real days went, and it stayed."""
    now = EPOCH / 1e9 + 3 * 86_400
    store = ClickHouseStore(url, Retention())
    far = EPOCH + 73 * 365 * DAY_NS
    store.save([ArrivedPart(part(9, started_at_ns=far, ended_at_ns=far + 10**9), EPOCH / 1e9 + 2 * 86_400)])
    three_days(store)
    store.maintain(now)
    limited = ClickHouseStore(url, Retention(), max_bytes=store.usage().nbytes - 1000)
    limited.maintain(now)
    assert kept_days(limited) == ["x3", "x2", "x9"]
    tiny = ClickHouseStore(url, Retention(), max_bytes=1)
    tiny.maintain(now)
    assert kept_days(tiny) == ["x3", "x9"], "both were stored on the newest day"
    for opened in (store, limited, tiny):
        opened.close()


def test_a_batch_with_traces_of_hundreds_of_days(url: str) -> None:
    """A worker whose clock jumps made the batch fail, with the honest parts in it."""
    store = ClickHouseStore(url, Retention(), sleep=lambda _: None)
    days = [
        part(day, tokens=2, started_at_ns=EPOCH + day * DAY_NS, ended_at_ns=EPOCH + day * DAY_NS + 1)
        for day in range(1, 151)
    ]
    store.save([ArrivedPart(item, BORN) for item in days])
    assert store.usage().traces == len(days)
    store.close()


def test_the_limit_is_the_settings_where_it_is_given(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its default is for a folder: 4 GiB of a database that was never limited must not go."""
    for given, expected in (({}, []), ({"store_mib": 16}, [16 << 20])):
        asked: list[int] = []
        monkeypatch.setattr(
            "moescope.service.store.clickhouse.store.keep_within",
            lambda _, max_bytes, _now, asked=asked: asked.append(max_bytes) or True,
        )
        store = open_store(load_settings(None, {"store": url, **given}))
        store.maintain(BORN)
        store.close()
        assert asked == expected


def test_of_too_many_names_that_went_at_once_as_many_as_fit_are_remembered(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gone, "MOST", 3)
    store = ClickHouseStore(url, Retention(trace_s=1000))
    parts = [part(number) for number in range(1, 6)]
    store.save([ArrivedPart(each, BORN) for each in parts])
    store.maintain(BORN + 1001)
    names = {name for each in parts for name in (each.request_id, *each.client_ids)}
    told = [store.why_absent(name) for name in names]
    assert (told.count("expired"), told.count(None)) == (3, len(names) - 3)
    store.close()
