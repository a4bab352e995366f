"""Accounts of producers in ClickHouse: a row for each epoch of each producer, whichever service kept it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from moescope.service.counts.merging import merge_accounts
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.history import KEY
from moescope.service.store.clickhouse.rowbinary import Value
from moescope.service.store.codec import decode_posting, encode_account, encode_totals
from moescope.service.store.records import Key, Posting, Record

COLUMNS: Final = (*KEY, "epoch", "seq", "birth_ms", "at_ms", "writer", "account")
_MAX_EPOCHS: Final = 64

Seen = dict[tuple[Key, int], tuple[int, int]]
"""Producer and epoch to ``seq`` and ``at_ms`` of the row that was read."""


def rows_of(records: Sequence[Record], writer: str) -> tuple[list[list[Value]], list[list[Value]]]:
    """Rows of ``account`` and of ``snapshot``, encoded before anything is written.

    Args:
        records: the postings among them are taken.
        writer: the service that keeps them.

    Raises:
        TypeError, ValueError, OverflowError: a record can't be kept.
    """
    accounts: list[list[Value]] = []
    snapshots: list[list[Value]] = []
    for record in records:
        if not isinstance(record, Posting):
            continue
        state, at_ms = record.account, round(record.at * 1000)
        version: list[Value] = [state.latest.epoch, state.latest.seq]
        if not all(isinstance(value, str | int) for value in record.key):
            raise TypeError(f"{record.key} is no key of a producer")
        accounts.append(
            [
                *record.key,
                *version,
                round(record.birth * 1000),
                at_ms,
                writer,
                encode_account(state),
            ]
        )
        snapshots.append([*record.key, at_ms // 1000, at_ms, *version, encode_totals(state.totals)])
    return accounts, snapshots


def postings(
    connection: Connection,
    where: str,
    parameters: dict[str, object],
    seen: Seen,
    leave_out: Callable[[Key, ValueError], None],
) -> Iterator[Posting]:
    """Postings from rows of ``account``, of which a producer has one for each of its newest epochs.

    Args:
        connection: the server.
        where: which rows, and its ``parameters``; nothing: all of them.
        seen: rows that are left out; the others are added to it.
        leave_out: is told of a producer's account that can't be read.
    """
    rows = connection.rows(
        f"SELECT {', '.join(KEY)}, epoch, seq, birth_ms, at_ms, account "
        f"FROM account FINAL {where} ORDER BY {', '.join(KEY)}, at_ms DESC "
        f"LIMIT {_MAX_EPOCHS} BY {', '.join(KEY)}",
        "ttiiiiiiib",
        parameters,
    )
    merged: dict[Key, Posting] = {}
    for *who, epoch, seq, birth_ms, at_ms, blob in rows:
        key: Key = (who[0], who[1], who[2], who[3], who[4])
        if seen.get((key, epoch), (None, 0))[0] == seq:
            continue
        seen[key, epoch] = seq, at_ms
        try:
            posting = decode_posting(key, birth_ms, at_ms, blob)
        except ValueError as error:
            leave_out(key, error)
            continue
        before = merged.get(key)
        merged[key] = posting if before is None else _merged_posting(before, posting)
    yield from merged.values()


def _merged_posting(one: Posting, other: Posting) -> Posting:
    """One posting from two of the same producer."""
    account = merge_accounts(one.account, other.account, _MAX_EPOCHS)
    return Posting(one.key, min(one.birth, other.birth), max(one.at, other.at), account)
