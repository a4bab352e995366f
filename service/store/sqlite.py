"""The embedded store: one SQLite database in WAL mode, in a folder of its own.

A commit is in the operating system's hands when it returns (``synchronous=NORMAL``): what was acknowledged
survives the end of the process by whatever signal. A power cut may take the last moments, never the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import queue
import sqlite3
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from moescope.capture.trace_wire import TracePart
from moescope.service.store import trace_listing, traces
from moescope.service.store.checkpoints import MOST_BYTES, Checkpointer
from moescope.service.store.codec import decode_account, decode_totals, encode_account, encode_totals
from moescope.service.store.packing import Packer
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
    WorkerTrace,
)
from moescope.service.store.rescue import is_damage, mend, readable
from moescope.service.store.reserve import BYTES, give_up, set_aside
from moescope.service.store.retention import Retention, keep
from moescope.service.store.schema import migrate
from moescope.service.store.trace_writing import save_parts
from moescope.service.store.wiping import wipe

FILE: Final = "moescope.sqlite"
_FINEST_MS: Final = 1000
_READERS: Final = 8
_NO_SPACE: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
_TRIES: Final = 8  # snapshots that are looked at when the nearest one is damaged

_LOST: Final = (
    "%s: the account of %s is damaged and lost: %s; its worker's totals come back with its next frame"
)

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
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock: int | None = lock_folder(folder)
        except OSError as error:
            raise StoreError(f"{folder} can't be used as a store: {error.strerror or error}") from error
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue(_READERS)
        try:
            self._writer = self._open()
        except BaseException:
            os.close(self._lock)
            raise
        self._checkpointer = Checkpointer(lambda: _connect(self._path))
        set_aside(folder)

    def save(self, records: Sequence[Record]) -> None:
        """Keep all of these or none."""
        parts: list[ArrivedPart] = []
        written = 0
        with _failures(self._path), _transaction(self._writer):
            for record in records:
                match record:
                    case Posting():
                        written += self._post(record)
                    case Forgotten():
                        self._writer.execute(f"DELETE FROM producer WHERE {_BY_KEY}", record.key)
                    case ArrivedPart():
                        parts.append(record)
                    case Document():
                        self._document(record)
            waiting = save_parts(self._writer, parts, self._packer)
        self._packer.committed(waiting)
        self._checkpointer.wrote(written + sum(sum(map(len, item.part.experts)) for item in parts))

    def accounts(self) -> Iterator[Posting]:
        """The newest posting of every producer; one that is damaged is left out, and said so in the log."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT server, model, dp_rank, pp_rank, tp_rank, birth_ms, at_ms, account FROM producer"
            ).fetchall()
        for *key, birth_ms, at_ms, blob in rows:
            try:
                account = decode_account(blob)
                if account.latest.producer.key != _key(key):
                    raise ValueError(f"it is that of {account.latest.producer.key}")
            except ValueError as error:
                _log.error(_LOST, self._path, key, error)
                continue
            yield Posting(_key(key), birth_ms / 1000, at_ms / 1000, account)

    def news(self) -> Sequence[Posting]:
        """Nothing: the folder is one service's."""
        return ()

    def totals_at(self, key: Key, instants: Sequence[float]) -> list[StoredTotals | None]:
        """For each instant the newest totals at or before it."""
        with self._reading() as connection:
            producer = connection.execute(f"SELECT id FROM producer WHERE {_BY_KEY}", key).fetchone()
            if producer is None:
                return [None] * len(instants)
            return [
                _totals(
                    connection.execute(
                        "SELECT at_ms, totals FROM snapshot WHERE producer = ? AND at_ms <= ? "
                        "ORDER BY at_ms DESC LIMIT ?",
                        (producer[0], _ms(instant), _TRIES),
                    )
                )
                for instant in instants
            ]

    def oldest(self, key: Key) -> StoredTotals | None:
        """The oldest totals that are kept of a producer."""
        with self._reading() as connection:
            return _totals(
                connection.execute(
                    "SELECT snapshot.at_ms, totals FROM snapshot JOIN producer ON producer = producer.id "
                    f"WHERE {_BY_KEY} ORDER BY snapshot.at_ms LIMIT ?",
                    (*key, _TRIES),
                )
            )

    def traced_requests(self, query: TraceQuery) -> list[TracedRequest]:
        """The requests that match, newest first."""
        with self._reading() as connection:
            return trace_listing.traced_requests(connection, query)

    def shapes(self, parts: Sequence[TracePart]) -> list[TraceShape | None]:
        """For each part the shape of its trace by the parts that are kept."""
        with self._reading() as connection:
            return [traces.shape_of(connection, part) for part in parts]

    def traces(self, number: int, layers: Collection[int] | None) -> list[WorkerTrace]:
        """What each worker traced of a request."""
        with self._reading() as connection:
            return traces.traces(connection, number, layers)

    def documents(self, kind: str) -> list[tuple[str, bytes]]:
        """(name, content) of all documents of a kind, by name."""
        with self._reading() as connection:
            return connection.execute(
                "SELECT name, content FROM document WHERE kind = ? ORDER BY name", (kind,)
            ).fetchall()

    def maintain(self, now: float) -> None:
        """Roll up and remove what is due."""
        with _failures(self._path):
            try:
                keep(self._writer, self._retention, _ms(now), self._nbytes)
            finally:
                # A number may be used again: nothing may be remembered of a trace that is gone.
                remembered, self._packer = self._packer, Packer()
            kept = traces.still_there(self._writer, remembered.remembered)
            remembered.forget_all_but(kept)
            self._packer = remembered
            wipe(self._writer)
        set_aside(self._path.parent)

    def usage(self) -> Usage:
        """What is held."""
        with self._reading() as connection:
            [snapshots] = connection.execute("SELECT count(*) FROM snapshot").fetchone()
            [requests] = connection.execute("SELECT count(*) FROM request WHERE tokens > 0").fetchone()
        return Usage(snapshots, requests, self._nbytes())

    def close(self) -> None:
        """Let go of the files."""
        self._checkpointer.close()
        while not self._readers.empty():
            self._readers.get_nowait().close()
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
        with _failures(self._path):
            mend(self._path)
            writer = _connect(self._path)
            try:
                _prepare(writer)
                migrate(writer, str(self._path))
            except BaseException:
                writer.close()
                raise
            return writer

    def _post(self, posting: Posting) -> int:
        """Write an account and its totals; their bytes."""
        at_ms = _ms(posting.at)
        account, totals = encode_account(posting.account), encode_totals(posting.account.totals)
        [producer] = self._writer.execute(
            "INSERT INTO producer (server, model, dp_rank, pp_rank, tp_rank, birth_ms, at_ms, account) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (server, model, dp_rank, pp_rank, tp_rank) DO UPDATE SET "
            "birth_ms = excluded.birth_ms, at_ms = excluded.at_ms, account = excluded.account RETURNING id",
            (*posting.key, _ms(posting.birth), at_ms, account),
        ).fetchone()
        since_ms = 0 if posting.began_again else at_ms // _FINEST_MS * _FINEST_MS
        self._writer.execute("DELETE FROM snapshot WHERE producer = ? AND at_ms >= ?", (producer, since_ms))
        self._writer.execute(
            "INSERT INTO snapshot (producer, at_ms, totals) VALUES (?, ?, ?)",
            (producer, at_ms, totals),
        )
        return len(account) + len(totals)

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

    def _nbytes(self) -> int:
        """Bytes of the database and its log."""
        files = (self._path, self._path.with_name(f"{FILE}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    @contextlib.contextmanager
    def _reading(self) -> Generator[sqlite3.Connection]:
        """A connection for one reader at a time, which sees one moment."""
        with _failures(self._path):
            try:
                connection = self._readers.get_nowait()
            except queue.Empty:
                connection = _connect(self._path)
                connection.execute("PRAGMA query_only = ON")
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                connection.execute("ROLLBACK")
                try:
                    self._readers.put_nowait(connection)
                except queue.Full:
                    connection.close()


_BY_KEY: Final = "server = ? AND model = ? AND dp_rank = ? AND pp_rank = ? AND tp_rank = ?"


def lock_folder(folder: Path) -> int:
    """An open file that marks the folder as taken until it is closed, or the process ends.

    Raises:
        OSError: another process has it, or the folder can't be written.
    """
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise OSError(0, "another service has it; give each a folder of its own") from None
    return handle


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    connection.text_factory = readable
    return connection


def _prepare(writer: sqlite3.Connection) -> None:
    writer.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table; later it does nothing
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA synchronous = NORMAL")
    writer.execute("PRAGMA foreign_keys = ON")
    [page_bytes] = writer.execute("PRAGMA page_size").fetchone()
    writer.execute(f"PRAGMA wal_autocheckpoint = {MOST_BYTES // page_bytes}")
    # Once it is copied, the log keeps no more of the disk than this.
    writer.execute("PRAGMA journal_size_limit = 8388608")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Generator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextlib.contextmanager
def _failures(path: Path) -> Generator[None]:
    """SQLite's errors and damaged blobs as errors of the store."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if isinstance(error, sqlite3.Error) and is_damage(error):
            advice = "it is damaged: start the service again, which puts it aside and keeps what can be read"
        else:
            advice = "is its disk full or read-only?"
        raise StoreError(f"the store {path} failed: {error}; {advice}") from error
    except ValueError as error:
        raise StoreError(f"the store {path} can't be read: {error}") from error


def _ms(instant: float) -> int:
    return round(instant * 1000)


def _key(values: Sequence[str | int]) -> Key:
    server, model, dp_rank, pp_rank, tp_rank = values
    return str(server), str(model), int(dp_rank), int(pp_rank), int(tp_rank)


def _totals(rows: Iterable[tuple[int, bytes]]) -> StoredTotals | None:
    """The first that is not damaged; a snapshot less costs resolution only."""
    for at_ms, blob in rows:
        with contextlib.suppress(ValueError):
            return StoredTotals(at_ms / 1000, decode_totals(blob))
    return None
