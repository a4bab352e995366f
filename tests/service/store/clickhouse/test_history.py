"""Totals over time where several services keep frames of one producer."""

from __future__ import annotations

from moescope.service.store.clickhouse.store import ClickHouseStore
from tests.service.frames import EPOCH, producer
from tests.service.store.accounts import BORN, account_of, posted


def test_totals_never_fall_when_an_older_frame_is_kept_later(replicas: list[ClickHouseStore]) -> None:
    one, two = replicas
    one.save([posted(account_of((EPOCH, 1, 10)).state(), 1), posted(account_of((EPOCH, 5, 50)).state(), 5)])
    two.save([posted(account_of((EPOCH, 4, 40)).state(), 7)])
    found = one.totals_at(producer().key, [BORN + second for second in (0, 1, 4, 5, 7, 99)])
    assert [item and int(item.totals.counts[0]) for item in found] == [None, 10, 10, 50, 50, 50]
