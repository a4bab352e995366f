"""The embedded store: what is saved is there, once, thinned and bounded as the settings say."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.records import StoreError
from moescope.service.store.sqlite import schema
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.store.accounts import BORN, instants, posting

Open = Callable[..., SqliteStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    """Open the store of the test; at the end it is closed."""
    stores: list[SqliteStore] = []

    def opened(**retention: float) -> SqliteStore:
        for store in stores:
            store.close()
        stores[:] = [SqliteStore(tmp_path / "store", Retention(**retention))]  # type: ignore[arg-type]
        return stores[0]

    yield opened
    for store in stores:
        store.close()


def test_the_disk_has_a_limit_and_the_oldest_goes_first(open_store: Open) -> None:
    store = open_store(max_bytes=1 << 20)
    rng = np.random.default_rng(0)
    wide = [posting((2 * rng.integers(0, 10**6, 512)).tolist(), second) for second in range(600)]
    store.save(wide)
    assert store.usage().nbytes > 1 << 20
    store.maintain(BORN + 600)
    assert store.usage().nbytes <= 1 << 20
    kept = instants(store, 600)
    assert 50 < len(kept) < 600
    assert kept == list(range(600 - len(kept), 600))
    assert [item.at for item in store.accounts()] == [BORN + 599]


def test_one_service_at_a_time(open_store: Open, tmp_path: Path) -> None:
    open_store()
    with pytest.raises(StoreError, match="another service has it"):
        SqliteStore(tmp_path / "store", Retention())


def test_a_foreign_database_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as foreign:
        foreign.execute("CREATE TABLE theirs (x)")
    foreign.close()
    with pytest.raises(StoreError, match="not a moescope store"):
        SqliteStore(tmp_path, Retention())


def test_a_newer_schema_is_refused(open_store: Open, tmp_path: Path) -> None:
    open_store().close()
    connection = sqlite3.connect(tmp_path / "store" / FILE)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"schema 99.*upgrade"):
        SqliteStore(tmp_path / "store", Retention())


def test_an_old_schema_is_migrated_with_what_it_holds(tmp_path: Path) -> None:
    """Also what a new migration has to stand: see how each of the older schemas becomes the newest."""
    connection = sqlite3.connect(tmp_path / "old", isolation_level=None)
    schema.migrate(connection, "old", schema.MIGRATIONS[:1])
    connection.execute("INSERT INTO producer VALUES (1, 's', 'm', 0, 0, 0, 5, 6, x'01')")
    schema.migrate(connection, "old")
    schema.migrate(connection, "old")
    assert connection.execute("SELECT server, birth_ms FROM producer").fetchall() == [("s", 5)]
    assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
    connection.close()


def test_a_migration_that_fails_leaves_the_old_schema(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "old", isolation_level=None)
    schema.migrate(connection, "old")
    with pytest.raises(sqlite3.Error):
        schema.migrate(connection, "old", (*schema.MIGRATIONS, "CREATE TABLE more (x); NONSENSE;"))
    connection.close()
    connection = sqlite3.connect(tmp_path / "old")
    assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
    assert not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'more'").fetchall()
    connection.close()


def test_the_schema_is_on_the_first_page(tmp_path: Path) -> None:
    """Else nothing can be rescued of a file whose end is missing."""
    SqliteStore(tmp_path, Retention()).close()
    whole = (tmp_path / FILE).read_bytes()
    leaf_of_a_table = 13
    assert whole[100] == leaf_of_a_table  # the kind of page, after the header of the file


def test_others_can_not_read_it_whatever_the_folder_lets_them(open_store: Open, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(0o755)
    open_store().save([posting([1, 1], 1)])
    assert {file.name: oct(file.stat().st_mode & 0o077) for file in (tmp_path / "store").iterdir()} == (
        dict.fromkeys([FILE, f"{FILE}-wal", f"{FILE}-shm", "lock", "reserve"], "0o0")
    )


def test_a_producer_whose_history_was_lost_does_not_keep_that_of_others(open_store: Open) -> None:
    store = open_store(coarse_s=100)
    store.save([posting([second, 0], second) for second in range(50)])
    store.save([posting([1, 1], 0, dp_rank=1)])
    store._writer.execute("DELETE FROM snapshot WHERE at_ms = ? AND producer = 2", (int(BORN * 1000),))
    store.maintain(BORN + 1000)
    assert store.usage().snapshots == 1


def test_a_full_disk_is_said_to_be_full_and_the_store_goes_on(open_store: Open) -> None:
    store = open_store()
    [pages] = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    rng = np.random.default_rng(0)
    with pytest.raises(StoreError, match="database or disk is full"):
        store.save([posting((2 * rng.integers(0, 10**9, 4000)).tolist(), second) for second in range(10)])
    store._writer.execute(f"PRAGMA max_page_count = {pages + 1000}")
    store.save([posting([1, 1], 1)])
    assert store.usage().snapshots == 1
