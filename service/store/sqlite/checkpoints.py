"""SQLite's log is copied into the database by a thread of its own: the writer need not wait for the disk.

SQLite copies it in the writing thread otherwise, with two ``fsync`` each time. A writer that never rests may
outrun this thread; then SQLite does it as usual, at :data:`MOST_BYTES` of log.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Final

DUE_BYTES: Final = 4 << 20
MOST_BYTES: Final = 32 << 20


class Checkpointer:
    """Copies the log of a database whenever enough was written.

    Args:
        connect: makes the thread's own connection.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._written = 0
        self._due = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="moescope-checkpoints", daemon=True)
        self._thread.start()

    def wrote(self, nbytes: int) -> None:
        """A transaction of about so many bytes was committed."""
        self._written += nbytes
        if self._written >= DUE_BYTES:
            self._written = 0
            self._due.set()

    def close(self) -> None:
        """End the thread, and its connection."""
        self._closing = True
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._closing:
                return
            # What fails here, such as on a full disk, stays in the log: the writer meets it, and says so.
            with contextlib.suppress(sqlite3.Error), closing(self._connect()) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
