"""The interface of a store. An engine is a folder or a module beside this one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, Protocol

from moescope.capture.wire.traces import TracePart
from moescope.service.store.records import (
    Document,
    Key,
    Posting,
    Record,
    StoredTotals,
    TracedRequest,
    TraceQuery,
    TraceShape,
    Usage,
)
from moescope.service.store.slots import ListedRequest, RequestSlots
from moescope.service.store.worker_trace import WorkerTrace

Absence = Literal["incomplete", "expired", "evicted"]
"""Why a request is not found: parts of its traces are missing, its time to live is over, or it was removed
to make room."""


class Store(Protocol):
    """Writes come from one thread; reads may come from any, and maintenance where it says so.

    Every method raises :class:`moescope.service.store.records.StoreError` when the engine fails. What is
    damaged, or was written by a newer moescope, is left out where it can be, and told in the log (see
    :mod:`moescope.service.store.damage`).
    """

    @property
    def unbroken(self) -> bool:
        """Whether it has all that it was ever given, once :meth:`accounts` has been read to its end.

        It has not after damage, after a power cut, or when an older copy was put back.
        """

    @property
    def is_remote(self) -> bool:
        """Whether the engine is another process.

        Then :meth:`maintain` may run in a thread of its own, and :meth:`give_up` does something. Else
        maintenance must be short, so that it can run between two writes.
        """

    def save(self, records: Sequence[Record]) -> None:
        """Keep all of these; when it returns they outlive the process.

        Saving a record twice is the same as saving it once: after an error it may be that some are kept, and
        their senders send them again.
        """

    def accounts(self) -> Iterable[Posting]:
        """The newest posting of every producer, without those that can't be read."""

    @property
    def shared(self) -> bool:
        """Whether other services may write to it at the same time."""

    def news(self) -> Sequence[Posting]:
        """Postings that other services kept since the last call; none where a store has one service only."""

    def changed_documents(self, kind: str) -> Sequence[Document]:
        """Documents of a kind that changed since the last call, whoever kept or removed them.

        The first call has all that there are; none where a store has one service only.
        """

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds of Unix time, by the clock that all services which share the store go by."""

    def totals_at(self, key: Key, instants: Sequence[float]) -> list[StoredTotals | None]:
        """For each instant the newest readable totals at or before it; None where none so old are kept."""

    def totals_of(self, keys: Sequence[Key], instants: Sequence[float]) -> list[list[StoredTotals | None]]:
        """What :meth:`totals_at` has of each of several producers, in as few questions as the engine can."""

    def oldest_of(self, keys: Sequence[Key]) -> list[StoredTotals | None]:
        """What :meth:`oldest` has of each of several producers, likewise."""

    def begins(self) -> Mapping[Key, float]:
        """When the oldest totals that are kept of each producer were true, seconds of Unix time."""

    def oldest(self, key: Key) -> StoredTotals | None:
        """The oldest readable totals that are kept of a producer."""

    def traced_requests(self, query: TraceQuery) -> list[TracedRequest]:
        """The requests that match, newest first, ``query.limit`` at most."""

    def listed(self, query: TraceQuery) -> list[ListedRequest]:
        """The same requests as :meth:`traced_requests`, with little of each: for many of them."""

    def slots(self, numbers: Sequence[int]) -> list[RequestSlots]:
        """The slots of these requests, 64 at most, rising; for requests below ``slots.LONG`` tokens.

        One that is gone, or can't be read as a whole, is left out; the latter is told in the log.
        """

    def why_absent(self, name: str) -> Absence | None:
        """Why no request of a name is found; None: none came, or it was removed so long ago that it is
        forgotten. Names that were removed are remembered as hashes, a bounded number of them. ``incomplete``
        also where one request of the name is and another is not.
        """

    def shapes(self, parts: Sequence[TracePart]) -> list[TraceShape | None]:
        """For each part the shape of its trace by the parts that are kept; None where none is."""

    def traces(self, number: int, layers: Collection[int] | None) -> list[WorkerTrace]:
        """What each worker traced of a request, of some layers or of all; nothing if the request is gone.

        A trace that can't be read is a :class:`StoreError`, here or when it is read. No transaction lasts
        from one read to the next, so a slow reader holds up nothing.
        """

    def traces_of(
        self, numbers: Sequence[int], layers: Collection[int] | None
    ) -> Mapping[int, list[WorkerTrace]]:
        """What :meth:`traces` has of each of several requests, in as few questions as the engine can.

        A request of which it has nothing so is asked for alone, and then it is told why. All that is read at
        once is held: ask about few requests, and about short ones.
        """

    def documents(self, kind: str) -> list[tuple[str, bytes]]:
        """(name, content) of all documents of a kind, by name."""

    def maintain(self, now: float, history_now: float | None = None) -> None:
        """Roll up and remove what is due; see :attr:`is_remote`.

        Args:
            now: seconds of Unix time.
            history_now: the instant by which the history of totals ages, if it is not ``now``; see
                :mod:`moescope.service.store.ageing`.
        """

    def unreadable(self) -> Mapping[str, int]:
        """How often something was met that can't be read, by what it is; see
        :class:`moescope.service.store.damage.DamageLog`.
        """

    def usage(self) -> Usage:
        """What is held."""

    def give_up(self) -> None:
        """Wait for the engine no more: calls that wait for an answer of it, now or later, fail at once.

        Only :meth:`close` may follow. An engine in this process does nothing: it can't be left.
        """

    def close(self) -> None:
        """Let go of the engine; no call may follow."""
