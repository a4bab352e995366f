"""Documents in ClickHouse: small things by name, of which every service knows the newest."""

from __future__ import annotations

from collections.abc import Sequence

from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.pacing import Server
from moescope.service.store.clickhouse.rowbinary import Value
from moescope.service.store.records import Document, Record

COLUMNS = ("kind", "name", "content", "version", "gone")


def rows_of(connection: Server, records: Sequence[Record]) -> list[list[Value]]:
    """Rows of ``document``, each newer than what the store has, by the server's order.

    Versions are nanoseconds of Unix time on the server's clock, or one above what is there if that is more.
    """
    documents = {(item.kind, item.name): item for item in records if isinstance(item, Document)}
    if not documents:
        return []
    [(now_ns,)] = connection.rows("SELECT toUnixTimestamp64Nano(now64(9))", "i")
    kinds = sorted({kind for kind, _ in documents})
    known = connection.rows(
        "SELECT kind, name, max(version) FROM document WHERE kind IN {kinds:Array(String)} "
        "AND name IN {names:Array(String)} GROUP BY kind, name",
        "tti",
        {"kinds": kinds, "names": sorted({name for _, name in documents})},
    )
    versions = {(kind, name): version for kind, name, version in known}
    return [
        [
            item.kind,
            item.name,
            item.content or b"",
            max(now_ns, versions.get(which, 0) + 1),
            int(item.content is None),
        ]
        for which, item in documents.items()
    ]


def of_kind(connection: Server, kind: str) -> list[tuple[str, bytes]]:
    """(name, content) of all documents of a kind, by name."""
    return connection.rows(
        "SELECT name, content FROM document FINAL WHERE kind = {kind:String} AND gone = 0 ORDER BY name",
        "tb",
        {"kind": kind},
    )


class Changes:
    """What changed among the documents of a kind; memory is bounded by the names in the table.

    Args:
        connection: the server.
        kind: which documents.
    """

    def __init__(self, connection: Connection, kind: str) -> None:
        self._connection = connection
        self._kind = kind
        self._seen: dict[str, int] = {}

    def read(self) -> list[Document]:
        """Documents that changed since the last call."""
        kind = {"kind": self._kind}
        versions = self._connection.rows(
            "SELECT name, max(version) FROM document WHERE kind = {kind:String} GROUP BY name", "ti", kind
        )
        changed = [name for name, version in versions if self._seen.get(name, 0) < version]
        self._seen = {name: self._seen[name] for name, _ in versions if name in self._seen}
        if not changed:
            return []
        rows = self._connection.rows(
            "SELECT name, version, gone, content FROM document FINAL WHERE kind = {kind:String} "
            "AND name IN {names:Array(String)}",
            "tiib",
            {**kind, "names": changed},
        )
        self._seen |= {name: version for name, version, _, _ in rows}
        return [Document(self._kind, name, None if gone else content) for name, _, gone, content in rows]
