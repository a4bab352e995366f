"""Accounts of producers and their totals over time in the embedded store: SQL only."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from moescope.service.store.codec import decode_account, decode_totals, encode_account, encode_totals
from moescope.service.store.records import Key, Posting, StoredTotals

Row = tuple[str, str, int, int, int, int, int, bytes]
"""A producer's key, when it was born and when it posted, milliseconds, and its account."""

_FINEST_MS: Final = 1000
_TRIES: Final = 8  # snapshots that are looked at when the nearest one is damaged
_BY_KEY: Final = "server = ? AND model = ? AND dp_rank = ? AND pp_rank = ? AND tp_rank = ?"

_LOST: Final = (
    "%s: the account of %s is damaged and lost: %s; its worker's totals come back with its next frame"
)

_log = logging.getLogger(__name__)


def post(connection: sqlite3.Connection, posting: Posting) -> int:
    """Write an account and its totals; their bytes."""
    at_ms = to_ms(posting.at)
    account, totals = encode_account(posting.account), encode_totals(posting.account.totals)
    [producer] = connection.execute(
        "INSERT INTO producer (server, model, dp_rank, pp_rank, tp_rank, birth_ms, at_ms, account) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (server, model, dp_rank, pp_rank, tp_rank) DO UPDATE SET "
        "birth_ms = excluded.birth_ms, at_ms = excluded.at_ms, account = excluded.account RETURNING id",
        (*posting.key, to_ms(posting.birth), at_ms, account),
    ).fetchone()
    since_ms = 0 if posting.began_again else at_ms // _FINEST_MS * _FINEST_MS
    connection.execute("DELETE FROM snapshot WHERE producer = ? AND at_ms >= ?", (producer, since_ms))
    connection.execute(
        "INSERT INTO snapshot (producer, at_ms, totals) VALUES (?, ?, ?)",
        (producer, at_ms, totals),
    )
    return len(account) + len(totals)


def forget(connection: sqlite3.Connection, key: Key) -> None:
    """Remove a producer and all that is kept of it."""
    connection.execute(f"DELETE FROM producer WHERE {_BY_KEY}", key)


def rows(connection: sqlite3.Connection) -> list[Row]:
    """All accounts as they are kept, for :func:`accounts`."""
    return connection.execute(
        "SELECT server, model, dp_rank, pp_rank, tp_rank, birth_ms, at_ms, account FROM producer"
    ).fetchall()


def accounts(kept: Iterable[Row], path: str) -> Iterator[Posting]:
    """The newest posting of every producer; one that is damaged is left out, and said so in the log."""
    for server, model, dp_rank, pp_rank, tp_rank, birth_ms, at_ms, blob in kept:
        key = server, model, dp_rank, pp_rank, tp_rank
        try:
            account = decode_account(blob)
            if account.latest.producer.key != key:
                raise ValueError(f"it is that of {account.latest.producer.key}")
        except ValueError as error:
            _log.error(_LOST, path, key, error)
            continue
        yield Posting(key, birth_ms / 1000, at_ms / 1000, account)


def totals_at(
    connection: sqlite3.Connection, key: Key, instants: Sequence[float]
) -> list[StoredTotals | None]:
    """For each instant the newest totals at or before it."""
    producer = connection.execute(f"SELECT id FROM producer WHERE {_BY_KEY}", key).fetchone()
    if producer is None:
        return [None] * len(instants)
    return [
        _totals(
            connection.execute(
                "SELECT at_ms, totals FROM snapshot WHERE producer = ? AND at_ms <= ? "
                "ORDER BY at_ms DESC LIMIT ?",
                (producer[0], to_ms(instant), _TRIES),
            )
        )
        for instant in instants
    ]


def oldest(connection: sqlite3.Connection, key: Key) -> StoredTotals | None:
    """The oldest totals that are kept of a producer."""
    return _totals(
        connection.execute(
            "SELECT snapshot.at_ms, totals FROM snapshot JOIN producer ON producer = producer.id "
            f"WHERE {_BY_KEY} ORDER BY snapshot.at_ms LIMIT ?",
            (*key, _TRIES),
        )
    )


def to_ms(instant: float) -> int:
    """Seconds of Unix time as the database has them."""
    return round(instant * 1000)


def _totals(rows: Iterable[tuple[int, bytes]]) -> StoredTotals | None:
    """The first that is not damaged; a snapshot less costs resolution only."""
    for at_ms, blob in rows:
        with contextlib.suppress(ValueError):
            return StoredTotals(at_ms / 1000, decode_totals(blob))
    return None
