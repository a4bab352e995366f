"""The size of the database on disk: whole days of traces go, the oldest first.

Dropping a partition frees its disk at once and can be done twice without harm, so that several services may
see the limit passed at the same time. Deleting single requests would free nothing before ClickHouse merges
what is left, and services that measure meanwhile would delete again: too much would go.
"""

from __future__ import annotations

from typing import Final

from moescope.service.store.clickhouse.gone import remember
from moescope.service.store.clickhouse.pacing import Server

DAY_MS: Final = 86_400_000
_TABLES: Final = ("routing", "trace_part")  # the routing first: its headers say which it is


def keep_within(connection: Server, max_bytes: int, now_ms: int) -> bool:
    """Drop days of traces until the database has ``max_bytes`` at most; whether it has.

    Days are those on which requests began, by their workers' clocks, which may be years off. So the day goes
    first whose traces were stored first, by the services' clocks. Never one goes whose traces were stored on
    the newest day on which any were.

    Args:
        connection: the server.
        max_bytes: of the database on disk.
        now_ms: milliseconds of Unix time.
    """
    while nbytes(connection) > max_bytes:
        days = _days(connection, now_ms)
        if not days or days[0][0] // DAY_MS == days[-1][0] // DAY_MS:
            return False
        day = days[0][1]
        remember(connection, f"_partition_id = '{day}'", "evicted", now_ms, {})
        for table in _TABLES:
            connection.maintain(f"ALTER TABLE {table} DROP PARTITION ID '{day}'")
    return True


def _days(connection: Server, now_ms: int) -> list[tuple[int, str]]:
    """Days of traces: when their traces were stored (the middle of them), and their partition; rising.

    Of a day with ids only, whose headers haven't come, when it was.
    """
    stored = dict(
        connection.rows(
            "SELECT _partition_id AS day, toInt64(quantileExact(stored_ms)) FROM trace_part GROUP BY day",
            "ti",
        )
    )
    parts = connection.rows(
        "SELECT DISTINCT partition_id FROM system.parts "
        "WHERE active AND database = {name:String} AND table IN {tables:Array(String)}",
        "t",
        {"name": connection.database, "tables": list(_TABLES)},
    )
    # Names of partitions are numbers, but for what damage made of them: then they are no SQL.
    days = [day for (day,) in parts if day.lstrip("-").isdecimal()]
    return sorted((stored.get(day, min(int(day) * DAY_MS, now_ms)), day) for day in days)


def nbytes(connection: Server) -> int:
    """Bytes of the database on disk, in parts that are in use."""
    [(found,)] = connection.rows(
        "SELECT toInt64(sum(bytes_on_disk)) FROM system.parts WHERE active AND database = {name:String}",
        "i",
        {"name": connection.database},
    )
    return int(found)
