"""Whether a database has all that the last service gave it: said by a mark which each service leaves in it.

What was acknowledged survives the end of the process. But a power cut may take the last moments, a copy that
is put back lacks what came after it, and damage may take anything. Counters must not go on from less than
was shown before, so whoever shows them has to know.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

KIND: Final = "run"
"""Kind of the mark."""
_CLOSED: Final = b"closed"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def begin(writer: sqlite3.Connection) -> bool:
    """Mark the database as in use; whether the last service lost nothing.

    It closed the database, or it ended otherwise and the system has not been started again since: what a
    process has written the system has.
    """
    whole = is_whole(writer)
    _mark(writer, _boot_id() or b"unknown")
    return whole


def is_whole(connection: sqlite3.Connection) -> bool:
    """Whether the last service lost nothing; see :func:`begin`, which marks it as well."""
    found = connection.execute("SELECT content FROM document WHERE kind = ?", (KIND,)).fetchone()
    return found is not None and found[0] in (_CLOSED, _boot_id())


def end(writer: sqlite3.Connection) -> None:
    """Mark the database as closed."""
    _mark(writer, _CLOSED)


def unmark(copy: sqlite3.Connection) -> None:
    """Remove the mark from a copy: whoever puts it back has what was true when it was made."""
    if copy.execute("SELECT 1 FROM sqlite_schema WHERE name = 'document'").fetchone():
        copy.execute("DELETE FROM document WHERE kind = ?", (KIND,))
        copy.commit()


def _mark(writer: sqlite3.Connection, content: bytes) -> None:
    writer.execute("INSERT OR REPLACE INTO document VALUES (?, ?, ?)", (KIND, KIND, content))


def _boot_id() -> bytes | None:
    """What the system calls its present run; None where it doesn't say."""
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_bytes().strip()
    return None
