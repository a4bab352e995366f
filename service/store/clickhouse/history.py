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
from moescope.service.store.limits import Retention
from moescope.service.store.records import Forgotten, Key, Posting, StoredTotals

KEY: Final = ("server", "model", "dp_rank", "pp_rank", "tp_rank")
COLUMNS: Final = (*KEY, "epoch", "second", "at_ms", "seq", "began_ms", "totals")
BY_KEY: Final = (
    "server = {server:String} AND model = {model:String} AND dp_rank = {dp_rank:Int64} "
    "AND pp_rank = {pp_rank:Int64} AND tp_rank = {tp_rank:Int64}"
)
REST: Final = -1
"""The epoch of what is in no start that is known."""
_MOST_S: Final = 1e15
_AT_ONCE: Final = 100  # parameters travel in the URL


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


class _Row(NamedTuple):
    """Where totals of a start are."""

    epoch: int
    at_ms: int
    seq: int
    began_ms: int


def totals_at(
    connection: Connection, key: Key, instants_ms: Sequence[int], damage: DamageLog
) -> list[StoredTotals | None]:
    """For each instant the newest totals at or before it that can be read.

    Of each start the newest frame between two instants is found first, then only the totals wanted are read.
    """
    if not instants_ms:
        return []
    edges = sorted(set(instants_ms))
    found: dict[int, StoredTotals | None] = {}
    lost: set[_Row] = set()
    parts: dict[_Row, Totals] = {}
    for _ in range(TRIES):
        chosen: dict[int, tuple[_Row, ...]] = {}
        for start in range(0, len(edges), _AT_ONCE):
            some = edges[start : start + _AT_ONCE]
            chosen |= zip(some, _chosen(connection, key, some, lost), strict=True)
        wanted = {row for rows in chosen.values() for row in rows} - parts.keys()
        parts |= _read(connection, key, sorted(wanted), damage)
        missing = wanted - parts.keys()
        if not missing:
            found = {instant: _sum(rows, parts) for instant, rows in chosen.items()}
            break
        lost |= missing
    before = [instant for instant in edges if found.get(instant) is None]
    if before:
        found |= _former_at(connection, key, before, damage)
    return [found.get(instant) for instant in instants_ms]


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


