"""The ClickHouse that a folder is moved to: what is there, what is written, and what is read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from moescope.capture.wire.traces import NO_EXPERT
from moescope.service.store.clickhouse import account_rows, documents, history
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.history import KEY, KEYS, REST
from moescope.service.store.clickhouse.kept import Mark
from moescope.service.store.clickhouse.rolling import ROLLED_UP
from moescope.service.store.clickhouse.rowbinary import Value
from moescope.service.store.clickhouse.trace_rows import PART_COLUMNS, ROUTING_COLUMNS
from moescope.service.store.codec import decode_posting, encode_account
from moescope.service.store.moving.parts import PART_KEY, MovedPart, PartKey
from moescope.service.store.moving.progress import MOVING
from moescope.service.store.records import Document, Key, Posting
from moescope.service.store.upkeep import AGED

_SNAPSHOT: Final = (*KEY, "second", "at_ms", "epoch", "seq", "totals")
_GONE: Final = ("name", "why", "at_ms")
_NO_DATA: Final = (MOVING, ROLLED_UP, AGED)
"""Documents that say nothing of workers."""
_PART_KINDS: Final = ("String", "String", "Int64", "String", *["Int64"] * 5)


class Target:
    """Rows of the services' tables. Writing one again is harmless.

    Args:
        connection: the server, its schema up to date.
        name: of the folder.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self._writer = f"moved-{name}"

    def what_is_there(self) -> dict[str, int]:
        """How much there is, by what it is; nothing of what is empty."""
        counts = {
            "producers": f"SELECT toInt64(uniqExact({KEYS})) FROM account",
            "rows of history": "SELECT toInt64(sum(n)) FROM (SELECT count() AS n FROM life UNION ALL "
            "SELECT count() AS n FROM snapshot)",
            "parts of traces": "SELECT toInt64(count()) FROM trace_part",
            "documents": "SELECT toInt64(count()) FROM document FINAL WHERE gone = 0 "
            "AND kind NOT IN {kinds:Array(String)}",
        }
        asked = {"kinds": list(_NO_DATA)}
        found = {what: self.connection.rows(sql, "i", asked)[0][0] for what, sql in counts.items()}
        return {what: count for what, count in found.items() if count}

    def summed_up(self, keys: Sequence[Key]) -> list[Key]:
        """Producers among these of which there is history of all starts together, which can't be merged."""
        if not keys:
            return []
        where, asked = history.of_keys(keys)
        rows = self.connection.rows(f"SELECT DISTINCT {KEYS} FROM snapshot WHERE {where}", "ttiii", asked)
        return [history.key_of(row) for row in rows]

    def write_history(self, key: Key, snapshots: Sequence[tuple[int, bytes]]) -> None:
        """Keep (instant in milliseconds of Unix time, totals) of a producer, of all its starts together."""
        rows: list[list[Value]] = [
            [*key, at_ms // 1000, at_ms, REST, 0, totals] for at_ms, totals in snapshots
        ]
        self.connection.insert("snapshot", _SNAPSHOT, rows)

    def history(self, key: Key, instants_ms: Sequence[int]) -> list[tuple[int, bytes]]:
        """(instant, totals) of those of these instants that are there."""
        return self.connection.rows(
            f"SELECT at_ms, totals FROM snapshot FINAL WHERE {history.BY_KEY} "
            "AND second IN {seconds:Array(Int64)} AND at_ms IN {times:Array(Int64)}",
            "ib",
            {
                **history.by_key(key),
                "seconds": [at_ms // 1000 for at_ms in instants_ms],
                "times": list(instants_ms),
            },
        )

    def write_accounts(self, postings: Sequence[Posting]) -> None:
        """Keep accounts, and the last totals of each of their starts.

        They are rows of no start: the services write rows of starts, and none of theirs takes their place.
        """
        lives: list[list[Value]] = []
        rows: list[list[Value]] = []
        for item in postings:
            marks = {life.epoch: Mark.of(item, life) for life in item.account.epochs}
            lives += history.row_of(item, marks, whole=True)
            times = round(item.birth * 1000), round(item.at * 1000)
            rows.append([*item.key, REST, 0, *times, self._writer, encode_account(item.account)])
        self.connection.insert("life", history.COLUMNS, lives)
        self.connection.insert("account", account_rows.COLUMNS, rows)

    def account(self, key: Key) -> Posting | None:
        """The account that was moved of a producer; None: it isn't there, or can't be read."""
        rows = self.connection.rows(
            f"SELECT birth_ms, at_ms, account FROM account FINAL WHERE {history.BY_KEY} AND epoch = {REST}",
            "iib",
            history.by_key(key),
        )
        try:
            return decode_posting(key, *rows[0]) if rows else None
        except ValueError:
            return None

    def starts(self, key: Key, at_ms: int) -> list[bytes]:
        """The totals of each start of a producer at an instant."""
        rows = self.connection.rows(
            f"SELECT totals FROM life FINAL WHERE {history.BY_KEY} AND second = intDiv({{at:Int64}}, 1000) "
            "AND at_ms = {at:Int64}",
            "b",
            {**history.by_key(key), "at": at_ms},
        )
        return [blob for (blob,) in rows]

    def write_parts(self, routing: list[list[Value]], headers: list[list[Value]]) -> None:
        """Keep parts of traces; a part is seen by its header, so that comes last."""
        self.connection.insert("routing", ROUTING_COLUMNS, routing)
        self.connection.insert("trace_part", PART_COLUMNS, headers)

    def headers(self, parts: Sequence[MovedPart]) -> dict[PartKey, tuple[int, int, int]]:
        """(life, tokens, bytes that tell of them) of those of these parts that are there."""
        where, asked = _these(parts)
        rows = self.connection.rows(
            f"SELECT {', '.join(PART_KEY)}, life, tokens, "
            "toInt64(length(names) + length(runs) + length(steps) + length(taken_over)) "
            f"FROM trace_part FINAL WHERE {where}",
            "ttitiiiiiiii",
            asked,
        )
        return {tuple(row[: len(PART_KEY)]): row[len(PART_KEY) :] for row in rows}

    def slots(self, parts: Sequence[MovedPart]) -> tuple[int, int]:
        """How many slots those of these parts have that are there, and the sum of their experts' ids."""
        where, asked = _these(parts)
        [(slots, ids)] = self.connection.rows(
            f"SELECT toInt64(sum(length(ids8) + length(ids16) - countEqual(ids16, {NO_EXPERT}))), "
            f"toInt64(sum(arraySum(ids8) + arraySum(ids16))) FROM routing FINAL WHERE {where}",
            "ii",
            asked,
        )
        return slots, ids

    def write_gone(self, names: Sequence[tuple[int, str]], at_ms: int) -> None:
        """Remember names of requests that were removed, as hashes, and why."""
        self.connection.insert("gone", _GONE, [[name, why, at_ms] for name, why in names])

    def gone(self, names: Sequence[tuple[int, str]]) -> int:
        """How many of these are remembered."""
        asked = {"names": [name for name, _ in names]}
        sql = "SELECT toInt64(count()) FROM gone FINAL WHERE name IN {names:Array(Int64)}"
        [(found,)] = self.connection.rows(sql, "i", asked)
        return int(found)

    def document(self, kind: str, name: str) -> bytes | None:
        """What the newest word on a document says, nothing if it is that it is gone; None: there is none."""
        found = self.word_on(kind, name)
        return None if found is None else found[0]

    def word_on(self, kind: str, name: str) -> tuple[bytes, float] | None:
        """:meth:`document`, and when that was written, seconds of Unix time."""
        rows: list[Any] = self.connection.rows(
            "SELECT if(gone = 1, '', content), version FROM document FINAL WHERE kind = {kind:String} "
            "AND name = {name:String}",
            "bi",
            {"kind": kind, "name": name},
        )
        return (rows[0][0], rows[0][1] / 1e9) if rows else None

    def write_documents(self, some: Sequence[Document]) -> None:
        """Keep documents."""
        rows = documents.rows_of(self.connection, some)
        self.connection.insert("document", documents.COLUMNS, rows)


def _these(parts: Sequence[MovedPart]) -> tuple[str, dict[str, object]]:
    """A condition for rows of some parts, and its parameters: sets of each column first, as in `of_keys`."""
    keys = [part.key for part in parts]
    arrays = [f"{{c{i}:Array({kind})}}" for i, kind in enumerate(_PART_KINDS)]
    each = " AND ".join(f"{name} IN {array}" for name, array in zip(PART_KEY, arrays, strict=True))
    where = f"{each} AND ({', '.join(PART_KEY)}) IN arrayZip({', '.join(arrays)})"
    return where, {f"c{i}": list(values) for i, values in enumerate(zip(*keys, strict=True))}
