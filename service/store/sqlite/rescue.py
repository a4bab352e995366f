"""A damaged database: noticed when it is opened, put aside, and what can be read of it is kept.

Nothing is ever deleted: the damaged file stays beside the new one, for other tools. SQLite's pages have no
checksums; what is in them is covered by those of zstd's frames (see ``codec``), which are checked when read.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from moescope.service.store.sqlite.schema import NEW_FILE, migrate

_log = logging.getLogger(__name__)

CHECK_S: Final = 2.0
"""Longest time that looking through the file may take; a larger one is only looked at where it is used."""
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_STEPS: Final = 100_000  # of SQLite's machine, between two looks at the clock

# A trace of which tokens are missing can't be shown, nor what refers to a row that is gone.
_TIDY: Final = """
DELETE FROM snapshot WHERE producer NOT IN (SELECT id FROM producer);
INSERT OR IGNORE INTO shape (id, id_bytes, layers) SELECT DISTINCT shape, id_bytes, layers FROM block;
DELETE FROM piece WHERE block NOT IN (SELECT id FROM block);
DELETE FROM trace WHERE request NOT IN (SELECT id FROM request)
    OR (shape IS NOT NULL AND shape NOT IN (SELECT id FROM shape))
    OR (complete AND (parts != (SELECT count(*) FROM trace_part WHERE trace = trace.id)
        OR EXISTS (SELECT 1 FROM trace_part AS of WHERE of.trace = trace.id AND of.tokens !=
            (SELECT coalesce(sum(tokens), 0) FROM piece WHERE trace = of.trace AND part = of.part) +
            (SELECT coalesce(sum(coalesce(tokens, min(1000, of.tokens - 1000 * number))), 0)
                FROM segment WHERE trace = of.trace AND part = of.part))));
DELETE FROM trace_part WHERE trace NOT IN (SELECT id FROM trace);
DELETE FROM segment WHERE trace NOT IN (SELECT id FROM trace);
DELETE FROM piece WHERE trace NOT IN (SELECT id FROM trace);
DELETE FROM block WHERE id NOT IN (SELECT block FROM piece);
DELETE FROM to_wipe WHERE block NOT IN (SELECT id FROM block);
DELETE FROM request WHERE id NOT IN (SELECT request FROM trace)
    OR (tokens > 0 AND id NOT IN (SELECT request FROM trace WHERE complete));
