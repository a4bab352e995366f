"""The folder that a store is moved out of. It gets this version's schema and a name, else nothing changes."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.store.codec import decode_posting
from moescope.service.store.records import PLACEMENT, Document, Key, Posting, StoreError, key_in
from moescope.service.store.sqlite import connections, continuation, traces
from moescope.service.store.sqlite.schema import migrate
from moescope.service.store.sqlite.store import FILE
from moescope.service.store.worker_trace import WorkerTrace

_ORIGIN: Final = "origin"
"""Kind and name of the document that tells this store from others, wherever its folder is."""
_NOT_MOVED: Final = (continuation.KIND, _ORIGIN)
_AT_ONCE: Final = 256
"""Rows that are read in one go, but for blobs."""


class Member(NamedTuple):
    """A producer of the folder; times are milliseconds of Unix time."""

    id: int
    key: Key
    birth_ms: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Request:
    """A traced request as it is kept.

    Attributes:
        row: the fields of ``TracedRequest.of_row`` but for the names.
        names: all that it is known by.
        life, pp_size: as the schema has them.
        traces: of each worker's trace (row, pp_rank, tp_rank, epoch, number, parts, started_step,
            started_ms, ended_ms, computed_tokens).
    """

    row: tuple[Any, ...]
    names: list[str]
    life: int
    pp_size: int
    traces: list[tuple[int, ...]]

    @property
    def number(self) -> int:
        """Rises with each request that was stored."""
        return int(self.row[0])


class Source:
    """A folder's store, which no service may have meanwhile: so all that is read is of one moment.

    Args:
        folder: where it is.

    Raises:
        StoreError: there is no store, a service has it, or it can't be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        if not self.path.is_file() or not self.path.stat().st_size:
            raise StoreError(f"there is no store in {folder}: {self.path} is missing, or empty")
        try:
            self._lock = connections.lock_folder(folder)
        except OSError as error:
            reason = error.strerror if error.errno else "a service has it"
            raise StoreError(
                f"{folder} can't be moved: {reason}. Stop the service first; its workers go on, and deliver "
                "what they count to the next one"
            ) from None
        self._readers = connections.Readers(self.path)
        try:
            with connections.failures(self.path), closing(connections.connect(self.path)) as writer:
                migrate(writer, str(self.path))
                self.name = _name_of(writer)
                self.is_whole = continuation.is_whole(writer)
        except BaseException:
            os.close(self._lock)
            raise
        self.members = self._members()

    def fingerprint(self) -> str:
        """Tells whether a service has written to the folder since it was read last."""
        with self._readers.one() as connection:
            found = connection.execute(
                "SELECT (SELECT count(*) || '/' || coalesce(max(id), 0) FROM snapshot), "
                "(SELECT count(*) || '/' || coalesce(max(id), 0) FROM request), "
                "(SELECT count(*) FROM trace_part), (SELECT total(at_ms) FROM producer), "
                "(SELECT count(*) || '/' || coalesce(max(id), 0) FROM gone)"
            ).fetchone()
        said = hashlib.blake2b(digest_size=8)
        for document in self.documents():
            said.update(repr((document.kind, document.name, document.content)).encode())
        return " ".join(map(str, (*found, said.hexdigest())))

    def sizes(self) -> tuple[int, int]:
        """How many snapshots there are, and how many requests."""
        with self._readers.one() as connection:
            [snapshots] = connection.execute("SELECT count(*) FROM snapshot").fetchone()
            [requests] = connection.execute("SELECT count(*) FROM request").fetchone()
        return snapshots, requests

    def requests_upto(self, number: int) -> int:
        """How many requests have this number or a lower one."""
        with self._readers.one() as connection:
            [count] = connection.execute("SELECT count(*) FROM request WHERE id <= ?", (number,)).fetchone()
        return int(count)

    def posting(self, member: Member) -> Posting:
        """The account of a producer.

        Raises:
            ValueError: it is damaged.
        """
        with self._readers.one() as connection:
            [blob] = connection.execute("SELECT account FROM producer WHERE id = ?", (member.id,)).fetchone()
        return decode_posting(member.key, member.birth_ms, member.at_ms, blob)

    def instants(self, member: Member) -> Int64Array:
        """When a producer's snapshots were true, milliseconds of Unix time, rising, int64 [n]."""
        with self._readers.one() as connection:
            rows = connection.execute(
                "SELECT at_ms FROM snapshot WHERE producer = ? ORDER BY at_ms", (member.id,)
            ).fetchall()
        return np.array([at_ms for (at_ms,) in rows], np.int64)

    def snapshot(self, member: Member, at_ms: int) -> bytes:
        """A producer's snapshot, as it is kept."""
        with self._readers.one() as connection:
            [blob] = connection.execute(
                "SELECT totals FROM snapshot WHERE producer = ? AND at_ms = ?", (member.id, at_ms)
            ).fetchone()
        return bytes(blob)

    def documents(self) -> Iterator[Document]:
        """All documents, one at a time, but those about this folder or about producers that are gone."""
        known = {None, *(member.key for member in self.members)}
        with self._readers.one() as connection:
            names = connection.execute("SELECT kind, name FROM document ORDER BY kind, name").fetchall()
        for which in names:
            is_left = which[0] == PLACEMENT and key_in(which[1]) not in known
            if which[0] not in _NOT_MOVED and not is_left:
                with self._readers.one() as connection:
                    [content] = connection.execute(
                        "SELECT content FROM document WHERE kind = ? AND name = ?", which
                    ).fetchone()
                yield Document(which[0], which[1], bytes(content))

    def gone(self) -> Iterator[list[tuple[int, str]]]:
        """Hashes of the names of requests that were removed, and why; so many at a time."""
        last = 0
        while True:
            with self._readers.one() as connection:
                rows = connection.execute(
                    "SELECT id, name, why FROM gone WHERE id > ? ORDER BY id LIMIT ?", (last, 16 * _AT_ONCE)
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield [row[1:] for row in rows]

    def requests(self, after: int) -> Iterator[Request]:
        """Traced requests above a number, rising."""
        while True:
            with self._readers.one() as connection:
                rows = connection.execute(_REQUESTS, (after, _AT_ONCE)).fetchall()
                found = [_request(connection, row) for row in rows]
            if not found:
                return
            after = found[-1].number
            yield from found

    def trace(self, request: Request, trace: int) -> WorkerTrace:
        """What one worker traced of a request, as far as it is kept.

        Raises:
            ValueError, DamagedError: it is damaged, here or when it is read.
        """
        with self._readers.one() as connection:
            return traces.trace_of(connection, self._readers, request.number, trace)

    def parts(self, trace: int) -> list[tuple[int, int, bytes, int, bytes | None]]:
        """(part, tokens, runs, version of the weights, steps) of the parts of a trace that are kept."""
        with self._readers.one() as connection:
            return connection.execute(
                "SELECT part, tokens, runs, weights_version, steps FROM trace_part WHERE trace = ? "
                "ORDER BY part",
                (trace,),
            ).fetchall()

    def close(self) -> None:
        """Let go of the folder."""
        self._readers.close()
        os.close(self._lock)

    def _members(self) -> Sequence[Member]:
        with self._readers.one() as connection:
            rows = connection.execute(
                "SELECT id, server, model, dp_rank, pp_rank, tp_rank, birth_ms, at_ms FROM producer "
                "ORDER BY id"
            ).fetchall()
        return [Member(row[0], row[1:6], *row[6:]) for row in rows]


_REQUESTS: Final = (
    "SELECT id, server, model, dp_rank, request_id, outcome, prompt_tokens, cached_tokens, preemptions, "
    "started_ms, ended_ms, stored_ms, tokens, role, pool, lora, finish_reason, accepted_drafts, "
    "rejected_drafts, taken_over, missing_stages, missing_tokens, life, pp_size FROM request "
    "WHERE id > ? ORDER BY id LIMIT ?"
)


def _request(connection: sqlite3.Connection, row: tuple[Any, ...]) -> Request:
    names = connection.execute("SELECT name FROM request_name WHERE request = ?", row[:1]).fetchall()
    its = connection.execute(
        "SELECT id, pp_rank, tp_rank, epoch, number, parts, started_step, started_ms, ended_ms, "
        "computed_tokens FROM trace WHERE request = ? ORDER BY id",
        row[:1],
    ).fetchall()
    *fields, life, pp_size = row
    return Request(tuple(fields), [name for (name,) in names], life, pp_size, its)


def _name_of(writer: sqlite3.Connection) -> str:
    """What tells this store from others; it gets a name when it is asked for the first time."""
    found = writer.execute("SELECT content FROM document WHERE kind = ?", (_ORIGIN,)).fetchone()
    if found is None:
        name = uuid.uuid4().hex
        writer.execute("INSERT INTO document VALUES (?, ?, ?)", (_ORIGIN, _ORIGIN, name.encode()))
        return name
    return bytes(found[0]).decode("ascii", "replace")
