"""The embedded store: what is saved is there, once, thinned and bounded as the settings say."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from moescope.service.store import schema
from moescope.service.store.records import Document, Forgotten, StoreError
from moescope.service.store.retention import Retention
from moescope.service.store.sqlite import FILE, SqliteStore
from tests.service.store.accounts import BORN, key, posting

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


def instants(store: SqliteStore, upto_s: int, dp_rank: int = 0) -> list[int]:
    """Seconds after the birth at which a producer has totals."""
    found = store.totals_at(key(dp_rank), [BORN + second for second in range(upto_s + 1)])
    return sorted({round(item.at - BORN) for item in found if item is not None})


def test_what_was_saved_is_there_after_opening_again(open_store: Open) -> None:
    open_store().save([posting([4, 2, 1, 1], 5), posting([6, 6, 6, 6], 7, dp_rank=1)])
    store = open_store()
    saved = {item.key: item for item in store.accounts()}
    assert set(saved) == {key(0), key(1)}
    assert (saved[key(1)].birth, saved[key(1)].at) == (BORN, BORN + 7)
    np.testing.assert_array_equal(saved[key(1)].account.totals.counts, [6] * 8)
    [found] = store.totals_at(key(0), [BORN + 6])
    assert found is not None
    np.testing.assert_array_equal(found.totals.counts, [4, 2, 1, 1, 4, 2, 1, 1])


def test_documents_are_kept_by_name_until_they_are_removed(open_store: Open) -> None:
    open_store().save(
        [
            Document("a", "two", b"2"),
            Document("a", "one", b"1"),
            Document("b", "one", b""),
            Document("a", "x", b"x"),
        ]
    )
    store = open_store()
    store.save([Document("a", "two", b"22"), Document("a", "x", None), Document("a", "absent", None)])
    assert open_store().documents("a") == [("one", b"1"), ("two", b"22")]
    assert open_store().documents("b") == [("one", b"")]
    assert open_store().documents("c") == []


def test_totals_are_the_newest_at_or_before_an_instant(open_store: Open) -> None:
    store = open_store()
    store.save([posting([2 * n, 0, 0, 0], n) for n in (2, 4, 6)])
    found = store.totals_at(key(), [BORN + s for s in (1, 2, 5, 60)])
    assert [item and int(item.totals.counts[0]) for item in found] == [None, 4, 8, 12]
    oldest = store.oldest(key())
    assert oldest is not None
    assert oldest.at == BORN + 2
    assert store.totals_at(key(1), [BORN + 5]) == [None]
    assert store.oldest(key(1)) is None


def test_a_second_keeps_its_last_totals(open_store: Open) -> None:
    store = open_store()
    for tenth in range(25):
        store.save([posting([2 * tenth, 0, 0, 0], tenth / 10)])
    assert store.usage().snapshots == 3
    found = store.totals_at(key(), [BORN + 0.95, BORN + 1.95, BORN + 2.95])
    assert [item and int(item.totals.counts[0]) for item in found] == [18, 38, 48]


def test_saving_twice_is_saving_once(open_store: Open) -> None:
    store = open_store()
    for _ in range(2):
        store.save([posting([2, 0, 0, 0], 5)])
    assert store.usage().snapshots == 1
    assert len(list(store.accounts())) == 1


def test_all_or_nothing(open_store: Open) -> None:
    store = open_store()
    broken = posting([2, 0, 0, 0], 5, dp_rank=1)
    object.__setattr__(broken, "key", ("prod", "tiny", object(), 0, 0))
    with pytest.raises(StoreError):
        store.save([posting([2, 0, 0, 0], 5), broken])
    assert list(store.accounts()) == []
    store.save([posting([2, 0, 0, 0], 5)])
    assert len(list(store.accounts())) == 1


def test_a_forgotten_producer_goes_with_its_history(open_store: Open) -> None:
    store = open_store()
    store.save([posting([2, 0, 0, 0], 5), posting([2, 0, 0, 0], 5, dp_rank=1)])
    store.save([Forgotten(key(0))])
    assert [item.key for item in store.accounts()] == [key(1)]
    assert store.usage().snapshots == 1


def test_another_shape_begins_a_new_history(open_store: Open) -> None:
    store = open_store()
    store.save([posting([2, 0, 0, 0], 5)])
    store.save([posting([2, 0], 9, began_again=True)])
    assert instants(store, 20) == [9]


def test_history_is_rolled_up_and_ends(open_store: Open) -> None:
    store = open_store(fine_s=100, middle_s=1000, coarse_s=3000)
    base = 100 * 36  # a whole number of 300 s after Unix time 1.7e9 is at 100, 400, ...
    store.save([posting([2, 0, 0, 0], second) for second in range(base, base + 400)])
    store.maintain(BORN + base + 400)
    recent = instants(store, base + 400)
    assert [s for s in recent if s >= base + 300] == list(range(base + 300, base + 400))
    assert [s for s in recent if s < base + 300] == list(range(base + 9, base + 300, 10))
    store.maintain(BORN + base + 1500)
    assert [s for s in instants(store, base + 400) if s < base + 400] == [base + 99, base + 399]
    store.maintain(BORN + base + 1500)
    assert instants(store, base + 400) == [base + 99, base + 399]
    store.maintain(BORN + base + 3600)
    assert instants(store, base + 400) == [base + 399]  # the newest stays: it is the totals themselves


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
