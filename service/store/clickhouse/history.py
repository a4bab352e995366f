"""Totals over time in ClickHouse: at an instant, the oldest, and what goes when."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final

from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.codec import decode_totals
from moescope.service.store.damage import TRIES, DamageLog
from moescope.service.store.limits import Retention
from moescope.service.store.records import Key, StoredTotals

KEY: Final = ("server", "model", "dp_rank", "pp_rank", "tp_rank")
COLUMNS: Final = (*KEY, "second", "at_ms", "epoch", "seq", "totals")
BY_KEY: Final = (
    "server = {server:String} AND model = {model:String} AND dp_rank = {dp_rank:Int64} "
    "AND pp_rank = {pp_rank:Int64} AND tp_rank = {tp_rank:Int64}"
)
# Two services may keep frames of one producer in another order than they came: within this time the newest
# frame counts, not the newest row, so that totals never fall.
_ORDER_MS: Final = 60_000
_AT_ONCE: Final = 100  # parameters travel in the URL


def by_key(key: Key) -> dict[str, Any]:
    """Parameters of :data:`BY_KEY`."""
    return dict(zip(KEY, key, strict=True))


def totals_at(
    connection: Connection, key: Key, instants_ms: Sequence[int], damage: DamageLog
) -> list[StoredTotals | None]:
    """For each instant the newest totals at or before it that can be read.

    Times are read first, of some snapshots before the first instant too, then only the totals wanted.
    """
    if not instants_ms:
        return []
    rows = connection.rows(
        f"SELECT at_ms, epoch, seq FROM snapshot WHERE {BY_KEY} AND at_ms <= {{last:Int64}} "
        f"AND at_ms >= (SELECT min(at_ms) FROM (SELECT at_ms FROM snapshot WHERE {BY_KEY} "
        f"AND at_ms <= {{first:Int64}} ORDER BY at_ms DESC LIMIT {TRIES})) - {_ORDER_MS} "
        "ORDER BY at_ms, epoch, seq",
        "iii",
        {**by_key(key), "first": min(instants_ms), "last": max(instants_ms)},
    )
    found: dict[int, StoredTotals] = {}
    wanted = set(instants_ms)
    for _ in range(TRIES):
        times = [at_ms for at_ms, _, _ in rows]
        chosen = {instant: _newest(rows, times, instant) for instant in wanted}
        read = _read(connection, key, sorted({row for row in chosen.values() if row is not None}), damage)
        found |= {instant: read[row] for instant, row in chosen.items() if row in read}
        lost = {row for row in chosen.values() if row is not None and row not in read}
        if not lost:
            break
        wanted = {instant for instant, row in chosen.items() if row in lost}
        rows = [row for row in rows if row not in lost]
    return [found.get(instant) for instant in instants_ms]


def oldest(connection: Connection, key: Key, damage: DamageLog) -> StoredTotals | None:
    """The oldest totals that are kept of a producer and can be read."""
    rows = connection.rows(
        f"SELECT at_ms, epoch, seq FROM snapshot WHERE {BY_KEY} ORDER BY at_ms LIMIT {TRIES}",
        "iii",
        by_key(key),
    )
    for row in rows:
        for totals in _read(connection, key, [row], damage).values():
            return totals
    return None


def begins(connection: Connection) -> dict[Key, float]:
    """When the oldest totals that are kept of each producer were true, seconds of Unix time."""
    names = ", ".join(KEY)
    rows = connection.rows(f"SELECT {names}, min(at_ms) FROM snapshot GROUP BY {names}", "ttiiii", {})
    return {(row[0], row[1], row[2], row[3], row[4]): row[5] / 1000 for row in rows}


def keep(connection: Connection, retention: Retention, now_ms: int, rolled_up: dict[int, int]) -> None:
    """Roll up history that is old enough and remove what is too old.

    Args:
        connection: the server.
        retention: ages.
        now_ms: milliseconds of Unix time.
        rolled_up: for each bucket's length up to where this service has rolled up; kept up to date here.
    """
    for bucket_ms, age_s in ((10_000, retention.fine_s), (300_000, retention.middle_s)):
        until_ms = (now_ms - int(age_s * 1000)) // bucket_ms * bucket_ms
        if until_ms > rolled_up.get(bucket_ms, 0):
            _roll_up(connection, bucket_ms, rolled_up.get(bucket_ms, 0), until_ms)
            rolled_up[bucket_ms] = until_ms
    before_ms = now_ms - int(retention.coarse_s * 1000)
    key = ", ".join(KEY)
    for table in ("snapshot", "account"):  # epochs are no order: they are of the clocks of hosts
        doomed = f"at_ms < {{before:Int64}} AND ({key}, at_ms) NOT IN "
        newest = f"(SELECT {key}, max(at_ms) FROM {table} GROUP BY {key})"
        [(count,)] = connection.rows(
            f"SELECT toInt64(count()) FROM {table} WHERE {doomed}{newest}", "i", {"before": before_ms}
        )
        if count:
            connection.command(f"DELETE FROM {table} WHERE {doomed}{newest}", {"before": before_ms})


def _roll_up(connection: Connection, bucket_ms: int, since_ms: int, until_ms: int) -> None:
    """Keep the last of each producer's snapshots in a bucket."""
    span = "at_ms >= {since:Int64} AND at_ms < {until:Int64}"
    doomed = (
        f"{span} AND ({', '.join(KEY)}, at_ms) NOT IN (SELECT {', '.join(KEY)}, max(at_ms) FROM snapshot "
        f"WHERE {span} GROUP BY {', '.join(KEY)}, intDiv(at_ms, {bucket_ms}))"
    )
    parameters = {"since": since_ms, "until": until_ms}
    # Looked for first: a DELETE rewrites parts even if it finds nothing.
    [(count,)] = connection.rows(f"SELECT toInt64(count()) FROM snapshot WHERE {doomed}", "i", parameters)
    if count:
        connection.command(f"DELETE FROM snapshot WHERE {doomed}", parameters)


def _newest(rows: Sequence[Any], times: Sequence[int], instant: int) -> Any:
    """The newest frame's row (at_ms, epoch, seq) of those up to an instant and nearly as late as the last."""
    end = bisect_right(times, instant)
    if not end:
        return None
    start = bisect_right(times, times[end - 1] - _ORDER_MS)
    return max(rows[start:end], key=lambda row: (row[1], row[2], row[0]))


def _read(
    connection: Connection, key: Key, rows: Sequence[Any], damage: DamageLog
) -> dict[Any, StoredTotals]:
    """The totals of rows (at_ms, epoch, seq), without those that can't be read."""
    found: dict[Any, StoredTotals] = {}
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        blobs = connection.rows(
            f"SELECT at_ms, epoch, seq, totals FROM snapshot WHERE {BY_KEY} "
            "AND second IN {seconds:Array(Int64)} AND at_ms IN {times:Array(Int64)}",
            "iiib",
            {
                **by_key(key),
                "seconds": sorted({row[0] // 1000 for row in some}),
                "times": sorted({row[0] for row in some}),
            },
        )
        for at_ms, epoch, seq, blob in blobs:
            try:
                found[at_ms, epoch, seq] = StoredTotals(at_ms / 1000, decode_totals(blob))
            except ValueError as error:
                damage.totals(key, error)
    return found
