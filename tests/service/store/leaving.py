"""Documents that an earlier moescope left in a store."""

from __future__ import annotations

from moescope.service.store.clickhouse import documents
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.interface import Store
from moescope.service.store.records import PLACEMENT, Document, Posting, name_of
from moescope.service.store.sqlite.store import SqliteStore
from tests.service.frames import EPOCH

LIVES = ((EPOCH, 1 << 40),)
DAY_NS = 86_400_000_000_000


def told(item: Posting, what: bytes = b"there") -> Document:
    return Document(PLACEMENT, name_of(item.key), what)


def leave(store: Store, document: Document, gone: bool = False) -> None:
    """Put a document into a store as an earlier moescope did, a hundred days ago."""
    if isinstance(store, SqliteStore):
        store.save([document])
        return
    assert isinstance(store, ClickHouseStore)
    [row] = documents.rows_of(store.connection, [document])
    version = row[3]
    assert isinstance(version, int)
    row[3:] = [version - 100 * DAY_NS - (0 if gone else DAY_NS), int(gone)]
    store.connection.insert("document", documents.COLUMNS, [row])
