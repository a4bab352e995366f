"""The store in ClickHouse: several services may write to it and read from it at the same time.

Invariants:
- Every write can be repeated: rows replace each other by what they are about (see
  :mod:`moescope.service.store.clickhouse.schema`). ClickHouse has no transaction over tables, so a batch that
  failed half-way is sent again as a whole, by its senders.
- Of a producer's epoch the row with the highest ``seq`` counts, whichever service kept it last. A service
  writes a row for each epoch of which it knows more than the store, also with the same ``seq`` (see
  :class:`moescope.service.store.clickhouse.kept.Mark`); accounts of several epochs are merged
  (:mod:`moescope.service.counts.merging`): frames of one producer may come to different services, doubled
  and in any order.
- What is removed is named by its epochs and their ``seq``: what another service keeps meanwhile stays.
- What services tell each other is read in the server's order, and times are of the server's clock.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from moescope.capture.wire.traces import TracePart
from moescope.service.store.clickhouse import (
    account_rows,
    documents,
    gone,
    history,
    history_reading,
    leftovers,
    slot_reading,
    trace_listing,
    trace_rows,
    trace_workers,
    traces,
)
from moescope.service.store.clickhouse.access import DIRECT, Access
from moescope.service.store.clickhouse.clock import ServerClock
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.kept import Kept
from moescope.service.store.clickhouse.limit import keep_within, nbytes
from moescope.service.store.clickhouse.news import News
from moescope.service.store.clickhouse.pacing import Paced
from moescope.service.store.clickhouse.rolling import Rolling
from moescope.service.store.clickhouse.schema import MIGRATIONS, VERSIONS, for_cluster
from moescope.service.store.damage import DamageLog, unreadable_as_error
from moescope.service.store.interface import Absence
from moescope.service.store.limits import Retention
from moescope.service.store.records import (
    PLACEMENT,
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
    UnkeepableError,
    Usage,
    name_of,
)
from moescope.service.store.slots import ListedRequest, RequestSlots
from moescope.service.store.worker_trace import WorkerTrace

_TOO_LARGE: Final = (
    "the store %s is larger than store_mib (%d bytes) by its history and its newest day of traces, which "
    "stay: trace less, or keep it for less long (keep_traces_s, keep_5min_s)"
)

_log = logging.getLogger(__name__)


class ClickHouseStore:
    """See :class:`moescope.service.store.interface.Store`.

    Args:
        url: see :class:`Connection`.
        retention: how long what is kept; its ``max_bytes`` is not applied.
        max_bytes: of the whole database on disk, above which the oldest days of traces go; None: no limit.
        sleep: waits that many seconds, between two tries and after what maintenance asks.
        access: how to reach the server.

    Raises:
        StoreError: the server can't be used, or is a newer moescope's.
    """

    def __init__(
        self,
        url: str,
        retention: Retention,
        max_bytes: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
        access: Access = DIRECT,
    ) -> None:
        self._connection = Connection(url, sleep, access)
        self._max_bytes = max_bytes
        self._fits = True
        self._retention = retention
        self._writer = uuid.uuid4().hex
        self._numbers = trace_rows.Numbers()
        self._kept, self._kept_lives = Kept(), Kept(whole=False)
        self._damage = DamageLog(self._connection.name)
        self._paced = Paced(self._connection, sleep)
        self._rolling = Rolling(self._paced, retention)
        self._leftovers = leftovers.Leftovers(self._paced, retention.coarse_s)
        _migrate(self._connection)
        self._news = News(self._connection, self._writer, self._kept, self._damage.account_of_another)
        self._changes: dict[str, documents.Changes] = {}
        self._clock = ServerClock(self._server_time)
        self._knows_lives = False

    @property
    def connection(self) -> Connection:
        """The server, its schema up to date; for what moves a store."""
        return self._connection

    @property
    def shared(self) -> bool:
        """It is."""
        return True

    @property
    def clock(self) -> Callable[[], float]:
        """The server's clock."""
        return self._clock

    @property
    def unbroken(self) -> bool:
        """Taken for granted: copies and damage are ClickHouse's own business."""
        return True

    @property
    def is_remote(self) -> bool:
        """It is: a server of its own."""
        return True

    def save(self, records: Sequence[Record]) -> None:
        """Keep all of these; on an error some may be kept, and saving them again is harmless."""
        try:
            self._note_lives(records)
            records = self._without_forgotten(records)
            rows = account_rows.rows_of(records, self._writer, self._kept, self._kept_lives)
            parts = [record for record in records if isinstance(record, ArrivedPart)]
            routing, headers = trace_rows.rows_of(parts, self._numbers)
        except (TypeError, ValueError, OverflowError) as error:
            raise UnkeepableError(f"a record can't be kept: {error}") from error
        for record in records:
            if isinstance(record, Forgotten):
                history.forget(self._connection, record)
            elif isinstance(record, Posting) and record.began_again:
                history.begin_again(self._connection, record)
        insert = self._connection.insert
        # A part is seen by its header: last, so that all of it is there by then. An account comes before its
        # history, so that no service finds history of which it can't know.
        insert("account", account_rows.COLUMNS, rows.accounts)
        for posting, written in rows.of_accounts:
            self._kept.settle(posting.key, posting.account, written)
        insert("life", history.COLUMNS, rows.lives)
        for posting, written in rows.of_lives:
            self._kept_lives.settle(posting.key, posting.account, written)
        insert("routing", trace_rows.ROUTING_COLUMNS, routing)
        insert("trace_part", trace_rows.PART_COLUMNS, headers)
        # Last, since what is told of a producer goes with its last account.
        left = leftovers.without_account(self._connection, _forgotten_in(records))
        gone = [Document(PLACEMENT, name_of(key), None) for key in left]
        insert("document", documents.COLUMNS, documents.rows_of(self._connection, [*records, *gone]))

    def accounts(self) -> Iterator[Posting]:
        """The newest posting of every producer, its epochs from whichever service knew them best.

        What history has of them is noted by the way, so that the first frame needn't wait for it.
        """
        self._note_lives(())
        return account_rows.all_postings(self._connection, self._kept, self._damage.account)

    def news(self) -> list[Posting]:
        """Accounts that other services kept since the last call; the clock is set by the way."""
        self._clock.set()
        return self._news.read()

    def changed_documents(self, kind: str) -> list[Document]:
        """Documents of a kind that changed since the last call."""
        return self._changes.setdefault(kind, documents.Changes(self._connection, kind)).read()

    def totals_at(self, key: Key, instants: Sequence[float]) -> list[StoredTotals | None]:
        """For each instant the newest totals at or before it."""
        instants_ms = [round(instant * 1000) for instant in instants]
        return history_reading.totals_at(self._connection, key, instants_ms, self._damage)

    def totals_of(self, keys: Sequence[Key], instants: Sequence[float]) -> list[list[StoredTotals | None]]:
        """The same for several producers."""
        instants_ms = [round(instant * 1000) for instant in instants]
        return history_reading.totals_of(self._connection, keys, instants_ms, self._damage)

    def oldest_of(self, keys: Sequence[Key]) -> list[StoredTotals | None]:
        """The oldest totals that are kept of each producer."""
        return history_reading.oldest_of(self._connection, keys, self._damage)

    def begins(self) -> dict[Key, float]:
        """When the oldest totals that are kept of each producer were true."""
        return history.begins(self._connection)

    def oldest(self, key: Key) -> StoredTotals | None:
        """The oldest totals that are kept of a producer."""
        return history_reading.oldest(self._connection, key, self._damage)

    def traced_requests(self, query: TraceQuery) -> list[TracedRequest]:
        """The requests that match, newest first."""
        return trace_listing.traced_requests(self._connection, query, self._damage)

    def why_absent(self, name: str) -> Absence | None:
        """Why no request of a name is found."""
        return gone.why_absent(self._connection, name)

    def listed(self, query: TraceQuery) -> list[ListedRequest]:
        """The requests that match, newest first, with little of each."""
        return trace_listing.listed(self._connection, query)

    def slots(self, numbers: Sequence[int]) -> list[RequestSlots]:
        """The slots of these requests."""
        return slot_reading.slots(self._connection, numbers, self._damage)

    def shapes(self, parts: Sequence[TracePart]) -> list[TraceShape | None]:
        """For each part the shape of its trace by the parts that are kept."""
        return traces.shapes(self._connection, parts)

    def traces(self, number: int, layers: Collection[int] | None) -> list[WorkerTrace]:
        """What each worker traced of a request."""
        with unreadable_as_error(self._connection.name):
            return trace_workers.traces(self._connection, number, layers)

    def traces_of(
        self, numbers: Sequence[int], layers: Collection[int] | None
    ) -> dict[int, list[WorkerTrace]]:
        """What each worker traced of several requests."""
        return trace_workers.traces_of(self._connection, numbers, layers)

    def documents(self, kind: str) -> list[tuple[str, bytes]]:
        """(name, content) of all documents of a kind, by name."""
        return documents.of_kind(self._connection, kind)

    def maintain(self, now: float, history_now: float | None = None) -> None:
        """Roll up and remove what is due; see :class:`Paced`. Every service does; a second finds little."""
        history_ms = round((now if history_now is None else history_now) * 1000)
        self._rolling.keep(history_ms)
        now_ms = round(now * 1000)
        traces.remove_before(self._paced, round((now - self._retention.trace_s) * 1000), now_ms)
        if self._max_bytes is not None:
            before, self._fits = self._fits, keep_within(self._paced, self._max_bytes, now_ms)
            if before and not self._fits:
                _log.warning(_TOO_LARGE, self._connection.name, self._max_bytes)
        self._leftovers.remove(now_ms)

    def unreadable(self) -> dict[str, int]:
        """How often something was met that can't be read."""
        return self._damage.found()

    def usage(self) -> Usage:
        """What is held, by all services together."""
        [(snapshots,)] = self._connection.rows("SELECT toInt64(count()) FROM life FINAL", "i")
        return Usage(snapshots, traces.count(self._connection), nbytes(self._connection))

    def give_up(self) -> None:
        """Wait for the server no more."""
        self._connection.give_up()

    def close(self) -> None:
        """Let go of the connections."""
        self._connection.close()

    def _without_forgotten(self, records: Sequence[Record]) -> list[Record]:
        """The records, without postings of producers that a later one forgets: deletions go first.

        What is to be deleted is no longer taken for kept, so that what comes back with it is written again.
        """
        left: list[Record] = []
        forgotten: set[Key] = set()
        for record in reversed(records):
            if isinstance(record, Posting) and record.key in forgotten:
                continue
            left.append(record)
            for kept in (self._kept, self._kept_lives):
                if isinstance(record, Forgotten):
                    forgotten.add(record.key)
                    kept.drop(record.key)
                elif isinstance(record, Posting) and record.began_again:
                    kept.drop(record.key, record.account.forgotten)
        return left[::-1]

    def _note_lives(self, records: Sequence[Record]) -> None:
        """Know what ``life`` has of the producers of postings: another service may have begun with one."""
        if not self._knows_lives:
            history.note_all(self._connection, self._kept_lives)
            self._knows_lives = True
        keys = {item.key for item in records if isinstance(item, Posting)}
        new = sorted(key for key in keys if not self._kept_lives.knows(key))
        if new:
            history.note_all(self._connection, self._kept_lives, new)

    def _server_time(self) -> float:
        [(now_us,)] = self._connection.rows("SELECT toUnixTimestamp64Micro(now64(6))", "i")
        return float(now_us) / 1e6


def _forgotten_in(records: Sequence[Record]) -> list[Key]:
    return [record.key for record in records if isinstance(record, Forgotten)]


def _migrate(connection: Connection) -> None:
    connection.command(for_cluster(VERSIONS, connection.cluster))
    [(version,)] = connection.rows("SELECT toInt64(max(version)) FROM schema_version", "i")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{connection.name} has schema {version}, this moescope knows {len(MIGRATIONS)}: upgrade it, or "
            "choose another database"
        )
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        for statement in statements:
            connection.command(for_cluster(statement, connection.cluster))
        connection.insert("schema_version", ("version",), [[number]])
