"""The schema of the embedded store, as a list of migrations: version N is the first N of them.

A migration that was released is never changed; a change is a new one at the end.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from typing import Final

from moescope.service.store.records import StoreError

APPLICATION_ID: Final = 0x6D6F6573  # "moes": tells the file from other SQLite databases

_V1: Final = """
CREATE TABLE producer (
    id INTEGER PRIMARY KEY,
    server TEXT NOT NULL,
    model TEXT NOT NULL,
    dp_rank INTEGER NOT NULL,
    pp_rank INTEGER NOT NULL,
    tp_rank INTEGER NOT NULL,
    birth_ms INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    account BLOB NOT NULL,
    UNIQUE (server, model, dp_rank, pp_rank, tp_rank)
) STRICT;

-- Cumulative totals: removing a row costs resolution, never counts.
CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY,
    producer INTEGER NOT NULL REFERENCES producer (id) ON DELETE CASCADE,
    at_ms INTEGER NOT NULL,
    totals BLOB NOT NULL,
    UNIQUE (producer, at_ms)
) STRICT;
CREATE INDEX snapshot_by_time ON snapshot (at_ms);

-- Up to where the history was rolled up to buckets of this many milliseconds.
CREATE TABLE rolled_up (
    bucket_ms INTEGER PRIMARY KEY,
    until_ms INTEGER NOT NULL
) STRICT;
"""

_V2: Final = """
-- A traced request; under tensor or pipeline parallelism several workers have a trace of it.
CREATE TABLE request (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    server TEXT NOT NULL,
    model TEXT NOT NULL,
    dp_rank INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    preemptions INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL,
    stored_ms INTEGER NOT NULL,
    tokens INTEGER NOT NULL DEFAULT 0,  -- of complete traces; 0: none is complete, so that it isn't shown
    UNIQUE (request_id, server, model, dp_rank)
) STRICT;
CREATE INDEX request_by_time ON request (stored_ms);

CREATE TABLE request_name (
    name TEXT NOT NULL,
    request INTEGER NOT NULL REFERENCES request (id) ON DELETE CASCADE,
    PRIMARY KEY (name, request)
) STRICT, WITHOUT ROWID;
CREATE INDEX request_name_by_request ON request_name (request);

-- The trace of a request in one worker. `layers` is msgpack; `hits` a bit for each (layer, expert) taken.
CREATE TABLE trace (
    id INTEGER PRIMARY KEY,
    request INTEGER NOT NULL REFERENCES request (id) ON DELETE CASCADE,
    pp_rank INTEGER NOT NULL,
    tp_rank INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    number INTEGER NOT NULL,
    parts INTEGER NOT NULL,
    id_bytes INTEGER NOT NULL,
    layers BLOB NOT NULL,
    hits BLOB NOT NULL,
    tokens INTEGER NOT NULL DEFAULT 0,
    complete INTEGER NOT NULL DEFAULT 0,
    UNIQUE (request, pp_rank, tp_rank, epoch, number)
) STRICT;

CREATE TABLE trace_part (
    trace INTEGER NOT NULL REFERENCES trace (id) ON DELETE CASCADE,
    part INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    runs BLOB NOT NULL,
    PRIMARY KEY (trace, part)
) STRICT, WITHOUT ROWID;

