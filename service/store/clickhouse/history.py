"""Totals over time in ClickHouse: at an instant, the oldest, and what goes when.

Totals are kept by start of a producer: two services may each hear what the other does not, and a sum that one
of them makes may lack what an earlier sum of the other has. Of each start the newest frame up to an instant
counts, so the sum over starts never falls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from moescope.service.counts.parts import part_of
from moescope.service.counts.totals import Totals
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.kept import Kept, Mark
from moescope.service.store.clickhouse.rowbinary import Value
from moescope.service.store.codec import decode_totals, encode_totals
from moescope.service.store.damage import TRIES, DamageLog
from moescope.service.store.records import Forgotten, Key, Posting, StoredTotals

KEY: Final = ("server", "model", "dp_rank", "pp_rank", "tp_rank")
_KEY: Final = ", ".join(KEY)
COLUMNS: Final = (*KEY, "epoch", "second", "at_ms", "seq", "began_ms", "totals")
BY_KEY: Final = (
    "server = {server:String} AND model = {model:String} AND dp_rank = {dp_rank:Int64} "
    "AND pp_rank = {pp_rank:Int64} AND tp_rank = {tp_rank:Int64}"
)
REST: Final = -1
"""The epoch of what is in no start that is known."""
_MOST_S: Final = 1e15
_AT_ONCE: Final = 256
_SOON_S: Final = 3600


def by_key(key: Key) -> dict[str, Any]:
    """Parameters of :data:`BY_KEY`."""
    return dict(zip(KEY, key, strict=True))


def row_of(posting: Posting, lacking: Mapping[int, Mark], whole: bool) -> list[list[Value]]:
    """Rows of ``life``.

    Args:
        posting: what is known of a producer.
        lacking: its starts that are to be kept.
        whole: nothing of the producer is in the table: what is in the account's sum only is kept too.
    """
    account, at_ms = posting.account, round(posting.at * 1000)
    rows: list[list[Value]] = []
    rest = account.totals
    for life in account.epochs:
        part = part_of(life)
        if whole:
            rest = rest.minus(part)
        if life.epoch in lacking:
            rows.append(
                _row(
                    posting.key,
                    life.epoch,
                    at_ms,
                    life.seq,
                    round(life.began_at * 1000),
                    part,
                    account.totals,
                )
            )
    if whole and _is_something(rest):
        rows.append(_row(posting.key, REST, at_ms, 0, 0, rest, account.totals))
    return rows


def _row(
    key: Key, epoch: int, at_ms: int, seq: int, began_ms: int, part: Totals, whole: Totals
) -> list[Value]:
    told = replace(
        part,
        dp_size=whole.dp_size,
        ep_size=whole.ep_size,
        switches=whole.switches,
        former_tokens=whole.former_tokens,
        weights=whole.weights,
    )
    return [*key, epoch, at_ms // 1000, at_ms, seq, began_ms, encode_totals(told)]


def _is_something(rest: Totals) -> bool:
    numbers = (rest.tokens, rest.steps, rest.idle_steps, rest.unphased_tokens, *rest.drops.values())
    arrays = (rest.counts, rest.rows, rest.unplaced, rest.unphased_rows, rest.estimated)
    return any(numbers) or rest.stragglers is not None or any(array.any() for array in arrays)


class Row(NamedTuple):
    """Where totals of a start of a producer are."""

    key: Key
    epoch: int
    at_ms: int
    seq: int
    began_ms: int


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
    parts: dict[Row, Totals] = {}
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
    where, asked = _these(keys)
    if until_s is not None:
        where, asked = f"{where} AND second <= {{until:Int64}}", {**asked, "until": until_s}
    first = f"SELECT {_KEY}, min(at_ms) FROM life WHERE {where} GROUP BY {_KEY}"
    rows = connection.rows(
        f"SELECT {_KEY}, epoch, at_ms, seq, began_ms FROM life "
        f"WHERE {where} AND ({_KEY}, at_ms) IN ({first})",
        "ttiiiiiii",
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


def note_all(connection: Connection, kept: Kept, keys: Sequence[Key] | None = None) -> None:
    """Note what ``life`` has of each start, of some producers or of all."""
    where, asked = ("1", dict[str, object]()) if keys is None else _these(keys)
    rows = connection.rows(
        f"SELECT {_KEY}, epoch, max(seq) FROM life WHERE {where} GROUP BY {_KEY}, epoch "
        f"ORDER BY {_KEY}, epoch",
        "ttiiiii",
        asked,
    )
    for row in rows:
        kept.note((row[0], row[1], row[2], row[3], row[4]), row[5], Mark(row[6]))


def forget(connection: Connection, gone: Forgotten) -> None:
    """Remove what is known of a producer, and nothing that another service has kept meanwhile."""
    bounds = dict(gone.lives)
    if bounds:
        where = f"{BY_KEY} AND seq <= transform(epoch, {{epochs:Array(Int64)}}, {{seqs:Array(Int64)}}, -1)"
        bounds[REST] = 0
        asked = {**by_key(gone.key), "epochs": list(bounds), "seqs": list(bounds.values())}
        for table in ("life", "account"):
            connection.command(f"DELETE FROM {table} WHERE {where}", asked)
    _forget_former(connection, gone.key, gone.until)


def begin_again(connection: Connection, posting: Posting) -> None:
    """Remove the history of the starts of a producer whose model had another shape."""
    if posting.account.forgotten:
        asked = {**by_key(posting.key), "epochs": [*posting.account.forgotten, REST]}
        for table in ("life", "account"):
            connection.command(
                f"DELETE FROM {table} WHERE {BY_KEY} AND epoch IN {{epochs:Array(Int64)}}", asked
            )
    _forget_former(connection, posting.key, posting.at)


def _forget_former(connection: Connection, key: Key, until: float) -> None:
    until_ms = min(until, _MOST_S) * 1000
    where, asked = f"{BY_KEY} AND at_ms <= {{until:Int64}}", {**by_key(key), "until": round(until_ms)}
    delete(connection, "snapshot", where, asked)


def begins(connection: Connection) -> dict[Key, float]:
    """When the oldest totals that are kept of each producer were true, seconds of Unix time."""
    names = ", ".join(KEY)
    rows = connection.rows(
        f"SELECT {names}, min(at_ms) FROM (SELECT {names}, at_ms FROM snapshot UNION ALL "
        f"SELECT {names}, at_ms FROM life) GROUP BY {names}",
        "ttiiii",
        {},
    )
    return {(row[0], row[1], row[2], row[3], row[4]): row[5] / 1000 for row in rows}


def delete(connection: Connection, table: str, doomed: str, parameters: Mapping[str, object]) -> None:
    """Delete rows, if there are any; it may take minutes."""
    # Looked for first: a DELETE rewrites parts even if it finds nothing.
    [(count,)] = connection.rows(f"SELECT toInt64(count()) FROM {table} WHERE {doomed}", "i", parameters)
    if count:
        connection.maintain(f"DELETE FROM {table} WHERE {doomed}", parameters)


def key_of(row: Sequence[Any]) -> Key:
    """The producer that a row begins with."""
    return row[0], row[1], row[2], row[3], row[4]


def _these(keys: Sequence[Key]) -> tuple[str, dict[str, object]]:
    """A condition for rows of some producers, and its parameters.

    A set for each column comes first, since by these ClickHouse skips what is in none.
    """
    columns = dict(zip(("servers", "models", "dps", "pps", "tps"), zip(*keys, strict=True), strict=True))
    kinds = ("String", "String", "Int64", "Int64", "Int64")
    arrays = [f"{{{name}:Array({kind})}}" for name, kind in zip(columns, kinds, strict=True)]
    each = [f"{column} IN {array}" for column, array in zip(KEY, arrays, strict=True)]
    where = f"{' AND '.join(each)} AND ({_KEY}) IN arrayZip({', '.join(arrays)})"
    return where, {name: list(values) for name, values in columns.items()}


def _chosen(
    connection: Connection, keys: Sequence[Key], edges: Sequence[int], lost: Iterable[Row]
) -> dict[Key, list[tuple[Row, ...]]]:
    """For each producer and each of rising instants: of each start the row with its newest frame up to then.

    Rows of a start fall into the intervals between instants, so few come from the server.
    """
    where, asked = _these(keys)
    lost = sorted(lost)
    rows = connection.rows(
        f"SELECT {_KEY}, epoch, "
        "toInt64(arrayCount(edge -> edge < at_ms, {edges:Array(Int64)})) AS interval, "
        "tupleElement(max((seq, at_ms, began_ms)) AS newest, 2), tupleElement(newest, 1), "
        "tupleElement(newest, 3) FROM life "
        f"WHERE {where} AND second <= intDiv({{last:Int64}}, 1000) AND at_ms <= {{last:Int64}} "
        "AND (epoch, at_ms, seq) NOT IN arrayZip({e:Array(Int64)}, {a:Array(Int64)}, {s:Array(Int64)}) "
        f"GROUP BY {_KEY}, epoch, interval ORDER BY interval",
        "ttiiiiiiii",
        {
            **asked,
            "edges": list(edges),
            "last": edges[-1],
            "e": [row.epoch for row in lost],
            "a": [row.at_ms for row in lost],
            "s": [row.seq for row in lost],
        },
    )
    by_producer: dict[Key, list[Any]] = {key: [] for key in keys}
    for row in rows:
        by_producer[key_of(row)].append(row[5:])
    return {key: _over_time(key, its, len(edges)) for key, its in by_producer.items()}


def _over_time(key: Key, rows: Sequence[Any], edges: int) -> list[tuple[Row, ...]]:
    """The rows that count at each edge, from the newest of each start in the intervals that end there."""
    current: dict[int, Row] = {}
    found: list[tuple[Row, ...]] = []
    at = 0
    for interval in range(edges):
        while at < len(rows) and rows[at][1] <= interval:
            epoch, _, at_ms, seq, began_ms = rows[at]
            row, before = Row(key, epoch, at_ms, seq, began_ms), current.get(epoch)
            # Of what no start has the first row is right: starts that are forgotten later have rows.
            if before is None or (epoch != REST and row.seq > before.seq):
                current[epoch] = row
            at += 1
        found.append(tuple(current.values()))
    return found


def _sum(rows: Sequence[Row], parts: Mapping[Row, Totals]) -> StoredTotals | None:
    """The totals of some starts together; of a model that has changed only those of its present shape."""
    if not rows:
        return None
    shape = parts[max(rows, key=lambda row: (row.began_ms, row.epoch))].layout
    fitting = [row for row in rows if parts[row].layout.conflict(shape) is None]
    newest = max(fitting, key=lambda row: (row.at_ms, row.began_ms, row.epoch))
    totals = parts[newest]
    for row in fitting:
        if row is not newest:
            totals = totals.plus(parts[row])
    return StoredTotals(newest.at_ms / 1000, totals)


def _read(connection: Connection, rows: Sequence[Row], damage: DamageLog) -> dict[Row, Totals]:
    """The totals of rows, without those that can't be read."""
    found: dict[Row, Totals] = {}
    for start in range(0, len(rows), _AT_ONCE):
        some = {(row.key, row.epoch, row.at_ms, row.seq): row for row in rows[start : start + _AT_ONCE]}
        wanted = list(some.values())
        where, asked = _these([row.key for row in wanted])
        asked |= {
            "epochs": [row.epoch for row in wanted],
            "seconds": [row.at_ms // 1000 for row in wanted],
            "times": [row.at_ms for row in wanted],
        }
        each = "arrayZip({dps:Array(Int64)}, {pps:Array(Int64)}, {tps:Array(Int64)}, {epochs:Array(Int64)}, "
        blobs = connection.rows(
            f"SELECT {_KEY}, epoch, at_ms, seq, totals FROM life WHERE {where} "
            "AND epoch IN {epochs:Array(Int64)} AND second IN {seconds:Array(Int64)} "
            f"AND (dp_rank, pp_rank, tp_rank, epoch, at_ms) IN {each}{{times:Array(Int64)}})",
            "ttiiiiiib",
            asked,
        )
        for *which, blob in blobs:
            row = some.get((key_of(which), *which[5:]))
            if row is None:
                continue
            try:
                found[row] = decode_totals(blob)
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
    where, asked = _these(lacking)
    rows = connection.rows(f"SELECT DISTINCT {_KEY} FROM snapshot WHERE {where}", "ttiii", asked)
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
