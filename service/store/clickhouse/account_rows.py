"""Accounts of producers in ClickHouse: a row for each epoch of each producer, whichever service kept it.

A row has the whole account of the service that kept it, as it was when that epoch's newest frame came there.
So each start's newest frame is in the row of that start, whatever other starts the other services hear of;
what a service does not know it can't replace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from moescope.service.counts.merging import merge_accounts
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.history import KEY, row_of
from moescope.service.store.clickhouse.kept import Kept, Mark
from moescope.service.store.clickhouse.rowbinary import Value
from moescope.service.store.codec import decode_posting, encode_account
from moescope.service.store.records import Key, Posting, Record

COLUMNS: Final = (*KEY, "epoch", "seq", "birth_ms", "at_ms", "writer", "account")
_MAX_EPOCHS: Final = 64
SERVER_US: Final = "toUnixTimestamp64Micro(now64(6))"
_KEY: Final = ", ".join(KEY)
OVERLAP_US: Final = 60_000_000
"""How much later than it was written a row may be seen: an insert takes time, and so does a replica."""


@dataclass(slots=True)
class Rows:
    """Rows that postings make, encoded, and what the store has once they are written."""

    accounts: list[list[Value]] = field(default_factory=list)
    lives: list[list[Value]] = field(default_factory=list)
    of_accounts: list[tuple[Posting, dict[int, Mark]]] = field(default_factory=list)
    of_lives: list[tuple[Posting, dict[int, Mark]]] = field(default_factory=list)


def rows_of(records: Sequence[Record], writer: str, accounts: Kept, lives: Kept) -> Rows:
    """Rows of ``account`` and of ``life`` for what the store lacks, encoded before anything is written.

    Args:
        records: the postings among them are taken.
        writer: the service that keeps them.
        accounts: what ``account`` is known to have; ``lives``: what ``life`` has.

    Raises:
        TypeError, ValueError, OverflowError: a record can't be kept.
    """
    found = Rows()
    for record in records:
        if not isinstance(record, Posting):
            continue
        if not all(isinstance(value, str | int) for value in record.key):
            raise TypeError(f"{record.key} is no key of a producer")
        state, at_ms = record.account, round(record.at * 1000)
        lacking = accounts.lacking(record)
        blob = encode_account(state) if lacking else b""
        found.accounts += [
            [*record.key, epoch, mark.seq, round(record.birth * 1000), at_ms, writer, blob]
            for epoch, mark in lacking.items()
        ]
        found.of_accounts.append((record, lacking))
        lacking = lives.lacking(record)
        found.lives += row_of(record, lacking, whole=not lives.knows(record.key))
        found.of_lives.append((record, lacking))
    return found


class News:
    """What other services keep of producers, in the order in which the server has it.

    The server's own time of each row is what goes by: the services' clocks may be wrong. What was told is
    remembered for as long as the query finds it: memory is bounded by the producers and epochs of which other
    services kept an account in the last minute.

    Args:
        connection: the server.
        writer: this service.
        kept: gets what is read.
        leave_out: is told of a producer's account that can't be read.
    """

    def __init__(
        self, connection: Connection, writer: str, kept: Kept, leave_out: Callable[[Key, ValueError], None]
    ) -> None:
        self._connection = connection
        self._writer = writer
        self._kept = kept
        self._leave_out = leave_out
        self._newest_us = 0
        self._read: Counter[Key] = Counter()
        self.seen: dict[tuple[Key, int], int] = {}
        """Producer and epoch to when the server had the row that was read."""

    def read(self) -> list[Posting]:
        """Accounts that other services kept since the last call."""
        # A time to come is damage: it would be the newest for good.
        where = f"writer != {{me:String}} AND written > {{since:Int64}} AND written <= {SERVER_US}"
        asked = dict[str, object]()
        asked |= {"me": self._writer, "since": self._newest_us - OVERLAP_US}
        light = self._connection.rows(
            f"SELECT {_KEY}, epoch, max(written) FROM account WHERE {where} GROUP BY {_KEY}, epoch",
            "ttiiiii",
            asked,
        )
        rows = {(_key(row), row[5]): row[6] for row in light}
        wanted = {row for row, written in rows.items() if self.seen.get(row, 0) < written}
        told: list[Posting] = []
        if wanted:
            asked["epochs"] = sorted({epoch for _, epoch in wanted})
            self._read.clear()
            told = list(
                _postings(self._connection, where + " AND epoch IN {epochs:Array(Int64)}", asked, self)
            )
            for row in wanted:
                # What was not among them is a row that a newer frame's has replaced, or there were too many.
                if self._read[row[0]] < _MAX_EPOCHS:
                    self.seen[row] = max(rows[row], self.seen.get(row, 0))
        self._newest_us = max([self._newest_us, *self.seen.values()])
        oldest = self._newest_us - OVERLAP_US
        self.seen = {row: written for row, written in self.seen.items() if written > oldest}
        return told

    def wants(self, key: Key, epoch: int, written: int) -> bool:
        """Whether a row is news; then it is seen."""
        self._read[key] += 1
        if self.seen.get((key, epoch), 0) >= written:
            return False
        self.seen[key, epoch] = written
        return True

    def note(self, posting: Posting, epoch: int) -> None:
        """A row was read."""
        _note(self._kept, posting, epoch)

    def left_out(self, key: Key, error: ValueError) -> None:
        """A row can't be read."""
        self._leave_out(key, error)


