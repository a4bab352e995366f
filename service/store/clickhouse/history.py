"""Totals over time in ClickHouse: their rows, and what goes when; :mod:`history_reading` reads them.

Totals are kept by start of a producer: two services may each hear what the other does not, and a sum that one
of them makes may lack what an earlier sum of the other has. Of each start the newest frame up to an instant
counts, so the sum over starts never falls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from moescope.service.counts.parts import part_of
from moescope.service.counts.totals import Totals
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.kept import Kept, Mark
from moescope.service.store.clickhouse.pacing import Server
from moescope.service.store.clickhouse.rowbinary import Value
from moescope.service.store.codec import encode_totals
from moescope.service.store.records import Forgotten, Key, Posting

KEY: Final = ("server", "model", "dp_rank", "pp_rank", "tp_rank")
KEYS: Final = ", ".join(KEY)
"""The columns of :data:`KEY`, as SQL has them."""
COLUMNS: Final = (*KEY, "epoch", "second", "at_ms", "seq", "began_ms", "totals")
BY_KEY: Final = (
    "server = {server:String} AND model = {model:String} AND dp_rank = {dp_rank:Int64} "
    "AND pp_rank = {pp_rank:Int64} AND tp_rank = {tp_rank:Int64}"
)
REST: Final = -1
"""The epoch of what is in no start that is known."""
_MOST_S: Final = 1e15


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


def note_all(connection: Connection, kept: Kept, keys: Sequence[Key] | None = None) -> None:
    """Note what ``life`` has of each start, of some producers or of all."""
    where, asked = ("1", dict[str, object]()) if keys is None else of_keys(keys)
    rows = connection.rows(
        f"SELECT {KEYS}, epoch, max(seq) FROM life WHERE {where} GROUP BY {KEYS}, epoch "
        f"ORDER BY {KEYS}, epoch",
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


def delete(connection: Server, table: str, doomed: str, parameters: Mapping[str, object]) -> None:
    """Delete rows, if there are any; it may take minutes."""
    # Looked for first: a DELETE rewrites parts even if it finds nothing.
    [(count,)] = connection.rows(f"SELECT toInt64(count()) FROM {table} WHERE {doomed}", "i", parameters)
    if count:
        connection.delete(table, doomed, parameters)


def key_of(row: Sequence[Any]) -> Key:
    """The producer that a row begins with."""
    return row[0], row[1], row[2], row[3], row[4]


def of_keys(keys: Sequence[Key]) -> tuple[str, dict[str, object]]:
    """A condition for rows of some producers, and its parameters.

    A set for each column comes first, since by these ClickHouse skips what is in none. Where they have no
    other combinations, as with all ranks of a deployment, they say all: comparing tuples takes long.
    """
    columns = dict(zip(("servers", "models", "dps", "pps", "tps"), zip(*keys, strict=True), strict=True))
    kinds = ("String", "String", "Int64", "Int64", "Int64")
    arrays = [f"{{{name}:Array({kind})}}" for name, kind in zip(columns, kinds, strict=True)]
    each = [f"{column} IN {array}" for column, array in zip(KEY, arrays, strict=True)]
    where = " AND ".join(each)
    if math.prod(len(set(values)) for values in columns.values()) > len(set(keys)):
        where += f" AND ({KEYS}) IN arrayZip({', '.join(arrays)})"
    return where, {name: list(values) for name, values in columns.items()}
