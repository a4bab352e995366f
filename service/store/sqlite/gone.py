"""Names of requests that were removed, so that an answer can say so: hashes of them, a bounded number."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from moescope.service.store.interface import Absence
from moescope.service.store.names import hash_of

_MOST: Final = 1 << 18
"""Names that are remembered: of some 80,000 requests, in about 10 MB."""
_SHARE: Final = 1024
"""Bytes of the store's size for each of them, at least: they take 4 % of it at most."""

_INCOMPLETE: Final = (
    "SELECT 1 FROM request WHERE id IN (SELECT request FROM request_name WHERE name = ?) AND tokens = 0"
)


def remember(
    connection: sqlite3.Connection, requests: Sequence[tuple[int]], why: Absence, max_bytes: int
) -> None:
    """Remember the names of requests that are about to be removed, within the same transaction."""
    names = [
        name
        for request in requests
        for (name,) in connection.execute("SELECT name FROM request_name WHERE request = ?", request)
    ]
    connection.executemany(
        "INSERT OR REPLACE INTO gone (name, why) VALUES (?, ?)", [(hash_of(name), why) for name in names]
    )
    connection.execute(
        "DELETE FROM gone WHERE id <= (SELECT max(id) FROM gone) - ?", (min(_MOST, max_bytes // _SHARE),)
    )


def why_absent(connection: sqlite3.Connection, name: str) -> Absence | None:
    """See :class:`moescope.service.store.interface.Store`."""
    if connection.execute(_INCOMPLETE, (name,)).fetchone():
        return "incomplete"
    found = connection.execute("SELECT why FROM gone WHERE name = ?", (hash_of(name),)).fetchone()
    if found is None:
        return None
    return "evicted" if found[0] == "evicted" else "expired"