class _Everything:
    """Rows at the start: all of them."""

    def __init__(self, kept: Kept, leave_out: Callable[[Key, ValueError], None]) -> None:
        self._kept = kept
        self.left_out = leave_out

    def wants(self, _key: Key, _epoch: int, _written: int) -> bool:
        return True

    def note(self, posting: Posting, epoch: int) -> None:
        _note(self._kept, posting, epoch)


def all_postings(
    connection: Connection, kept: Kept, leave_out: Callable[[Key, ValueError], None]
) -> Iterator[Posting]:
    """The newest posting of every producer, its epochs from whichever service knew them best.

    Args:
        connection: the server.
        kept: gets what is read.
        leave_out: is told of a producer's account that can't be read.
    """
    yield from _postings(connection, "1", {}, _Everything(kept, leave_out))


def _postings(
    connection: Connection, where: str, parameters: dict[str, object], reader: News | _Everything
) -> Iterator[Posting]:
    """Postings from rows of ``account``, of which a producer has one for each of its newest epochs."""
    rows = connection.rows(
        f"SELECT {_KEY}, epoch, seq, birth_ms, at_ms, written, account "
        f"FROM account FINAL WHERE {where} ORDER BY {_KEY}, at_ms DESC LIMIT {_MAX_EPOCHS} BY {_KEY}",
        "ttiiiiiiiib",
        parameters,
    )
    merged: dict[Key, Posting] = {}
    for row in rows:
        key, (epoch, _, birth_ms, at_ms, written, blob) = _key(row), row[5:]
        if not reader.wants(key, epoch, written):
            continue
        try:
            posting = decode_posting(key, birth_ms, at_ms, blob)
        except ValueError as error:
            reader.left_out(key, error)
            continue
        reader.note(posting, epoch)
        before = merged.get(key)
        merged[key] = posting if before is None else _merged_posting(before, posting)
    yield from merged.values()


def _key(row: Sequence[Any]) -> Key:
    return row[0], row[1], row[2], row[3], row[4]


def _note(kept: Kept, posting: Posting, epoch: int) -> None:
    for life in posting.account.epochs:
        if life.epoch == epoch:
            kept.note(posting.key, epoch, Mark.of(posting, life))


def _merged_posting(one: Posting, other: Posting) -> Posting:
    """One posting from two of the same producer."""
    account = merge_accounts(one.account, other.account, _MAX_EPOCHS)
    if one.account.totals.layout.conflict(other.account.totals.layout) is not None:
        newer = one if account.latest is one.account.latest else other  # the other one is of a former model
        return replace(newer, account=account)
    return Posting(one.key, min(one.birth, other.birth), max(one.at, other.at), account)
