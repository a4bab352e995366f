"""History is rolled up piece by piece, and a service goes on where another one was."""

from __future__ import annotations

import pytest

from moescope.service.store.clickhouse import rolling
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.limits import Retention
from moescope.service.store.records import Document
from tests.service.frames import EPOCH, producer
from tests.service.store.accounts import BORN, LATER, account_of, instants, posted, posting, slots

DAY_S = 86_400


def days_of_history(store: ClickHouseStore) -> float:
    """A snapshot every 2 s for a minute, on each of four days; the time after them."""
    for day in range(4):
        begin = day * DAY_S
        store.save([posting([2, 0, 0, 0], begin + second) for second in range(0, 60, 2)])
    return BORN + 3 * DAY_S + 60


def pieces(store: ClickHouseStore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, float]]:
    """Gets the pieces that the store rolls up from now on: table, bucket, days after the birth."""
    found: list[tuple[str, int, float]] = []
    real = store._rolling._roll_up_piece

    def noted(table: str, bucket_ms: int, since_ms: int, until_ms: int) -> None:
        found.append((table, bucket_ms, (since_ms / 1000 - BORN) // DAY_S))
        real(table, bucket_ms, since_ms, until_ms)

    monkeypatch.setattr(store._rolling, "_roll_up_piece", noted)
    return found


def test_a_service_goes_on_where_another_one_was(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start rolled up 90 days again: 73 seconds."""
    retention = Retention(fine_s=100, middle_s=DAY_S)
    one, two = (ClickHouseStore(url, retention) for _ in range(2))
    now = days_of_history(one)
    first = pieces(one, monkeypatch)
    one.maintain(now + 200)
    assert {day for _, bucket_ms, day in first if bucket_ms == 300_000} >= {0, 1}, "day by day"
    assert {day for _, bucket_ms, day in first if bucket_ms == 10_000} >= {2}, "the rest is coarser already"
    kept = instants(one, 60)
    assert len(kept) <= 2, "one in 5 minutes"
    assert one.usage().snapshots < 4 * 8
    again = pieces(two, monkeypatch)
    two.maintain(now + 400)
    assert {day for _, bucket_ms, day in again if bucket_ms == 10_000} <= {1, 2, 3}
    assert len(again) <= 8
    before = len(again)
    two.maintain(now + 410)
    assert len(again) == before, "nothing is due"
    one.close()
    two.close()


@pytest.mark.parametrize("told", [b"soon", b"9999999999999", b"-5"])
def test_where_another_one_was_may_be_wrong(url: str, told: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged, or of a clock that was years ahead: what is due is rolled up all the same."""
    store = ClickHouseStore(url, Retention(fine_s=100))
    store.save([posting([2, 0, 0, 0], second) for second in range(60)])
    store.save([Document(rolling.ROLLED_UP, bucket, told) for bucket in ("10000", "300000")])
    store.maintain(BORN + 200)
    assert len(instants(store, 60)) < 10
    store.close()


def test_a_piece_with_many_rows_is_a_short_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "_MOST_ROWS", 5)
    store = ClickHouseStore(url, Retention(fine_s=100))
    store.save([posting([2, 0, 0, 0], second) for second in range(0, 7200, 120)])
    found = pieces(store, monkeypatch)
    store.maintain(BORN + 7400)
    assert {(bucket_ms, day) for _, bucket_ms, day in found} == {(10_000, 0)}
    assert len(found) == 13, "ten minutes, of five rows, of two hours and a bit"
    assert len(instants(store, 7200)) == 60, "one in 10 seconds there were"
    store.close()


def test_pieces_of_a_busy_time_are_not_sought_from_a_day_on(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one begins with the length of the one before, if that had about as many rows as it may."""
    monkeypatch.setattr(rolling, "_MOST_ROWS", 5)
    store = ClickHouseStore(url, Retention(fine_s=100))
    store.save([posting([2, 0, 0, 0], second) for second in range(0, 7200, 120)])
    counted = []
    rows = store._connection.rows
    monkeypatch.setattr(store._connection, "rows", lambda sql, *args: counted.append(sql) or rows(sql, *args))
    store.maintain(BORN + 7400)
    sizes = [sql for sql in counted if "toInt64(count())" in sql and "second < {until" in sql]
    assert 12 <= len(sizes) <= 20
    store.close()


def test_maintenance_pauses_for_as_long_as_the_server_was_busy_with_it(url: str) -> None:
    """A frame of several statements waited for one of maintenance before each of them."""
    slept: list[float] = []
    store = ClickHouseStore(url, Retention(fine_s=100), sleep=slept.append)
    store.save([posting([2, 0, 0, 0], second) for second in range(60)])
    assert slept == []
    store.maintain(BORN + 200)
    assert len(instants(store, 60)) < 10
    assert len(slept) > 5
    assert all(0 < pause <= 0.5 for pause in slept)
    store.close()


def test_what_is_over_its_age_goes_together(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DELETE takes long, whatever it removes: there was one each ten minutes."""
    store = ClickHouseStore(url, Retention(fine_s=1e6, middle_s=1e6, coarse_s=10_000))
    store.save([posting([2, 0, 0, 0], second) for second in range(0, 4000, 40)])
    deleted = []
    maintain = store._connection.maintain
    monkeypatch.setattr(
        store._connection, "maintain", lambda sql, *args: deleted.append(sql) or maintain(sql, *args)
    )
    kept = []
    for late in (10, 90, 150, 160, 210, 320):
        store._rolling._removed_ms = None
        store.maintain(BORN + 10_000 + late)
        oldest = store.oldest(producer().key)
        assert oldest is not None
        kept.append((len(deleted), round(oldest.at - BORN)))
    assert kept == [(0, 0), (0, 0), (1, 120), (1, 120), (1, 120), (2, 280)]
    store.close()


def test_the_newest_frame_of_a_start_stays_though_an_older_one_was_kept_later(url: str) -> None:
    """It was rolled up to the row that was kept last: 40 of 50 for good where the worker ended then."""
    one, two = (ClickHouseStore(url, Retention(fine_s=100, coarse_s=1000)) for _ in range(2))
    two.save([])
    one.save([posted(account_of((EPOCH, 5, 50)).state(), 33)])
    two.save([posted(account_of((EPOCH, 4, 40)).state(), 35)])

    def counted() -> int:
        [found] = one.totals_at(producer().key, [BORN + 90])
        assert found is not None
        return int(found.totals.counts[0])

    for now_s in (50, 400, 2000):
        one.maintain(BORN + now_s)
        assert counted() == 50
    one.close()
    two.close()


def test_what_only_one_service_knew_of_a_silent_producer_outlives_its_history(url: str) -> None:
    """Each has a row of another start, from before it heard of the other's last frame."""
    one, two = (ClickHouseStore(url, Retention(coarse_s=1000)) for _ in range(2))
    one.save([posted(account_of((EPOCH, 1, 10)).state(), 1)])
    two.save([posted(account_of((EPOCH, 1, 10), (LATER, 1, 2)).state(), 62)])
    one.save([posted(account_of((EPOCH, 2, 30)).state(), 61)])
    assert slots(list(one.accounts())) == [32]
    one.maintain(BORN + 1500)
    assert slots(list(one.accounts())) == [32]
    two.save([posted(account_of((EPOCH, 2, 30), (LATER, 2, 4)).state(), 3000)])
    one.maintain(BORN + 3400)
    rows = one._connection.rows("SELECT intDiv(at_ms, 1000) FROM account", "i")
    assert {at_s - round(BORN) for (at_s,) in rows} == {3000}
    assert slots(list(one.accounts())) == [34]
    one.close()
    two.close()
