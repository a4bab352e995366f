"""Accounts of producers and their totals over time in the embedded store: SQL only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from moescope.service.store.codec import decode_posting, decode_totals, encode_both
from moescope.service.store.damage import TRIES, DamageLog
from moescope.service.store.records import PLACEMENT, Key, Posting, StoredTotals, key_in, name_of

Row = tuple[str, str, int, int, int, object, object, object]
"""A producer's key, when it was born and when it posted, milliseconds, and its account."""

_FINEST_MS: Final = 1000
_BY_KEY: Final = "server = ? AND model = ? AND dp_rank = ? AND pp_rank = ? AND tp_rank = ?"


def post(connection: sqlite3.Connection, posting: Posting) -> int:
    """Write an account and its totals; their bytes."""
    at_ms = to_ms(posting.at)
    account, totals = encode_both(posting.account)
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
    connection.execute("DELETE FROM document WHERE kind = ? AND name = ?", (PLACEMENT, name_of(key)))


def remove_leftovers(connection: sqlite3.Connection) -> None:
    """Remove where the experts are of producers that are no longer kept, as an earlier moescope left it."""
    names = connection.execute("SELECT name FROM document WHERE kind = ?", (PLACEMENT,)).fetchall()
    known = set(connection.execute("SELECT server, model, dp_rank, pp_rank, tp_rank FROM producer"))
    gone = [(PLACEMENT, name) for (name,) in names if key_in(name) not in {None, *known}]
    connection.executemany("DELETE FROM document WHERE kind = ? AND name = ?", gone)


def rows(connection: sqlite3.Connection) -> list[Row]:
    """All accounts as they are kept, for :func:`accounts`."""
    return connection.execute(
        "SELECT server, model, dp_rank, pp_rank, tp_rank, birth_ms, at_ms, account FROM producer"
    ).fetchall()


def accounts(kept: Iterable[Row], damage: DamageLog) -> Iterator[Posting]:
    """The newest posting of every producer; one that can't be read is left out and logged."""
    for server, model, dp_rank, pp_rank, tp_rank, birth_ms, at_ms, blob in kept:
        key = server, model, dp_rank, pp_rank, tp_rank
        try:
            posting = decode_posting(key, birth_ms, at_ms, blob)
        except ValueError as error:
            damage.account(key, error)
        else:
            yield posting


def totals_at(
    connection: sqlite3.Connection, key: Key, instants: Sequence[float], damage: DamageLog
) -> list[StoredTotals | None]:
    """For each instant the newest totals at or before it that can be read."""
    producer = connection.execute(f"SELECT id FROM producer WHERE {_BY_KEY}", key).fetchone()
    if producer is None:
        return [None] * len(instants)
    return [
        _totals(
            connection.execute(
                "SELECT at_ms, totals FROM snapshot WHERE producer = ? AND at_ms <= ? "
                "ORDER BY at_ms DESC LIMIT ?",
                (producer[0], to_ms(instant), TRIES),
            ),
            key,
            damage,
        )
        for instant in instants
    ]


def oldest(connection: sqlite3.Connection, key: Key, damage: DamageLog) -> StoredTotals | None:
    """The oldest totals that are kept of a producer and can be read."""
    return _totals(
        connection.execute(
            "SELECT snapshot.at_ms, totals FROM snapshot JOIN producer ON producer = producer.id "
            f"WHERE {_BY_KEY} ORDER BY snapshot.at_ms LIMIT ?",
            (*key, TRIES),
        ),
        key,
        damage,
    )


def begins(connection: sqlite3.Connection) -> dict[Key, float]:
    """When the oldest totals that are kept of each producer were true, seconds of Unix time."""
    found = connection.execute(
        "SELECT server, model, dp_rank, pp_rank, tp_rank, "
        "(SELECT min(at_ms) FROM snapshot WHERE producer = producer.id) FROM producer"
    )
    return {(row[0], row[1], row[2], row[3], row[4]): row[5] / 1000 for row in found if row[5] is not None}


def to_ms(instant: float) -> int:
    """Seconds of Unix time as the database has them."""
    return round(instant * 1000)


def _totals(rows: Iterable[tuple[int, object]], key: Key, damage: DamageLog) -> StoredTotals | None:
    """The first that can be read; a snapshot less costs resolution only."""
    for at_ms, blob in rows:
        try:
            return StoredTotals(at_ms / 1000, decode_totals(blob))
        except ValueError as error:
            damage.totals(key, error)
    return None
