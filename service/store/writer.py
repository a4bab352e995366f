"""The thread that writes: what came while it wrote is its next transaction, then the senders are told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from moescope.capture.wire.traces import TracePart
from moescope.service.counts.refusals import RefusedError
from moescope.service.logs import Throttle
from moescope.service.store.failing import Failing, counted
from moescope.service.store.interface import Store
from moescope.service.store.records import (
    ArrivedPart,
    Document,
    Posting,
    Record,
    StoreAwayError,
    StoreError,
    TraceShape,
)
from moescope.service.store.upkeep import MAINTENANCE_S, Upkeep
from moescope.service.store.waiting import MAX_WAITING, Item, Waiting

_LOST: Final = (
    "the service ends and %d frames, %d parts of traces and %d documents that came to it are not known to be "
    "in the store, which did not keep them in time; none of them was acknowledged, so workers that go on "
    "send theirs again"
)
_log = logging.getLogger(__name__)

NEWS_S: Final = 1.0
GATHER_S: Final = 0.05
"""A remote store is written to so often at most, since each write costs: what comes meanwhile is one."""
GIVE_UP_S: Final = 2.7
"""For so long a remote store may be waited for once the service is to end."""
END_S: Final = 0.8
"""For so long it may go on after its requests have ended, and as long once it was given up."""


class StoreWriter:
    """Writes to a store from a thread of its own, in the order of the calls of :meth:`submit`.

    Parts of traces have an order of their own, and let all else go first; see :class:`Waiting`. A store that
    can be maintained beside its writes is, in a second thread.
    """

    def __init__(
        self, store: Store, clock: Callable[[], float] = time.time, maintenance_s: float = MAINTENANCE_S
    ) -> None:
        self.store = store
        self._heed: Callable[[Store], None] | None = None
        self._waiting = Waiting()
        self._failing = Failing()
        self._throttle = Throttle(time.monotonic)
        self._ending = threading.Event()
        self._given_up = False
        self._lost: list[Item] = []
        self._writing: Sequence[Item] = ()
        keep = self._keep_apart if store.is_remote else self._keep_here
        self._upkeep = Upkeep(store, clock, maintenance_s, keep, self._complain)
        self._thread = threading.Thread(target=self._run, name="moescope-store", daemon=True)
        self._thread.start()
        self._upkeep_thread = threading.Thread(
            target=self._upkeep.run, args=(self._ending,), name="moescope-upkeep", daemon=True
        )
        if store.is_remote:
            self._upkeep_thread.start()

    def submit(self, records: Sequence[Record]) -> Future[None]:
        """Hand records over without waiting; the result comes when they are kept for good.

        The future raises :class:`StoreError` when they could not be kept, or when too many wait already, and
        :class:`RefusedError` when a part of a trace contradicts those before.
        """
        future: Future[None] = Future()
        if not self._waiting.put((records, future)):
            future.set_exception(StoreError(f"{MAX_WAITING} writes wait for the store: is its disk slow?"))
        return future

    def watch(self, heed: Callable[[Store], None]) -> None:
        """Have ``heed`` called once a second in the store's thread, if other services may write there too."""
        self._heed = heed

    def trouble(self) -> str | None:
        """Why what is handed over now would not be kept in time; None: it would."""
        return self._failing.reason()

    def end_soon(self) -> None:
        """The service is to end: give the store up if it doesn't answer for :data:`GIVE_UP_S`."""
        timer = threading.Timer(GIVE_UP_S, self._give_up)
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        """Write what waits, then close the store; a remote one that doesn't answer is left (:data:`END_S`).

        What could not be written is told in the log.
        """
        self._ending.set()
        self._waiting.close()
        limit = END_S if self.store.is_remote else None
        if not self._given_up:
            self._thread.join(limit)
        self._give_up()
        threads = [self._thread, self._upkeep_thread] if self.store.is_remote else [self._thread]
        for thread in threads:
            thread.join(limit)
        left = any(thread.is_alive() for thread in threads)
        self._lost += [*self._writing, *self._waiting.drop()]
        if self._lost:
            _log.error(_LOST, *counted(records for records, _ in self._lost))
        if left:
            _log.error("the service ends, although the store has not ended what it began")
        else:
            self.store.close()

    def _give_up(self) -> None:
        self._given_up = True
        self.store.give_up()

    def _run(self) -> None:
        heard = time.monotonic()
        wrote = heard - GATHER_S
        apart = self.store.is_remote
        if not apart:
            self._upkeep.begin()
        closing = False
        while not closing:
            if apart:
                self._ending.wait(max(0.0, wrote + GATHER_S - time.monotonic()))
            taken, closing = self._waiting.take(min(NEWS_S, self._upkeep.every_s))
            batch = [_begun(item) for item in taken]
            if batch:
                wrote = time.monotonic()
                self._writing = batch
                self._write(batch)
                self._writing = ()
            elif not closing and (try_again := self._failing.to_try_again()) is not None:
                self._try(try_again)
            if time.monotonic() - heard >= NEWS_S:
                self._hear()
                heard = time.monotonic()
            if not apart:
                self._upkeep.if_due()

    def _write(self, batch: Sequence[Item]) -> None:
        with self._failing.trying():
            try:
                batch = self._fitting(batch)
            except Exception as error:  # noqa: BLE001 - the thread must outlive it
                self._fail(batch, error)
                return
            records = _newest([record for item, _ in batch for record in item])
            try:
                self.store.save(records)
            except Exception as error:  # noqa: BLE001 - the thread must outlive it
                self._fail(batch, error)
                return
            self._failing.worked()
        for _, future in batch:
            future.set_result(None)

    def _try(self, records: Sequence[Record]) -> None:
        """Keep what could not be kept once more: nobody may send anything while the service isn't ready."""
        with self._failing.trying():
            try:
                self.store.save(records)
            except Exception as error:  # noqa: BLE001 - the thread must outlive it
                self._failing.failed(error, records)
            else:
                self._failing.worked()

    def _fitting(self, batch: Sequence[Item]) -> list[Item]:
        """The batch without parts that contradict their trace, whose senders are told so."""
        parts = [item.part for records, _ in batch for item in records if isinstance(item, ArrivedPart)]
        if not parts:
            return list(batch)
        shapes = dict(zip(map(_trace_of, parts), self.store.shapes(parts), strict=True))
        fitting: list[Item] = []
        for records, future in batch:
            try:
                for record in records:
                    if isinstance(record, ArrivedPart):
                        name = _trace_of(record.part)
                        shape = shapes[name] or TraceShape.of(record.part)
                        shape.check(record.part)
                        shapes[name] = shape
            except RefusedError as error:
                future.set_exception(error)
            else:
                fitting.append((records, future))
        return fitting

    def _fail(self, batch: Sequence[Item], error: Exception) -> None:
        self._complain(error)
        self._failing.failed(error, [record for records, _ in batch for record in records])
        failure = error if isinstance(error, StoreError) else StoreError(f"the store failed: {error!r}")
        if isinstance(error, StoreAwayError):
            # Those that came meanwhile waited as long, and would wait as long again.
            batch = [*batch, *(_begun(item) for item in self._waiting.drop())]
        if self._given_up:
            self._lost += batch
        for _, future in batch:
            future.set_exception(failure)

    def _hear(self) -> None:
        if self._heed is None:
            return
        try:
            with self._failing.trying():  # what waits is not kept meanwhile
                if self.store.shared:
                    self._heed(self.store)
                else:
                    self.store.news()  # nobody else writes, but somebody may have removed its files
        except StoreAwayError as error:
            self._fail((), error)
        except Exception as error:  # noqa: BLE001 - the thread must outlive it
            self._complain(error)

    def _keep_here(self, document: Document) -> None:
        self.store.save([document])

    def _keep_apart(self, document: Document) -> None:
        self.submit([document])  # all writes are the store's thread's

    def _complain(self, error: Exception) -> None:
        if not self._given_up and self._throttle.allows(type(error).__name__):
            _log.error("the store failed (logged once a minute): %s", error)


def _begun(item: Item) -> Item:
    """An item that is being written: its future can't be cancelled any more.

    Of a future that was cancelled before, the sender is not told, but its records are written all the same.
    """
    records, future = item
    return item if future.set_running_or_notify_cancel() else (records, Future())


def _trace_of(part: TracePart) -> tuple[object, ...]:
    return (*part.producer.key, part.request_id, part.epoch, part.trace)


def _newest(records: Sequence[Record]) -> list[Record]:
    """The records, without postings that a later posting of the same second replaces anyway."""
    kept: list[Record] = []
    replaced: set[tuple[object, int]] = set()
    for record in reversed(records):
        if isinstance(record, Posting):
            slot = (record.key, int(record.at))
            if slot in replaced and not record.began_again:
                continue
            replaced.add(slot)
        kept.append(record)
    return kept[::-1]
