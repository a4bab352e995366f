"""Connections to the embedded store's database: how they are opened, lent out, and what their errors mean."""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Final

from moescope.service.store.damage import unreadable_as_error
from moescope.service.store.records import StoreError
from moescope.service.store.sqlite.checkpoints import MOST_BYTES
from moescope.service.store.sqlite.recent import RecentBlocks
from moescope.service.store.sqlite.rescue import is_damage, readable
from moescope.service.store.sqlite.schema import NEW_FILE

LOCK: Final = "lock"
_READERS: Final = 8
_WAIT_S: Final = 2.0
"""How long a connection waits for others; the writer's senders wait as long."""


class Readers:
    """Connections that only read, kept for the next reader; for all threads."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.recent: Final = RecentBlocks()
        """The blocks of traces that they read last."""
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue(_READERS)

    @contextlib.contextmanager
    def one(self) -> Generator[sqlite3.Connection]:
        """A connection for one reader at a time, which sees one moment.

        Raises:
            StoreError: the database can't be read.
        """
        with failures(self.path):
            try:
                connection = self._idle.get_nowait()
            except queue.Empty:
                connection = connect(self.path)
                connection.execute("PRAGMA query_only = ON")
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                try:
                    self._idle.put_nowait(connection)
                except queue.Full:
                    connection.close()

    def close(self) -> None:
        """Close those that are idle."""
        while not self._idle.empty():
            self._idle.get_nowait().close()


def lock_folder(folder: Path) -> int:
    """An open file that marks the folder as taken until it is closed, or the process ends.

    Raises:
        OSError: another process has it, or the folder can't be written.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise OSError(0, "another service has it, and each needs a folder of its own") from None
    return handle


def connect(path: Path) -> sqlite3.Connection:
    """A connection with no transaction of its own making, whose texts may be damaged."""
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
    connection.text_factory = readable
    return connection


def prepare(writer: sqlite3.Connection) -> None:
    """Set up the connection that writes."""
    for pragma in NEW_FILE:
        writer.execute(pragma)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA synchronous = NORMAL")
    writer.execute("PRAGMA foreign_keys = ON")
    [page_bytes] = writer.execute("PRAGMA page_size").fetchone()
    writer.execute(f"PRAGMA wal_autocheckpoint = {MOST_BYTES // page_bytes}")
    # Once it is copied, the log keeps no more of the disk than this.
    writer.execute("PRAGMA journal_size_limit = 8388608")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """All that the block writes, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # on a full disk SQLite rolls back by itself
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextlib.contextmanager
def failures(path: Path) -> Generator[None]:
    """SQLite's errors and damaged blobs as errors of the store."""
    try:
        with unreadable_as_error(str(path)):
            yield
    except (sqlite3.Error, OSError) as error:
        if isinstance(error, sqlite3.Error) and is_damage(error):
            advice = "it is damaged: start the service again, which puts it aside and keeps what can be read"
        else:
            advice = "is its disk full or read-only?"
        raise StoreError(f"the store {path} failed: {error}; {advice}") from error
