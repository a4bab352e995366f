"""The embedded store: one SQLite database in WAL mode, in a folder of its own.

A commit is in the operating system's hands when it returns (``synchronous=NORMAL``): what was acknowledged
survives the end of the process by whatever signal. A power cut may take the last moments, never the rest.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from moescope.capture.wire.traces import TracePart
from moescope.service.store.damage import DamageLog
from moescope.service.store.interface import Absence
from moescope.service.store.limits import Retention
from moescope.service.store.records import (
    ArrivedPart,
    Document,
    Forgotten,
    Key,
    Posting,
    Record,
    StoredTotals,
    StoreError,
    TracedRequest,
    TraceQuery,
    TraceShape,
    Usage,
)
from moescope.service.store.slots import ListedRequest, RequestSlots
from moescope.service.store.sqlite import (
    account_rows,
    connections,
    continuation,
    gone,
    slot_reading,
    trace_listing,
    traces,
)
from moescope.service.store.sqlite.checkpoints import Checkpointer
from moescope.service.store.sqlite.connections import Readers
from moescope.service.store.sqlite.packing import Packer
from moescope.service.store.sqlite.presence import Presence
from moescope.service.store.sqlite.rescue import mend
from moescope.service.store.sqlite.reserve import BYTES, give_up, set_aside
from moescope.service.store.sqlite.retention import keep
from moescope.service.store.sqlite.schema import migrate
from moescope.service.store.sqlite.trace_writing import save_parts
from moescope.service.store.sqlite.wiping import wipe
from moescope.service.store.worker_trace import WorkerTrace

FILE: Final = "moescope.sqlite"
_NO_SPACE: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})

_log = logging.getLogger(__name__)


class SqliteStore:
    """See :class:`moescope.service.store.interface.Store`.

    Args:
        folder: created if absent; one service at a time may have it.
        retention: how long what is kept, and on how many bytes.

    Raises:
        StoreError: the folder can't be used.
    """

    def __init__(self, folder: Path, retention: Retention) -> None:
        self._path = folder / FILE
        self._retention = retention
        self._packer = Packer()
        self._damage = DamageLog(str(self._path))
        self._fits = True
        self._is_tidy = False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock: int | None = connections.lock_folder(folder)
        except OSError as error:
            raise StoreError(
                f"{folder} can't be used as a store: {error.strerror or error}. Choose another folder with "
                "--store (MOESCOPE_STORE), or give --no-store: then totals and history are in memory only"
            ) from error
        self._readers = Readers(self._path)
        try:
            self._writer = self._open()
        except BaseException:
            os.close(self._lock)
            raise
        self._checkpointer = Checkpointer(lambda: connections.connect(self._path))
        names = (FILE, f"{FILE}-wal", f"{FILE}-shm", connections.LOCK)
        self._presence = Presence(folder / name for name in names)
        set_aside(folder)

    @property
    def unbroken(self) -> bool:
        """Whether nothing of what the last service gave it is missing."""
        return self._continues and not self._damage.lost_accounts

    @property
    def is_remote(self) -> bool:
        """It isn't: the database is this process's own."""
        return False

    def save(self, records: Sequence[Record]) -> None:
        """Keep all of these or none."""
        self._presence.check()
        parts: list[ArrivedPart] = []
        written = 0
        with connections.failures(self._path), connections.transaction(self._writer):
            for record in records:
                match record:
                    case Posting():
                        written += account_rows.post(self._writer, record)
                    case Forgotten():
                        account_rows.forget(self._writer, record.key)
                    case ArrivedPart():
                        parts.append(record)
                    case Document():
                        self._document(record)
            waiting = save_parts(self._writer, parts, self._packer)
        self._presence.check()  # what went to a file without a name is not kept
        self._packer.committed(waiting)
        self._checkpointer.wrote(written + sum(sum(map(len, item.part.experts)) for item in parts))

    def accounts(self) -> Iterator[Posting]:
        """The newest posting of every producer."""
        with self._readers.one() as connection:
            kept = account_rows.rows(connection)
        yield from account_rows.accounts(kept, self._damage)

    def news(self) -> Sequence[Posting]:
        """Nothing: the folder is one service's. But it is looked whether the files are still there."""
        self._presence.check()
        return ()

    @property
    def shared(self) -> bool:
        """It isn't: one process writes to a folder."""
        return False

    def changed_documents(self, kind: str) -> list[Document]:  # noqa: ARG002 - the interface's
        """None: no other service writes here."""
        return []

    @property
    def clock(self) -> Callable[[], float]:
        """This host's clock."""
        return time.time

    def totals_at(self, key: Key, instants: Sequence[float]) -> list[StoredTotals | None]:
        """For each instant the newest totals at or before it."""
        with self._readers.one() as connection:
            return account_rows.totals_at(connection, key, instants, self._damage)

    def totals_of(self, keys: Sequence[Key], instants: Sequence[float]) -> list[list[StoredTotals | None]]:
        """The same for several producers."""
        return [self.totals_at(key, instants) for key in keys]

    def oldest_of(self, keys: Sequence[Key]) -> list[StoredTotals | None]:
        """The oldest totals that are kept of each producer."""
        return [self.oldest(key) for key in keys]

    def begins(self) -> dict[Key, float]:
        """When the oldest totals that are kept of each producer were true."""
        with self._readers.one() as connection:
            return account_rows.begins(connection)

    def oldest(self, key: Key) -> StoredTotals | None:
        """The oldest totals that are kept of a producer."""
        with self._readers.one() as connection:
            return account_rows.oldest(connection, key, self._damage)

    def traced_requests(self, query: TraceQuery) -> list[TracedRequest]:
        """The requests that match, newest first."""
        with self._readers.one() as connection:
            return trace_listing.traced_requests(connection, query, self._damage)

    def listed(self, query: TraceQuery) -> list[ListedRequest]:
        """The requests that match, newest first, with little of each."""
        with self._readers.one() as connection:
            return slot_reading.listed(connection, query)

    def slots(self, numbers: Sequence[int]) -> list[RequestSlots]:
        """The slots of these requests."""
        with self._readers.one() as connection:
            return slot_reading.slots(connection, numbers, self._damage)

    def why_absent(self, name: str) -> Absence | None:
        """Why no request of a name is found."""
        with self._readers.one() as connection:
            return gone.why_absent(connection, name)

    def shapes(self, parts: Sequence[TracePart]) -> list[TraceShape | None]:
        """For each part the shape of its trace by the parts that are kept."""
        with self._readers.one() as connection:
            return [traces.shape_of(connection, part, self._damage) for part in parts]

    def traces(self, number: int, layers: Collection[int] | None) -> list[WorkerTrace]:
        """What each worker traced of a request."""
        with self._readers.one() as connection:
            return traces.traces(connection, self._readers, number, layers)

    def traces_of(
        self, numbers: Sequence[int], layers: Collection[int] | None
    ) -> dict[int, list[WorkerTrace]]:
        """What each worker traced of several requests."""
        with self._readers.one() as connection:
            return traces.traces_of(connection, self._readers, numbers, layers)

    def documents(self, kind: str) -> list[tuple[str, bytes]]:
        """(name, content) of all documents of a kind, by name."""
        with self._readers.one() as connection:
            return connection.execute(
                "SELECT name, content FROM document WHERE kind = ? ORDER BY name", (kind,)
            ).fetchall()

    def maintain(self, now: float, history_now: float | None = None) -> None:
        """Roll up and remove what is due."""
        self._presence.check()
        self._readers.recent.forget()  # what is removed is soon in no memory either
        history_ms = account_rows.to_ms(now if history_now is None else history_now)
        with connections.failures(self._path):
            if not self._is_tidy:
                with connections.transaction(self._writer):
                    account_rows.remove_leftovers(self._writer)
                self._is_tidy = True
            kept: set[int] = set()
            try:
                fits = keep(self._writer, self._retention, account_rows.to_ms(now), history_ms, self._nbytes)
                self._say_whether_it_fits(fits)
                kept = traces.still_there(self._writer, self._packer.remembered)
            finally:
                # A number may be used again: nothing may be remembered of a trace that is gone.
                self._packer.forget_all_but(kept)
            wipe(self._writer)
        set_aside(self._path.parent)

    def unreadable(self) -> dict[str, int]:
        """How often something was met that can't be read."""
        return self._damage.found()

    def usage(self) -> Usage:
        """What is held."""
        with self._readers.one() as connection:
            [snapshots] = connection.execute("SELECT count(*) FROM snapshot").fetchone()
            [requests] = connection.execute("SELECT count(*) FROM request WHERE tokens > 0").fetchone()
        return Usage(snapshots, requests, self._nbytes())

    def give_up(self) -> None:
        """Nothing: what waits for a disk can't be ended."""

    def close(self) -> None:
        """Let go of the files."""
        try:
            with connections.failures(self._path):
                continuation.end(self._writer)
        except StoreError as error:
            _log.error("%s", error)
        self._checkpointer.close()
        self._packer.close()
        self._readers.close()
        self._writer.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self) -> sqlite3.Connection:
        """The writing connection; on a full disk with what was kept for this."""
        try:
            return self._mend_and_connect()
        except StoreError as error:
            code = getattr(error.__cause__, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
            if code not in _NO_SPACE or not give_up(self._path.parent):
                raise
            _log.error("%s; its reserve of %d bytes is given up", error, BYTES)
            return self._mend_and_connect()

    def _mend_and_connect(self) -> sqlite3.Connection:
        with connections.failures(self._path):
            rescued = mend(self._path)
            self._path.touch(0o600)  # SQLite would let others read a new one, if the folder does
            writer = connections.connect(self._path)
            try:
                connections.prepare(writer)
                migrate(writer, str(self._path))
                self._continues = continuation.begin(writer) and rescued is None
            except BaseException:
                writer.close()
                raise
            return writer

    def _document(self, document: Document) -> None:
        if document.content is None:
            self._writer.execute(
                "DELETE FROM document WHERE kind = ? AND name = ?", (document.kind, document.name)
            )
            return
        self._writer.execute(
            "INSERT INTO document VALUES (?, ?, ?) "
            "ON CONFLICT (kind, name) DO UPDATE SET content = excluded.content",
            (document.kind, document.name, document.content),
        )

    def _say_whether_it_fits(self, fits: bool) -> None:
        """Once when it begins not to, and once when it does again."""
        if self._fits and not fits:
            _log.warning(
                "the store %s takes over %d MiB, and can't shrink while something reads it that began long "
                "ago, here or in another process: nothing is removed",
                self._path,
                self._retention.max_bytes >> 20,
            )
        if fits and not self._fits:
            _log.info("the store %s is within its size again", self._path)
        self._fits = fits

    def _nbytes(self) -> int:
        """Bytes of the database and its log."""
        files = (self._path, self._path.with_name(f"{FILE}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())
