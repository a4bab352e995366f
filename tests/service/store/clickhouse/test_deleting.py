"""Rows are deleted in the server's background: nobody waits for that but who asked for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.limits import Retention
from moescope.service.store.records import StoreError
from tests.service.store.accounts import BORN, instants, posting
from tests.waiting import wait_until

OLD = "at_ms < {before:Int64}"


@pytest.fixture
def store(url: str) -> Iterator[ClickHouseStore]:
    """A store that has a minute of history, a row a second."""
    made = ClickHouseStore(url, Retention(fine_s=100))
    made.save([posting([2, 0, 0, 0], second) for second in range(60)])
    yield made
    made.connection.command("SYSTEM START MERGES life")
    made.connection.command(f"KILL MUTATION WHERE database = '{made.connection.database}'")
    made.close()


def changes(connection: Connection) -> list[tuple[int]]:
    """Of each change of the history's rows whether it is done."""
    return connection.rows(
        "SELECT toInt64(is_done) FROM system.mutations WHERE database = {name:String} AND table = 'life' "
        "ORDER BY create_time",
        "i",
        {"name": connection.database},
    )


def test_a_frame_does_not_wait_for_a_deletion_that_takes_long(store: ClickHouseStore) -> None:
    """Here it takes until the server is let go on; a frame waited for two seconds among 6.6 million rows."""
    store.connection.command("SYSTEM STOP MERGES life")
    maintenance = threading.Thread(target=store.maintain, args=(BORN + 200,))
    maintenance.start()
    wait_until(lambda: changes(store.connection) == [(0,)], lambda: str(changes(store.connection)))
    store.save([posting([4, 0, 0, 0], 61)])
    assert len(instants(store, 61)) == 61, "nothing is gone"
    assert maintenance.is_alive(), "what comes next relies on it"
    store.connection.command("SYSTEM START MERGES life")
    maintenance.join()
    assert set(changes(store.connection)) == {(1,)}
    assert len(instants(store, 61)) < 10


def test_a_deletion_that_fails_says_so_and_no_more_are_queued_behind_it(store: ClickHouseStore) -> None:
    bad = f"{OLD} AND throwIf(second > 0, 'no room') = 0"
    before = {"before": round((BORN + 30) * 1000)}
    for _ in range(2):
        with pytest.raises(StoreError, match=r"could not delete from life.*no room"):
            store.connection.delete("life", bad, before)
    assert changes(store.connection) == [(0,)]
    assert len(instants(store, 60)) == 60
    store.connection.command(f"KILL MUTATION WHERE database = '{store.connection.database}'")
    store.connection.delete("life", OLD, before)
    assert len(instants(store, 60)) == 30


def test_a_cluster_is_waited_for_by_the_server(
    store: ClickHouseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica, when asked, may not have heard of the deletion."""
    connection, before = store.connection, {"before": round((BORN + 30) * 1000)}
    told: list[str] = []
    maintain = connection.maintain
    monkeypatch.setattr(connection, "maintain", lambda sql, *asked: told.append(sql) or maintain(sql, *asked))
    monkeypatch.setattr(connection, "cluster", "three")
    connection.delete("life", OLD, before)
    assert told == [f"DELETE FROM life WHERE {OLD}"]
    assert len(instants(store, 60)) == 30
