"""The size of the database on disk: whole days of traces go, the oldest first.

Dropping a partition frees its disk at once and can be done twice without harm, so that several services may
see the limit passed at the same time. Deleting single requests would free nothing before ClickHouse merges
what is left, and services that measure meanwhile would delete again: too much would go.
"""

from __future__ import annotations

from typing import Final

from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.gone import remember

_TABLES: Final = ("routing", "trace_part")  # the routing first: its headers say which it is


def keep_within(connection: Connection, max_bytes: int, now_ms: int) -> bool:
    """Drop days of traces, never the newest, until the database has ``max_bytes`` at most; whether it has.

    ``now_ms``: milliseconds of Unix time.
    """
    while nbytes(connection) > max_bytes:
        days = connection.rows(
            "SELECT DISTINCT toInt64(partition_id) AS day FROM system.parts "
            "WHERE active AND database = {name:String} AND table IN {tables:Array(String)} ORDER BY day",
            "i",
            {"name": connection.database, "tables": list(_TABLES)},
        )
        if len(days) < 2:
            return False
        day = int(days[0][0])
        remember(connection, f"_partition_id = '{day}'", "evicted", now_ms, {})
        for table in _TABLES:
            connection.command(f"ALTER TABLE {table} DROP PARTITION ID '{day}'")
    return True


def nbytes(connection: Connection) -> int:
    """Bytes of the database on disk, in parts that are in use."""
    [(found,)] = connection.rows(
        "SELECT toInt64(sum(bytes_on_disk)) FROM system.parts WHERE active AND database = {name:String}",
        "i",
        {"name": connection.database},
    )
    return int(found)
