"""How long the embedded store keeps what, and what goes first when its share of the disk is full."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from moescope.service.store.interface import Absence
from moescope.service.store.limits import Retention
from moescope.service.store.sqlite.connections import transaction
from moescope.service.store.sqlite.gone import remember

_PATIENCE_MS: Final = 200  # for readers; the senders of frames wait as long
_BATCH: Final = 200  # rows a transaction removes, so that writers and readers wait for milliseconds


def keep(
    connection: sqlite3.Connection,
    retention: Retention,
    now_ms: int,
    history_ms: int,
    size: Callable[[], int],
) -> bool:
    """Roll up history that is old enough, remove what is too old, then the oldest until the size fits.

    False: see :func:`keep_within`. Traces age by ``now_ms``, history by ``history_ms``, milliseconds of Unix
    time.
    """
    _roll_up(connection, 10_000, history_ms - int(retention.fine_s * 1000))
    _roll_up(connection, 300_000, history_ms - int(retention.middle_s * 1000))
    removed = _remove_before(connection, history_ms - int(retention.coarse_s * 1000))
    removed += _remove_traces(connection, now_ms - int(retention.trace_s * 1000), retention.max_bytes)
    if removed:
        _give_back(connection)
    return keep_within(connection, retention.max_bytes, size)


def keep_within(connection: sqlite3.Connection, max_bytes: int, size: Callable[[], int]) -> bool:
    """Remove the oldest snapshots and traces until the files fit; each producer's newest snapshot stays.

    False, and nothing more is removed: somebody has been reading since before, so that the log, which counts
    too, can't be emptied. What is removed would only make it longer.
    """
    while size() > max_bytes:
        if not _empty_log(connection):
            return False
        if size() <= max_bytes or not _remove_oldest(connection, max_bytes):
            return True
        _give_back(connection)
    return True


def _empty_log(connection: sqlite3.Connection) -> bool:
    """Copy the log into the database, where it may well fit, and truncate it; False: a reader hinders it."""
    [wait_ms] = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS}")
    try:
        [busy, _, _] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {wait_ms}")
    return not busy


def _give_back(connection: sqlite3.Connection) -> None:
    """Return free pages to the disk; ``execute`` would stop after the first page."""
    connection.executescript("PRAGMA incremental_vacuum")


def _roll_up(connection: sqlite3.Connection, bucket_ms: int, before_ms: int) -> None:
    """Keep the last of each producer's snapshots in a bucket, for whole buckets before an instant."""
    until_ms = before_ms // bucket_ms * bucket_ms
    row = connection.execute("SELECT until_ms FROM rolled_up WHERE bucket_ms = ?", (bucket_ms,)).fetchone()
    since_ms = 0 if row is None else row[0]
    if until_ms <= since_ms:
        return
    doomed = connection.execute(
        "SELECT id FROM snapshot AS older WHERE at_ms >= ? AND at_ms < ? AND EXISTS ("
        "SELECT 1 FROM snapshot AS newer WHERE newer.producer = older.producer "
        "AND newer.at_ms > older.at_ms AND newer.at_ms < (older.at_ms / ? + 1) * ?)",
        (since_ms, until_ms, bucket_ms, bucket_ms),
    ).fetchall()
    _remove(connection, doomed)
    connection.execute(
        "INSERT INTO rolled_up VALUES (?, ?) "
        "ON CONFLICT (bucket_ms) DO UPDATE SET until_ms = excluded.until_ms",
        (bucket_ms, until_ms),
    )


def _remove_before(connection: sqlite3.Connection, before_ms: int) -> int:
    doomed = connection.execute(
        f"SELECT id FROM snapshot WHERE at_ms < ? AND id NOT IN ({_NEWEST})", (before_ms,)
    ).fetchall()
    _remove(connection, doomed)
    return len(doomed)


def _remove_traces(connection: sqlite3.Connection, before_ms: int, max_bytes: int) -> int:
    doomed = connection.execute("SELECT id FROM request WHERE stored_ms < ?", (before_ms,)).fetchall()
    _remove_requests(connection, doomed, "expired", max_bytes)
    return len(doomed)


def _remove_oldest(connection: sqlite3.Connection, max_bytes: int) -> bool:
    """Remove some of the oldest snapshots, or as many traces, whichever are older."""
    snapshots = connection.execute(
        f"SELECT id, at_ms FROM snapshot WHERE id NOT IN ({_NEWEST}) ORDER BY at_ms LIMIT ?", (_BATCH,)
    ).fetchall()
    requests = connection.execute(
        "SELECT id, stored_ms FROM request ORDER BY stored_ms LIMIT ?", (_BATCH // 20,)
    ).fetchall()
    if requests and (not snapshots or requests[0][1] <= snapshots[0][1]):
        _remove_requests(connection, [row[:1] for row in requests], "evicted", max_bytes)
        return True
    _remove(connection, [row[:1] for row in snapshots])
    return bool(snapshots)


def _remove(connection: sqlite3.Connection, ids: list[tuple[int]]) -> None:
    for start in range(0, len(ids), _BATCH):
        with transaction(connection):
            connection.executemany("DELETE FROM snapshot WHERE id = ?", ids[start : start + _BATCH])


def _remove_requests(
    connection: sqlite3.Connection, ids: list[tuple[int]], why: Absence, max_bytes: int
) -> None:
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        with transaction(connection):
            remember(connection, batch, why, max_bytes)
            connection.executemany("DELETE FROM request WHERE id = ?", batch)


# A producer may have none, if its snapshots were lost by damage: NULL would make every NOT IN unknown.
_NEWEST: Final = (
    "SELECT newest FROM (SELECT (SELECT id FROM snapshot WHERE producer = producer.id "
    "ORDER BY at_ms DESC LIMIT 1) AS newest FROM producer) WHERE newest IS NOT NULL"
)
