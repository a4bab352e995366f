"""Accounts and their totals over time, of which some rows are damaged."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.frames import producer
from tests.service.store.sqlite.damage import NOW, RANKS, TRACES, check, counts_of, flip


def test_damage_in_one_row_costs_that_row_only(
    tmp_path: Path, whole: bytes, log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(whole)
    connection = sqlite3.connect(tmp_path / FILE)
    [blob] = connection.execute("SELECT account FROM producer WHERE dp_rank = 2").fetchone()
    with connection:
        connection.execute(
            "UPDATE producer SET account = ? WHERE dp_rank = 2", (flip(blob, [len(blob) * 4]),)
        )
    connection.close()
    assert check(tmp_path) == (RANKS - 1, TRACES)
    told = "the account of ('prod', 'tiny', 2, 0, 0) can't be read and is left out: a damaged blob"
    assert told in log.text


def test_a_damaged_snapshot_is_passed_over(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / FILE).write_bytes(whole)
    connection = sqlite3.connect(tmp_path / FILE)
    with connection:
        at_ms = round((NOW + 5) * 1000)
        connection.execute("UPDATE snapshot SET totals = randomblob(50) WHERE at_ms = ?", (at_ms,))
    connection.close()
    store = SqliteStore(tmp_path, Retention())
    [found] = store.totals_at(producer(dp_rank=1, dp_size=RANKS).key, [NOW + 5.5])
    store.close()
    assert found is not None
    assert found.at == NOW + 4
    assert found.totals.counts[0] == counts_of(1, 4)[0]


@pytest.mark.parametrize("column", ["account", "birth_ms", "at_ms"])
@pytest.mark.parametrize("value", ["'of another type'", "NULL", "0.5"])
def test_a_row_of_another_type_costs_that_row_only(
    tmp_path: Path, whole: bytes, log: pytest.LogCaptureFixture, column: str, value: str
) -> None:
    """One bit of a row's header makes a text of a blob; a large file is not looked through at the start."""
    _loosen(tmp_path, whole)
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute(f"UPDATE producer SET {column} = {value} WHERE dp_rank = 2")
    assert check(tmp_path) == (RANKS - 1, TRACES)
    assert "the account of ('prod', 'tiny', 2, 0, 0) can't be read and is left out: a damaged" in log.text


def test_totals_of_another_type_are_passed_over(tmp_path: Path, whole: bytes) -> None:
    _loosen(tmp_path, whole)
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute("UPDATE snapshot SET totals = NULL WHERE at_ms > ?", (round((NOW + 4) * 1000),))
    with closing(SqliteStore(tmp_path, Retention())) as store:
        [found] = store.totals_at(producer(dp_rank=1, dp_size=RANKS).key, [NOW + 8.5])
    assert found is not None
    assert found.at == NOW + 4


def _loosen(folder: Path, whole: bytes) -> None:
    """Let every column have every type, so that the look at the start finds nothing wrong with it."""
    (folder / FILE).write_bytes(whole)
    with closing(sqlite3.connect(folder / FILE)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_schema SET sql = replace(replace(sql, 'NOT NULL', ''), ') STRICT', ')') "
            "WHERE name IN ('producer', 'snapshot')"
        )
