"""How far a folder has been moved: kept in the ClickHouse, so that another run goes on from there."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from moescope.service.store.clickhouse import documents
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.trace_rows import Numbers
from moescope.service.store.records import Document

MOVING: Final = "moving"
"""Kind of the documents that say how far a folder has been moved; their names are those of the folders."""


class Progress(msgspec.Struct):
    """How far it is. Whatever comes after that may be there as well: writing it again is harmless.

    Attributes:
        fingerprint: of the folder when it began; of another state of the folder all is moved again.
        began_ms: when that was, milliseconds of Unix time.
        own, last: see :class:`Numbers`: parts that are written again get the numbers that they had.
        history: the producer's row and the instant of the last snapshot.
        requests: the number of the last request.
        done_ms: when all was moved and counted, milliseconds of Unix time; 0: it isn't.
        theirs: kind and name of the documents that said something else when it was done, and stayed.
    """

    fingerprint: str
    began_ms: int
    own: int
    last: int = 0
    history: tuple[int, int] = (0, 0)
    requests: int = 0
    done_ms: int = 0
    theirs: tuple[tuple[str, str], ...] = ()


def begin(fingerprint: str) -> Progress:
    """Nothing was moved yet."""
    return Progress(fingerprint, time.time_ns() // 1_000_000, Numbers().own)


def read(connection: Connection, name: str) -> Progress | None:
    """What was noted of a folder; None: it was never moved here, or nobody can read how far."""
    kept = dict(documents.of_kind(connection, MOVING)).get(name)
    try:
        return None if kept is None else msgspec.msgpack.decode(kept, type=Progress)
    except msgspec.MsgspecError:
        return None


def note(connection: Connection, name: str, progress: Progress) -> None:
    """Keep how far it is."""
    document = Document(MOVING, name, msgspec.msgpack.encode(progress))
    connection.insert("document", documents.COLUMNS, documents.rows_of(connection, [document]))
