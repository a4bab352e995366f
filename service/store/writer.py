"""The thread that writes: what came while it wrote is its next transaction, then the senders are told."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from moescope.capture.wire.traces import TracePart
from moescope.service.counts.refusals import RefusedError
from moescope.service.logs import Throttle
from moescope.service.store.ageing import Ageing
from moescope.service.store.interface import Store
from moescope.service.store.records import ArrivedPart, Document, Posting, Record, StoreError, TraceShape
from moescope.service.store.waiting import MAX_WAITING, Item, Waiting

_log = logging.getLogger(__name__)

MAINTENANCE_S: Final = 10.0
NEWS_S: Final = 1.0
_AGED: Final = "aged"  # the document that says how far history has aged


class StoreWriter:
    """Writes to a store from a thread of its own, in the order of the calls of :meth:`submit`.

    Parts of traces have an order of their own, and let all else go first; see :class:`Waiting`.
    """

    def __init__(
        self, store: Store, clock: Callable[[], float] = time.time, maintenance_s: float = MAINTENANCE_S
    ) -> None:
        self.store = store
        self._clock = clock
        self._maintenance_s = maintenance_s
        self._heed: Callable[[Store], None] | None = None
        self._waiting = Waiting()
        self._throttle = Throttle(time.monotonic)
        self._thread = threading.Thread(target=self._run, name="moescope-store", daemon=True)
        self._thread.start()

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

    def close(self) -> None:
        """Write what waits, then close the store."""
        self._waiting.close()
        self._thread.join()
        self.store.close()

    def _run(self) -> None:
        maintained = heard = time.monotonic()
        ageing = Ageing(self._aged_until(), time.monotonic)
        closing = False
        while not closing:
            taken, closing = self._waiting.take(min(NEWS_S, self._maintenance_s))
            batch = [_begun(item) for item in taken]
            if batch:
                self._write(batch)
            if time.monotonic() - heard >= NEWS_S:
                self._hear()
                heard = time.monotonic()
            if time.monotonic() - maintained >= self._maintenance_s:
                self._maintain(ageing)
                maintained = time.monotonic()

    def _write(self, batch: Sequence[Item]) -> None:
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
        for _, future in batch:
            future.set_result(None)

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
        failure = error if isinstance(error, StoreError) else StoreError(f"the store failed: {error!r}")
        for _, future in batch:
            future.set_exception(failure)

    def _hear(self) -> None:
        if self._heed is None or not self.store.shared:
            return
        try:
            self._heed(self.store)
        except Exception as error:  # noqa: BLE001 - the thread must outlive it
            self._complain(error)

    def _maintain(self, ageing: Ageing) -> None:
        try:
            now = self._clock()
            history_now = ageing.until(now)
            self.store.maintain(now, history_now)
            self.store.save([Document(_AGED, _AGED, repr(history_now).encode())])
        except Exception as error:  # noqa: BLE001 - the thread must outlive it
            self._complain(error)

    def _aged_until(self) -> float | None:
        """What was kept of :class:`Ageing` when the service ran before; None: nothing that can be read."""
        try:
            kept = next((content for _, content in self.store.documents(_AGED)), None)
        except Exception as error:  # noqa: BLE001 - the thread must outlive it
            self._complain(error)
            return None
        if kept is None:
            return None
        try:
            instant = float(kept)
            if not math.isfinite(instant):
                raise ValueError(f"{instant} is no instant")
        except ValueError as error:
            _log.error("how far the history in the store has aged can't be read: %s; it ages from now", error)
            return None
        return instant

    def _complain(self, error: Exception) -> None:
        if self._throttle.allows(type(error).__name__):
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
