"""Documents that nothing needs any more: of producers that are gone, and words that something is gone.

Bounds: of where experts are there is a document for each producer that has an account, and for an hour one
for each that had. Of other kinds, the word that a document is gone stays as long as history does, and a day
at least: a service that is cut off for so long hears of it when it starts again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from moescope.service.store.clickhouse.history import KEYS, key_of, of_keys
from moescope.service.store.clickhouse.pacing import Server
from moescope.service.store.records import PLACEMENT, Key, key_in

_SELDOM_MS: Final = 600_000
_SETTLED_S: Final = 3600
"""So long after a document its account may come: to a replica that lags, or of a service that was cut off."""
_AT_ONCE: Final = 256
_LEAST_S: Final = 86400
_MOST_S: Final = 1 << 32
_OLD: Final = "version < toUnixTimestamp64Nano(now64(9)) - {age:Int64} * 1000000000"
"""Versions are of the server's clock, see `documents.py`."""


def without_account(connection: Server, keys: Sequence[Key]) -> list[Key]:
    """Those of these producers of which no account is kept, by whichever service."""
    if not keys:
        return []
    where, asked = of_keys(keys)
    rows = connection.rows(f"SELECT DISTINCT {KEYS} FROM account WHERE {where}", "ttiii", asked)
    return sorted(set(keys) - {key_of(row) for row in rows})


class Leftovers:
    """Removes them, every ten minutes; for one thread.

    Args:
        connection: the server.
        age_s: how long words that something is gone are kept, at least a day.
    """

    def __init__(self, connection: Server, age_s: float) -> None:
        self._connection = connection
        self._age_s = age_s
        self._looked_ms: int | None = None

    def remove(self, now_ms: int) -> None:
        """Remove what nothing needs, if that was not done just now.

        Args:
            now_ms: milliseconds of Unix time.
        """
        looked_ms = self._looked_ms
        if looked_ms is not None and 0 <= now_ms - looked_ms < _SELDOM_MS:
            return
        self._remove_placements()
        self._remove_words()
        self._looked_ms = now_ms

    def _remove_placements(self) -> None:
        """Remove where the experts of producers are that have no account, also the word that it is gone."""
        settled: dict[str, object] = {"kind": PLACEMENT, "age": _SETTLED_S}
        names = self._connection.rows(
            f"SELECT name FROM document FINAL WHERE kind = {{kind:String}} AND {_OLD}", "t", settled
        )
        by_key = {key: name for (name,) in names if (key := key_in(name)) is not None}
        gone = without_account(self._connection, list(by_key))
        for some in _some(by_key[key] for key in gone):
            self._delete("kind = {kind:String}", {**settled, "names": some})

    def _remove_words(self) -> None:
        """Remove the words that something is gone; what they are about goes first, or it would be back."""
        old: dict[str, object] = {"age": round(min(max(self._age_s, _LEAST_S), _MOST_S))}
        found = self._connection.rows(
            f"SELECT kind, name FROM document FINAL WHERE gone = 1 AND {_OLD}", "tt", old
        )
        for kind in sorted({kind for kind, _ in found}):
            for some in _some(name for its, name in found if its == kind):
                for gone in (0, 1):
                    where = f"kind = {{kind:String}} AND gone = {gone}"
                    self._delete(where, {**old, "kind": kind, "names": some})

    def _delete(self, where: str, parameters: dict[str, object]) -> None:
        self._connection.delete(
            "document", f"{where} AND name IN {{names:Array(String)}} AND {_OLD}", parameters
        )


def _some(names: Iterable[str]) -> Iterator[list[str]]:
    found = list(names)
    for start in range(0, len(found), _AT_ONCE):
        yield found[start : start + _AT_ONCE]