DELETE FROM request_name WHERE request NOT IN (SELECT id FROM request);
INSERT OR IGNORE INTO request_name SELECT request_id, id FROM request;
"""


@dataclass(slots=True)
class Rescued:
    """What became of a damaged file.

    Attributes:
        reason: what is wrong with it, in SQLite's words.
        put_aside: where it is now.
        rows: rows that could be read, by table.
        incomplete: tables of which some rows could not be read, in the order of the schema.
    """

    reason: str
    put_aside: Path
    rows: dict[str, int] = field(default_factory=dict)
    incomplete: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kept = ", ".join(f"{count} of {table}" for table, count in self.rows.items() if count) or "nothing"
        gone = f"some or all rows of {', '.join(self.incomplete)}" if self.incomplete else "nothing"
        return (
            f"damaged ({self.reason}): it was moved to {self.put_aside}; rescued: {kept}; lost: {gone}. "
            "Totals of workers that still run come back with their next frame"
        )


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error means that the file itself is damaged."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGE


def readable(text: bytes) -> str:
    """A text whose bytes may be damaged."""
    return text.decode("utf-8", "replace")


def mend(path: Path) -> Rescued | None:
    """Look at a database before it is used; if it is damaged put it aside and make another of what is left.

    The caller has the folder to itself.

    Raises:
        OSError, sqlite3.Error: that failed for another reason than damage.
    """
    if not path.exists():
        return None
    if not path.stat().st_size:
        _log.error("the store %s is empty: if it was used before, all that it held is lost", path)
        return None
    reason = _damage(path)
    if reason is None:
        return None
    found = _rescue(path, reason)
    _log.error("the store %s was %s", path, found)
    return found


def _damage(path: Path) -> str | None:
    """What is wrong with the file, or None."""
    until = time.monotonic() + CHECK_S
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.text_factory = readable
        connection.set_progress_handler(lambda: int(time.monotonic() > until), _STEPS)
        try:
            [found] = connection.execute("PRAGMA quick_check(1)").fetchone()
        except UnicodeDecodeError:
            return "its schema is no text"  # Python fails to decode SQLite's message about it
        except sqlite3.Error as error:
            if is_damage(error):
                return str(error)
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                return None  # too large to look through; what is damaged shows when it is used
            raise
    return None if found == "ok" else str(found)


def _rescue(path: Path, reason: str) -> Rescued:
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns() // 1_000_000}")
    for suffix in ("-wal", "-shm", ""):
        other = path.with_name(path.name + suffix)
        if other.exists():
            other.rename(aside.with_name(aside.name + suffix))
    found = Rescued(reason, aside)
    path.touch(0o600)
    with (
        closing(sqlite3.connect(aside, isolation_level=None)) as old,
        closing(sqlite3.connect(path, isolation_level=None)) as new,
    ):
        old.text_factory = readable
        old.execute("PRAGMA writable_schema = ON")  # else nothing of a truncated file can be read
        for pragma in NEW_FILE:
            new.execute(pragma)
        new.execute("PRAGMA journal_mode = WAL")
        migrate(new, str(path))
        tables = [name for (name,) in new.execute(_TABLES).fetchall()]
        new.execute("BEGIN IMMEDIATE")
        for table in tables:
            _copy(old, new, table, found)
        new.execute("COMMIT")
        new.execute("PRAGMA foreign_keys = ON")  # what belongs to a row that goes, goes too
        new.executescript(f"BEGIN IMMEDIATE;{_TIDY}COMMIT;")
        for table in tables:
            [found.rows[table]] = new.execute(f'SELECT count(*) FROM "{table}"').fetchone()
    return found


_TABLES: Final = (
    "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
)


def _copy(old: sqlite3.Connection, new: sqlite3.Connection, table: str, found: Rescued) -> None:
    """Every row that can be read, from both ends, so that damage in the middle costs little else."""
    columns = _columns(old, table)
    wanted = [name for name in _columns(new, table) if name in columns]
    if not wanted:
        found.incomplete.append(table)
        return
    ranks = _keys(new, table)
    keys = sorted((name for name in ranks if ranks[name]), key=ranks.__getitem__)
    names = ", ".join(f'"{name}"' for name in wanted)
    insert = f'INSERT OR IGNORE INTO "{table}" ({names}) VALUES ({", ".join("?" * len(wanted))})'
    for direction in ("ASC", "DESC"):
        order = ", ".join(f'"{key}" {direction}' for key in keys)
        whole = True
        try:
            for row in _rows(old, f'SELECT {names} FROM "{table}" NOT INDEXED ORDER BY {order}'):
                # What breaks a rule of the schema is damaged too.
                with suppress(sqlite3.IntegrityError):
                    new.execute(insert, row)
        except (sqlite3.Error, UnicodeDecodeError):
            whole = False
        if whole:
            return
    found.incomplete.append(table)


def _rows(connection: sqlite3.Connection, statement: str) -> Iterator[tuple[Any, ...]]:
    cursor = connection.execute(statement)
    while (row := cursor.fetchone()) is not None:
        yield row


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return list(_keys(connection, table))


def _keys(connection: sqlite3.Connection, table: str) -> dict[str, int]:
    """Column name to its place in the primary key, 0 if it isn't in it."""
    try:
        rows = connection.execute(f'PRAGMA table_info("{table}")').fetchall()
    except (sqlite3.Error, UnicodeDecodeError):
        return {}
    return {row[1]: row[5] for row in rows}
