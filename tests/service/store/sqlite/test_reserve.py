"""The space that is kept for a start on a full disk; `make soak` starts on one that is really full."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.records import StoreError
from moescope.service.store.sqlite import connections
from moescope.service.store.sqlite.reserve import BYTES, NAME
from moescope.service.store.sqlite.store import FILE, SqliteStore


def test_the_reserve_is_given_up_for_a_start_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SqliteStore(tmp_path, Retention()).close()
    reserve = tmp_path / NAME
    assert reserve.stat().st_blocks * 512 >= BYTES, "it must take the space, not only name it"
    prepare = connections.prepare

    def full_while_reserved(writer: sqlite3.Connection) -> None:
        if reserve.exists():
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        prepare(writer)

    monkeypatch.setattr(connections, "prepare", full_while_reserved)
    store = SqliteStore(tmp_path, Retention())
    store.maintain(0)
    assert reserve.exists()
    store.close()


def test_another_fault_keeps_it(tmp_path: Path) -> None:
    SqliteStore(tmp_path, Retention()).close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(StoreError, match="schema 999"):
        SqliteStore(tmp_path, Retention())
    assert (tmp_path / NAME).exists()
