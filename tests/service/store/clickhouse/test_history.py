"""Totals over time where several services keep frames of one producer."""

from __future__ import annotations

from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.records import Forgotten
from tests.service.frames import EPOCH, producer
from tests.service.store.accounts import BORN, LATER, account_of, posted, slots


def test_totals_never_fall_when_an_older_frame_is_kept_later(replicas: list[ClickHouseStore]) -> None:
    one, two = replicas
    one.save([posted(account_of((EPOCH, 1, 10)).state(), 1), posted(account_of((EPOCH, 5, 50)).state(), 5)])
    two.save([posted(account_of((EPOCH, 4, 40)).state(), 7)])
    found = one.totals_at(producer().key, [BORN + second for second in (0, 1, 4, 5, 7, 99)])
    assert [item and int(item.totals.counts[0]) for item in found] == [None, 10, 10, 50, 50, 50]


def test_two_frames_of_one_start_and_instant_count_once(replicas: list[ClickHouseStore]) -> None:
    """The oldest totals were the sum of both, until ClickHouse merged their rows: 22 of 12."""
    one, two = replicas
    two.save([])
    one.save([posted(account_of((EPOCH, 1, 10)).state(), 1)])
    two.save([posted(account_of((EPOCH, 2, 12)).state(), 1)])
    key = producer().key
    [first], at = one.oldest_of([key]), one.totals_at(key, [BORN + 1])
    assert [item and int(item.totals.counts[0]) for item in (first, one.oldest(key), *at)] == [12, 12, 12]


def test_starts_that_are_forgotten_count_once_whoever_keeps_the_next_frame(
    replicas: list[ClickHouseStore],
) -> None:
    """The other service had looked before the producer was: the forgotten starts counted again, 90 of 70."""
    one, two = replicas
    two.save([])
    frames = [(EPOCH + n * 10**9, 1, 10) for n in range(6)]
    for n in range(6):
        one.save([posted(account_of(*frames[: n + 1]).state(), 60 * n + 1)])
    [told] = two.news()
    assert len(told.account.epochs) < len(frames)
    two.save([posted(account_of(*frames[:5], (frames[5][0], 2, 20)).state(), 500)])
    found = one.totals_at(producer().key, [BORN + second for second in (1, 400, 501)])
    assert [item and int(item.totals.counts[0]) for item in found] == [10, 60, 70]


def test_what_comes_back_with_a_producer_that_is_forgotten_is_kept_anew(
    replicas: list[ClickHouseStore],
) -> None:
    one, _ = replicas
    key = producer().key
    one.save([posted(account_of((EPOCH, 1, 10)).state(), 1)])
    back = posted(account_of((EPOCH, 1, 10), (LATER, 1, 2)).state(), 61)
    one.save([posted(account_of((EPOCH, 1, 10)).state(), 1), Forgotten(key, ((EPOCH, 1),), BORN + 60), back])
    [found] = one.totals_at(key, [BORN + 99])
    assert found is not None
    assert int(found.totals.counts[0]) == 12
    assert slots(list(one.accounts())) == [12]


def test_a_producer_is_forgotten_though_a_frame_of_it_waited_before(replicas: list[ClickHouseStore]) -> None:
    one, _ = replicas
    before = posted(account_of((EPOCH, 1, 10)).state(), 1)
    one.save([before, Forgotten(before.key, ((EPOCH, 1),), BORN + 60)])
    assert list(one.accounts()) == []
