"""Totals over time in ClickHouse, read: at an instant, and the oldest. :mod:`history` has their rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from moescope.service.counts.totals import Totals
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.history import BY_KEY, KEYS, REST, by_key, key_of, of_keys
from moescope.service.store.codec import decode_totals
from moescope.service.store.damage import TRIES, DamageLog
from moescope.service.store.records import Key, StoredTotals

_AT_ONCE: Final = 256
_SOON_S: Final = 3600


class Row(NamedTuple):
    """Where totals of a start of a producer are."""

    key: Key
    epoch: int
    at_ms: int
    seq: int


class Part(NamedTuple):
    """The totals of one start, and when it began."""

    began_ms: int
    totals: Totals


def totals_of(
    connection: Connection, keys: Sequence[Key], instants_ms: Sequence[int], damage: DamageLog
) -> list[list[StoredTotals | None]]:
    """For each producer and each instant the newest totals at or before it that can be read.

    Of each start the newest frame between two instants is found first, then only the totals wanted are read:
    two queries for all producers, unless something is damaged or an earlier moescope kept it.
    """
    if not instants_ms or not keys:
        return [[] for _ in keys]
    edges = sorted(set(instants_ms))
    found: dict[Key, dict[int, StoredTotals | None]] = {key: {} for key in keys}
    lost: set[Row] = set()
    parts: dict[Row, Part] = {}
    left = list(keys)
    for _ in range(TRIES):
        chosen: dict[Key, dict[int, tuple[Row, ...]]] = {key: {} for key in left}
        for start in range(0, len(edges), _AT_ONCE):
            some = edges[start : start + _AT_ONCE]
            for key, rows in _chosen(connection, left, some, lost).items():
                chosen[key] |= zip(some, rows, strict=True)
        wanted = {row for by in chosen.values() for rows in by.values() for row in rows} - parts.keys()
        parts |= _read(connection, sorted(wanted), damage)
        missing = wanted - parts.keys()
        lost |= missing
        damaged = {row.key for row in missing}
        for key in left:
            if key not in damaged:
                found[key] = {instant: _sum(rows, parts) for instant, rows in chosen[key].items()}
        left = [key for key in left if key in damaged]
        if not left:
            break
    for key in _with_former(connection, keys, found, edges):
        before = [instant for instant in edges if found[key].get(instant) is None]
        found[key] |= _former_at(connection, key, before, damage)
    return [[found[key].get(instant) for instant in instants_ms] for key in keys]


def totals_at(
    connection: Connection, key: Key, instants_ms: Sequence[int], damage: DamageLog
) -> list[StoredTotals | None]:
    """For each instant the newest totals at or before it that can be read."""
    [found] = totals_of(connection, [key], instants_ms, damage)
    return found


def oldest_of(connection: Connection, keys: Sequence[Key], damage: DamageLog) -> list[StoredTotals | None]:
    """The oldest totals that are kept of each producer and can be read: few queries for all of them.

    Most begin soon after the first one of all, where the server finds them without reading the rest.
    """
    if not keys:
        return []
    begun = connection.rows("SELECT min(second) FROM life HAVING count() > 0", "i")
    rows = _first_rows(connection, keys, begun[0][0] + _SOON_S) if begun else []
    later = sorted(set(keys) - {row.key for row in rows})
    if begun and later:
        rows += _first_rows(connection, later, None)
    parts = _read(connection, rows, damage)
    found: dict[Key, StoredTotals | None] = {}
    by_producer: dict[Key, list[Row]] = {}
    for row in rows:
        by_producer.setdefault(row.key, []).append(row)
    for key, its in by_producer.items():
        if all(row in parts for row in its):
            found[key] = _sum(its, parts)
    for key in _with_former(connection, keys, {}, [0]) | (set(keys) - found.keys()):
        found[key] = oldest(connection, key, damage)
    return [found.get(key) for key in keys]


def _first_rows(connection: Connection, keys: Sequence[Key], until_s: int | None) -> list[Row]:
    """Where the first totals of each producer are, among those up to a second, or among all."""
    where, asked = of_keys(keys)
    if until_s is not None:
        where, asked = f"{where} AND second <= {{until:Int64}}", {**asked, "until": until_s}
    first = f"SELECT {KEYS}, min(at_ms) FROM life WHERE {where} GROUP BY {KEYS}"
    rows = connection.rows(
        f"SELECT {KEYS}, epoch, at_ms, max(seq) FROM life WHERE {where} AND ({KEYS}, at_ms) IN ({first}) "
        f"GROUP BY {KEYS}, epoch, at_ms",
        "ttiiiiii",
        asked,
    )
    return [Row(key_of(row), *row[5:]) for row in rows]


def oldest(connection: Connection, key: Key, damage: DamageLog) -> StoredTotals | None:
    """The oldest totals that are kept of a producer and can be read."""
    rows = connection.rows(
        f"SELECT at_ms FROM (SELECT at_ms FROM snapshot WHERE {BY_KEY} UNION ALL "
        f"SELECT at_ms FROM life WHERE {BY_KEY}) ORDER BY at_ms LIMIT {TRIES}",
        "i",
        by_key(key),
    )
    for (at_ms,) in rows:
        [totals] = totals_at(connection, key, [at_ms], damage)
        if totals is not None:
            return totals
    return None


def _chosen(
    connection: Connection, keys: Sequence[Key], edges: Sequence[int], lost: Iterable[Row]
) -> dict[Key, list[tuple[Row, ...]]]:
    """For each producer and each of rising instants: of each start the row with its newest frame up to then.

    Rows of a start fall into the intervals between instants, so few come from the server. It looks at every
    row up to the last instant, so each one must cost little: its interval is found by bisection, and the
    newest frame is the largest number of 128 bits, since tuples take four times as long to compare.
    """
    where, asked = of_keys(keys)
    if lost:
        where += (
            " AND (epoch, at_ms, seq) NOT IN arrayZip({e:Array(Int64)}, {a:Array(Int64)}, {s:Array(Int64)})"
        )
        asked |= zip("eas", map(list, zip(*sorted(row[1:] for row in lost), strict=True)), strict=True)
    begins = [edges[0], *(edge + 1 for edge in edges[:-1])]  # what is before the first one belongs to it
    rows = connection.rows(
        f"SELECT {KEYS}, epoch, roundDown(at_ms, {{begins:Array(Int64)}}) AS begin, "
        "toInt64(max(bitShiftLeft(toInt128(seq), 64) + at_ms) AS newest), "
        "toInt64(bitShiftRight(newest - toInt64(newest), 64)) FROM life "
        f"WHERE {where} AND second <= intDiv({{last:Int64}}, 1000) AND at_ms <= {{last:Int64}} "
        f"GROUP BY {KEYS}, epoch, begin ORDER BY begin",
        "ttiiiiiii",
        {**asked, "begins": begins, "last": edges[-1]},
    )
    interval = {begin: place for place, begin in enumerate(begins)}
    by_producer: dict[Key, list[tuple[int, Row]]] = {key: [] for key in keys}
    for row in rows:
        key = key_of(row)
        by_producer[key].append((interval[row[6]], Row(key, row[5], *row[7:])))
    return {key: _over_time(its, len(edges)) for key, its in by_producer.items()}


def _over_time(rows: Sequence[tuple[int, Row]], edges: int) -> list[tuple[Row, ...]]:
    """The rows that count at each edge, from the newest of each start in the intervals that end there."""
    current: dict[int, Row] = {}
    found: list[tuple[Row, ...]] = []
    at = 0
    for interval in range(edges):
        while at < len(rows) and rows[at][0] <= interval:
            row = rows[at][1]
            before = current.get(row.epoch)
            # Of what no start has the first row is right: starts that are forgotten later have rows.
            if before is None or (row.epoch != REST and row.seq > before.seq):
                current[row.epoch] = row
            at += 1
        found.append(tuple(current.values()))
    return found


def _sum(rows: Sequence[Row], parts: Mapping[Row, Part]) -> StoredTotals | None:
    """The totals of some starts together; of a model that has changed only those of its present shape."""
    if not rows:
        return None
    shape = parts[max(rows, key=lambda row: (parts[row].began_ms, row.epoch))].totals.layout
    fitting = [row for row in rows if parts[row].totals.layout.conflict(shape) is None]
    newest = max(fitting, key=lambda row: (row.at_ms, parts[row].began_ms, row.epoch))
    totals = parts[newest].totals
    for row in fitting:
        if row is not newest:
            totals = totals.plus(parts[row].totals)
    return StoredTotals(newest.at_ms / 1000, totals)


def _read(connection: Connection, rows: Sequence[Row], damage: DamageLog) -> dict[Row, Part]:
    """The totals of rows, without those that can't be read."""
    found: dict[Row, Part] = {}
    for start in range(0, len(rows), _AT_ONCE):
        some = {(row.key, row.epoch, row.at_ms, row.seq): row for row in rows[start : start + _AT_ONCE]}
        wanted = list(some.values())
        where, asked = of_keys([row.key for row in wanted])
        asked |= {
            "epochs": [row.epoch for row in wanted],
            "seconds": [row.at_ms // 1000 for row in wanted],
            "times": [row.at_ms for row in wanted],
        }
        each = "arrayZip({dps:Array(Int64)}, {pps:Array(Int64)}, {tps:Array(Int64)}, {epochs:Array(Int64)}, "
        blobs = connection.rows(
            f"SELECT {KEYS}, epoch, at_ms, seq, began_ms, totals FROM life WHERE {where} "
            "AND epoch IN {epochs:Array(Int64)} AND second IN {seconds:Array(Int64)} "
            f"AND (dp_rank, pp_rank, tp_rank, epoch, at_ms) IN {each}{{times:Array(Int64)}})",
            "ttiiiiiiib",
            asked,
        )
        for *which, began_ms, blob in blobs:
            row = some.get((key_of(which), *which[5:]))
            if row is None:
                continue
            try:
                found[row] = Part(began_ms, decode_totals(blob))
            except ValueError as error:
                damage.totals(row.key, error)
    return found


def _with_former(
    connection: Connection,
    keys: Sequence[Key],
    found: Mapping[Key, Mapping[int, StoredTotals | None]],
    edges: Sequence[int],
) -> set[Key]:
    """The producers of which an earlier moescope kept totals, among those that lack some at an instant."""
    lacking = [key for key in keys if any(found.get(key, {}).get(instant) is None for instant in edges)]
    if not lacking:
        return set()
    where, asked = of_keys(lacking)
    rows = connection.rows(f"SELECT DISTINCT {KEYS} FROM snapshot WHERE {where}", "ttiii", asked)
    return {key_of(row) for row in rows}


def _former_at(
    connection: Connection, key: Key, instants_ms: Sequence[int], damage: DamageLog
) -> dict[int, StoredTotals | None]:
    """The newest totals up to each instant that an earlier moescope kept, of all starts together."""
    found: dict[int, StoredTotals | None] = {}
    first = connection.rows(
        f"SELECT min(at_ms), toInt64(count()) FROM snapshot WHERE {BY_KEY}", "ii", by_key(key)
    )
    for instant in instants_ms:
        if not first[0][1] or instant < first[0][0]:
            continue
        rows = connection.rows(
            f"SELECT at_ms, totals FROM snapshot WHERE {BY_KEY} AND at_ms <= {{last:Int64}} "
            f"ORDER BY at_ms DESC LIMIT {TRIES}",
            "ib",
            {**by_key(key), "last": instant},
        )
        for at_ms, blob in rows:
            try:
                found[instant] = StoredTotals(at_ms / 1000, decode_totals(blob))
            except ValueError as error:
                damage.totals(key, error)
            else:
                break
    return found
