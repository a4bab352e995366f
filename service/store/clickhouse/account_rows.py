"""Accounts of producers in ClickHouse: a row for each epoch of each producer, whichever service kept it.

A row has the whole account of the service that kept it, as it was when that epoch's newest frame came there.
So each start's newest frame is in the row of that start, whatever other starts the other services hear of;
what a service does not know it can't replace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from moescope.service.counts.merging import merge_accounts
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.history import KEY, key_of, row_of
from moescope.service.store.clickhouse.kept import Kept, Mark
from moescope.service.store.clickhouse.rowbinary import Value
from moescope.service.store.codec import decode_posting, encode_account
from moescope.service.store.records import Key, Posting, Record

COLUMNS: Final = (*KEY, "epoch", "seq", "birth_ms", "at_ms", "writer", "account")
MAX_EPOCHS: Final = 64
"""Starts of a producer whose rows are read at once, the newest."""
_KEY: Final = ", ".join(KEY)


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


class Reader(Protocol):
    """Who reads rows of accounts, and says which of them."""

    def wants(self, key: Key, epoch: int, seq: int, written: int) -> bool:
        """Whether the account of a row is to be decoded."""

    def note(self, posting: Posting, epoch: int) -> None:
        """A row was read."""

    def left_out(self, key: Key, error: ValueError) -> None:
        """A row can't be read."""


class _Everything:
    """Rows at the start: all of them."""

    def __init__(self, kept: Kept, leave_out: Callable[[Key, ValueError], None]) -> None:
        self._kept = kept
        self.left_out = leave_out

    def wants(self, _key: Key, _epoch: int, _seq: int, _written: int) -> bool:
        return True

    def note(self, posting: Posting, epoch: int) -> None:
        note(self._kept, posting, epoch)


def all_postings(
    connection: Connection, kept: Kept, leave_out: Callable[[Key, ValueError], None]
) -> Iterator[Posting]:
    """The newest posting of every producer, its epochs from whichever service knew them best.

    Args:
        connection: the server.
        kept: gets what is read.
        leave_out: is told of a producer's account that can't be read.
    """
    yield from postings(connection, "account FINAL", {}, _Everything(kept, leave_out))


def postings(
    connection: Connection, source: str, parameters: dict[str, object], reader: Reader
) -> Iterator[Posting]:
    """Postings from rows of ``account``, of which a producer has one for each of its newest epochs.

    Args:
        connection: the server.
        source: the rows, one of each epoch, as SQL has them after FROM; with these ``parameters``.
        reader: says which rows are wanted, and is told what came of them.
    """
    rows = connection.rows(
        f"SELECT {_KEY}, epoch, seq, birth_ms, at_ms, written, account "
        f"FROM {source} ORDER BY {_KEY}, at_ms DESC LIMIT {MAX_EPOCHS} BY {_KEY}",
        "ttiiiiiiiib",
        parameters,
    )
    merged: dict[Key, Posting] = {}
    for row in rows:
        key, (epoch, seq, birth_ms, at_ms, written, blob) = key_of(row), row[5:]
        if not reader.wants(key, epoch, seq, written):
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


def note(kept: Kept, posting: Posting, epoch: int) -> None:
    """Note what the row of an epoch tells, which is in the store."""
    for life in posting.account.epochs:
        if life.epoch == epoch:
            kept.note(posting.key, epoch, Mark.of(posting, life))


def _merged_posting(one: Posting, other: Posting) -> Posting:
    """One posting from two of the same producer."""
    account = merge_accounts(one.account, other.account, MAX_EPOCHS)
    if one.account.totals.layout.conflict(other.account.totals.layout) is not None:
        newer = one if account.latest is one.account.latest else other  # the other one is of a former model
        return replace(newer, account=account)
    return Posting(one.key, min(one.birth, other.birth), max(one.at, other.at), account)