-- Up to 1000 tokens of a part: for each layer a compressed frame of ids.
CREATE TABLE segment (
    id INTEGER PRIMARY KEY,
    trace INTEGER NOT NULL REFERENCES trace (id) ON DELETE CASCADE,
    part INTEGER NOT NULL,
    number INTEGER NOT NULL,
    experts BLOB NOT NULL,
    UNIQUE (trace, part, number)
) STRICT;
"""

_V3: Final = """
-- Small things kept by name until they are removed, such as baselines; `content` is their owner's business.
CREATE TABLE document (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    content BLOB NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
"""

_V4: Final = """
-- What many traces have in common; `layers` is msgpack. Older rows of `trace` say it themselves.
CREATE TABLE shape (
    id INTEGER PRIMARY KEY,
    id_bytes INTEGER NOT NULL,
    layers BLOB NOT NULL,
    UNIQUE (id_bytes, layers)
) STRICT;
ALTER TABLE trace ADD COLUMN shape INTEGER REFERENCES shape (id);

-- A segment has tokens of a part that wait for others to be packed with, as a quick blob (see `segments.py`).
-- In older rows it is NULL: 1000 tokens, the last one has the rest, packed; their bits are in `trace.hits`.
ALTER TABLE segment ADD COLUMN tokens INTEGER;

-- Tokens of pieces of traces of one shape, one after the other; `hits` has a lane for each of them.
-- The shape is there as a whole, so that damage to the table above loses nothing.
CREATE TABLE block (
    id INTEGER PRIMARY KEY,
    shape INTEGER NOT NULL REFERENCES shape (id),
    id_bytes INTEGER NOT NULL,
    layers BLOB NOT NULL,
    tokens INTEGER NOT NULL,
    hits BLOB NOT NULL,
    experts BLOB NOT NULL
) STRICT;

-- Tokens `first` .. `first` + `tokens` of a block are piece `number` of a part.
CREATE TABLE piece (
    trace INTEGER NOT NULL REFERENCES trace (id) ON DELETE CASCADE,
    part INTEGER NOT NULL,
    number INTEGER NOT NULL,
    block INTEGER NOT NULL REFERENCES block (id),
    lane INTEGER NOT NULL,
    first INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    PRIMARY KEY (trace, part, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX piece_by_block ON piece (block);

-- A block goes with its last piece; before that, what pieces that went had in it is to be wiped.
CREATE TABLE to_wipe (
    block INTEGER PRIMARY KEY REFERENCES block (id) ON DELETE CASCADE
) STRICT;
CREATE TRIGGER piece_went AFTER DELETE ON piece BEGIN
    INSERT OR IGNORE INTO to_wipe VALUES (OLD.block);
    DELETE FROM block WHERE id = OLD.block AND NOT EXISTS (SELECT 1 FROM piece WHERE block = OLD.block);
END;
"""

_V5: Final = """
-- The version of the model's weights that computed the part's tokens; 0 in parts of older workers.
ALTER TABLE trace_part ADD COLUMN weights_version INTEGER NOT NULL DEFAULT 0;
"""

# An id that comes again is another request, so the table is made anew: a rule of uniqueness can't be dropped.
# Rows of before have life 0. No number of a request is ever used again, so the count of them goes on.
_V6: Final = """
CREATE TABLE request_anew (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    server TEXT NOT NULL,
    model TEXT NOT NULL,
    dp_rank INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    preemptions INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL,
    stored_ms INTEGER NOT NULL,
    tokens INTEGER NOT NULL DEFAULT 0,  -- of complete traces; 0: none is complete, so that it isn't shown
    life INTEGER NOT NULL DEFAULT 0,  -- tells requests of one id apart
    role TEXT NOT NULL DEFAULT '',
    pool TEXT NOT NULL DEFAULT '',
    lora TEXT NOT NULL DEFAULT '',
    finish_reason TEXT NOT NULL DEFAULT '',
    accepted_drafts INTEGER NOT NULL DEFAULT 0,
    rejected_drafts INTEGER NOT NULL DEFAULT 0,
    taken_over BLOB NOT NULL DEFAULT x'',  -- msgpack
    pp_size INTEGER NOT NULL DEFAULT 0,
    missing_stages INTEGER NOT NULL DEFAULT 0,
    missing_tokens INTEGER NOT NULL DEFAULT 0,
    UNIQUE (request_id, server, model, dp_rank, life)
) STRICT;
INSERT INTO request_anew (id, server, model, dp_rank, request_id, outcome, prompt_tokens, cached_tokens,
    preemptions, started_ms, ended_ms, stored_ms, tokens)
    SELECT id, server, model, dp_rank, request_id, outcome, prompt_tokens, cached_tokens, preemptions,
    started_ms, ended_ms, stored_ms, tokens FROM request;
DELETE FROM sqlite_sequence WHERE name = 'request_anew';
INSERT INTO sqlite_sequence SELECT 'request_anew', seq FROM sqlite_sequence WHERE name = 'request';
DROP TABLE request;
ALTER TABLE request_anew RENAME TO request;
CREATE INDEX request_by_time ON request (stored_ms);

-- Of the whole trace; 0 and -1 where the worker didn't tell it.
ALTER TABLE trace ADD COLUMN started_step INTEGER NOT NULL DEFAULT -1;
ALTER TABLE trace ADD COLUMN started_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trace ADD COLUMN ended_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trace ADD COLUMN computed_tokens INTEGER NOT NULL DEFAULT 0;

-- The steps that computed the part's tokens (see `steps.py`); NULL: they aren't known.
ALTER TABLE trace_part ADD COLUMN steps BLOB;

-- Names of requests that were removed, as hashes, and why; the oldest go when there are too many.
CREATE TABLE gone (
    id INTEGER PRIMARY KEY,
    name INTEGER NOT NULL UNIQUE,
    why TEXT NOT NULL
) STRICT;
"""

NEW_FILE: Final = (
    # The schema fits into the first page: if part of it is beyond, nothing of a truncated file can be read.
    "PRAGMA page_size = 8192",
    "PRAGMA auto_vacuum = INCREMENTAL",
)
"""To be executed before the first table; later they do nothing."""

MIGRATIONS: Final[tuple[str, ...]] = (_V1, _V2, _V3, _V4, _V5, _V6)


def migrate(connection: sqlite3.Connection, path: str, migrations: tuple[str, ...] = MIGRATIONS) -> None:
    """Bring a database, new or old, to the newest version; each migration happens as a whole or not at all.

    Raises:
        StoreError: it is another program's file, or a newer moescope's.
    """
    [application] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    [tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and application != APPLICATION_ID:
        raise StoreError(f"{path} is not a moescope store: choose another folder")
    if version > len(migrations):
        raise StoreError(
            f"{path} has schema {version}, this moescope knows {len(migrations)}: upgrade it, or choose "
            "another folder"
        )
    if version == len(migrations):
        return
    with _without_foreign_keys(connection):
        for number in range(version, len(migrations)):
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{migrations[number]}\n"
                f"PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {number + 1};\nCOMMIT;"
            )


@contextlib.contextmanager
def _without_foreign_keys(connection: sqlite3.Connection) -> Generator[None]:
    """Let a table be dropped and made anew without what refers to its rows; not within a transaction."""
    [enforced] = connection.execute("PRAGMA foreign_keys").fetchone()
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        if connection.in_transaction:  # a migration failed in the middle
            connection.execute("ROLLBACK")
        connection.execute(f"PRAGMA foreign_keys = {enforced}")
