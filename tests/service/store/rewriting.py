"""Changes what a store keeps behind its back, as damage or a newer moescope would."""

from __future__ import annotations

from collections.abc import Callable

from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.interface import Store
from moescope.service.store.sqlite.store import SqliteStore


def rewrite(store: Store, table: str, column: str, where: str, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes in a column of the only row that there is where a condition holds.

    Args:
        store: of either engine.
        table: by its name; the history of totals is ``snapshot``.
        column: by its name, which both engines share; so are those in ``where``.
        where: in SQL.
        change: from the old bytes to the new ones.
    """
    if isinstance(store, SqliteStore):
        table = {"account": "producer"}.get(table, table)
        [(old,)] = store._writer.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchall()
        store._writer.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (change(old),))
        return
    assert isinstance(store, ClickHouseStore)
    table = {"snapshot": "life"}.get(table, table)
    [(old,)] = store._connection.rows(f"SELECT {column} FROM {table} FINAL WHERE {where}", "b")
    store._connection.command(
        f"ALTER TABLE {table} UPDATE {column} = unhex('{change(old).hex()}') WHERE {where} "
        "SETTINGS mutations_sync = 1"
    )