def note_all(connection: Connection, kept: Kept) -> None:
    """Note what ``life`` has of each start."""
    names = ", ".join(KEY)
    rows = connection.rows(
        f"SELECT {names}, epoch, max(seq) FROM life GROUP BY {names}, epoch ORDER BY {names}, epoch",
        "ttiiiii",
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
    _delete(connection, "snapshot", where, asked)


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
            for table in ("snapshot", "life"):
                _roll_up(connection, table, bucket_ms, rolled_up.get(bucket_ms, 0), until_ms)
            rolled_up[bucket_ms] = until_ms
    before_ms = now_ms - int(retention.coarse_s * 1000)
    for table in ("snapshot", "account", "life"):  # epochs are no order: they are of the clocks of hosts
        # Of each start the newest totals before that stay: they are in every sum after that.
        key = ", ".join(_one_of(table))
        doomed = f"at_ms < {{before:Int64}} AND ({key}, at_ms) NOT IN "
        newest = f"(SELECT {key}, max(at_ms) FROM {table} GROUP BY {key})"
        if table == "life":
            newest = f"(SELECT {key}, max(at_ms) FROM life WHERE at_ms < {{before:Int64}} GROUP BY {key})"
        _delete(connection, table, doomed + newest, {"before": before_ms})


def _one_of(table: str) -> tuple[str, ...]:
    """What has a series of totals of its own in a table."""
    return (*KEY, "epoch") if table == "life" else KEY


def _delete(connection: Connection, table: str, doomed: str, parameters: Mapping[str, object]) -> None:
    # Looked for first: a DELETE rewrites parts even if it finds nothing.
    [(count,)] = connection.rows(f"SELECT toInt64(count()) FROM {table} WHERE {doomed}", "i", parameters)
    if count:
        connection.command(f"DELETE FROM {table} WHERE {doomed}", parameters)


def _roll_up(connection: Connection, table: str, bucket_ms: int, since_ms: int, until_ms: int) -> None:
    """Keep the last of each producer's snapshots in a bucket, or of each of its starts."""
    span, key = "at_ms >= {since:Int64} AND at_ms < {until:Int64}", ", ".join(_one_of(table))
    doomed = (
        f"{span} AND ({key}, at_ms) NOT IN (SELECT {key}, max(at_ms) FROM {table} "
        f"WHERE {span} GROUP BY {key}, intDiv(at_ms, {bucket_ms}))"
    )
    _delete(connection, table, doomed, {"since": since_ms, "until": until_ms})


def _chosen(
    connection: Connection, key: Key, edges: Sequence[int], lost: Iterable[_Row]
) -> list[tuple[_Row, ...]]:
    """For each of rising instants the row of each start that has its newest frame up to then.

    Rows of a start fall into the intervals between instants, so few come from the server.
    """
    lost = sorted(lost)
    rows = connection.rows(
        "SELECT epoch, toInt64(arrayCount(edge -> edge < at_ms, {edges:Array(Int64)})) AS interval, "
        "tupleElement(max((seq, at_ms, began_ms)) AS newest, 2), tupleElement(newest, 1), "
        "tupleElement(newest, 3) FROM life "
        f"WHERE {BY_KEY} AND at_ms <= {{last:Int64}} "
        "AND (epoch, at_ms, seq) NOT IN arrayZip({e:Array(Int64)}, {a:Array(Int64)}, {s:Array(Int64)}) "
        "GROUP BY epoch, interval ORDER BY interval",
        "iiiii",
        {
            **by_key(key),
            "edges": list(edges),
            "last": edges[-1],
            "e": [row.epoch for row in lost],
            "a": [row.at_ms for row in lost],
            "s": [row.seq for row in lost],
        },
    )
    current: dict[int, _Row] = {}
    found: list[tuple[_Row, ...]] = []
    at = 0
    for interval in range(len(edges)):
        while at < len(rows) and rows[at][1] <= interval:
            epoch, _, at_ms, seq, began_ms = rows[at]
            row, before = _Row(epoch, at_ms, seq, began_ms), current.get(epoch)
            # Of what no start has the first row is right: starts that are forgotten later have rows.
            if before is None or (epoch != REST and row.seq > before.seq):
                current[epoch] = row
            at += 1
        found.append(tuple(current.values()))
    return found


def _sum(rows: Sequence[_Row], parts: Mapping[_Row, Totals]) -> StoredTotals | None:
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


def _read(connection: Connection, key: Key, rows: Sequence[_Row], damage: DamageLog) -> dict[_Row, Totals]:
    """The totals of rows, without those that can't be read."""
    found: dict[_Row, Totals] = {}
    for start in range(0, len(rows), _AT_ONCE):
        some = {(row.epoch, row.at_ms, row.seq): row for row in rows[start : start + _AT_ONCE]}
        blobs = connection.rows(
            f"SELECT epoch, at_ms, seq, totals FROM life WHERE {BY_KEY} AND epoch IN {{epochs:Array(Int64)}} "
            "AND second IN {seconds:Array(Int64)} AND at_ms IN {times:Array(Int64)}",
            "iiib",
            {
                **by_key(key),
                "epochs": sorted({epoch for epoch, _, _ in some}),
                "seconds": sorted({at_ms // 1000 for _, at_ms, _ in some}),
                "times": sorted({at_ms for _, at_ms, _ in some}),
            },
        )
        for *which, blob in blobs:
            row = some.get(tuple(which))
            if row is None:
                continue
            try:
                found[row] = decode_totals(blob)
            except ValueError as error:
                damage.totals(key, error)
    return found


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
