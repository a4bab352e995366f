"""The interface of a store. An engine is a folder or a module beside this one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from moescope.capture.wire.traces import TracePart
from moescope.service.store.records import (
    Key,
    Posting,
    Record,
    StoredTotals,
    TracedRequest,
    TraceQuery,
    TraceShape,
    Usage,
    WorkerTrace,
)


class Store(Protocol):
    """Writes come from one thread; reads may come from any.

    Every method raises :class:`StoreError` when the engine fails.
    """

    def save(self, records: Sequence[Record]) -> None:
        """Keep all of these; when it returns they outlive the process.

        Saving a record twice is the same as saving it once: after an error it may be that some are kept, and
        their senders send them again.
        """

    def accounts(self) -> Iterable[Posting]:
        """The newest posting of every producer."""

    def news(self) -> Sequence[Posting]:
        """Postings that other services kept since the last call; none where a store has one service only."""

    def totals_at(self, key: Key, instants: Sequence[float]) -> list[StoredTotals | None]:
        """For each instant the newest totals at or before it; None where nothing that old is kept."""

    def oldest(self, key: Key) -> StoredTotals | None:
        """The oldest totals that are kept of a producer."""

    def traced_requests(self, query: TraceQuery) -> list[TracedRequest]:
        """The requests that match, newest first, ``query.limit`` at most."""

    def shapes(self, parts: Sequence[TracePart]) -> list[TraceShape | None]:
        """For each part the shape of its trace by the parts that are kept; None where none is."""

    def traces(self, number: int, layers: Collection[int] | None) -> list[WorkerTrace]:
        """What each worker traced of a request, of some layers or of all; nothing if it is gone."""

    def documents(self, kind: str) -> list[tuple[str, bytes]]:
        """(name, content) of all documents of a kind, by name."""

    def maintain(self, now: float, history_now: float | None = None) -> None:
        """Roll up and remove what is due; short, so that it can run between two writes.

        ``history_now`` is ``now`` for the history of totals, where that is another (see :mod:`.ageing`).
        """

    def usage(self) -> Usage:
        """What is held."""

    def close(self) -> None:
        """Let go of the engine; no call may follow."""
