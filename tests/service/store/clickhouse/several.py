"""Several services on one ClickHouse, driven step by step: no thread, and time that passes when told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from moescope.capture.wire import Frame
from moescope.service.api.limits.hearing import Ear
from moescope.service.counts.refusals import RefusedError
from moescope.service.drift.baseline import KIND, BaselineBook
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.store.clickhouse.clock import ServerClock
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.limits import Retention
from moescope.service.store.records import PLACEMENT, Document, Record, StoreError

KEPT: Final = "kept"
UNKEPT: Final = "not kept"
REFUSED: Final = "refused"
_AGES: Final = Retention()


class Line:
    """What lies between a service and its store: it can be cut, at once or after some more questions."""

    def __init__(self, store: ClickHouseStore) -> None:
        self._left: int | None = None
        self.loses_answers = False
        connection = store._connection
        for name in ("rows", "command", "insert", "maintain"):
            setattr(connection, name, self._guarded(getattr(connection, name)))

    def cut(self, after: int = 0, loses_answers: bool = False) -> None:
        """Let so many questions through, then none; the last one may arrive, and its answer be lost."""
        self._left, self.loses_answers = after, loses_answers

    def mend(self) -> None:
        """Let all questions through."""
        self._left = None

    @property
    def is_cut(self) -> bool:
        """Whether questions are counted."""
        return self._left is not None

    def _guarded(self, ask: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **fields: Any) -> Any:
            if self._left is None:
                return ask(*args, **fields)
            self._left -= 1
            if self._left < 0:
                if self._left == -1 and self.loses_answers:
                    ask(*args, **fields)
                raise StoreError("the line is cut")
            return ask(*args, **fields)

        return guarded


class Peer:
    """One service: what is here is what `api/app.py` puts together, but for HTTP and the store's thread.

    Args:
        url: the database.
        now: the server's clock, seconds of Unix time.
        off: by how much the clock of the service's host is ahead.
        ages: how long what is kept.
        apart: by how much the clock that it is told is ahead: replicas have clocks of their own.
        settings: of the service.
    """

    def __init__(
        self,
        url: str,
        now: Callable[[], float],
        off: float = 0.0,
        ages: Retention = _AGES,
        apart: float = 0.0,
        **settings: Any,
    ) -> None:
        self.store = ClickHouseStore(url, ages, sleep=lambda _: None)
        self.line = Line(self.store)
        clock = ServerClock(lambda: now() + apart, lambda: now() + off)
        self.store._clock = clock
        self.settings = Settings(**{"min_tokens": 1, "store": url, **settings})
        self.state = LiveState(self.settings, clock, self.store)
        self.state.restore(self.store.accounts(), self.store.unbroken)
        self.state.hear_placements(self.store.documents(PLACEMENT))
        self.book = BaselineBook(self.store.documents(KIND))
        self._ear = Ear(self.state, self.book)
        self.why_refused = ""

    def take(self, *frames: Frame) -> list[str]:
        """Frames that come at once, and what their workers are told."""
        told = []
        for frame in frames:
            try:
                self.state.ingest(frame)
            except RefusedError as error:
                self.why_refused = str(error)
                told.append(REFUSED)
            else:
                told.append(KEPT)
        if KEPT in told:
            records = self.state.take_records()
            if not self._keep(records):
                self.state.not_kept(records)
                return [UNKEPT if item == KEPT else item for item in told]
        return told

    def hear(self) -> None:
        """One round of news."""
        try:
            self._ear.hear(self.store)
        except StoreError:
            assert self.line.is_cut

    def maintain(self) -> None:
        """Maintain the store, maybe not to its end."""
        try:
            self.store.maintain(self.store.clock())
        except StoreError:
            assert self.line.is_cut

    def keep(self, document: Document) -> bool:
        """Keep a document and take it in, as the routes of baselines do; whether it could be kept."""
        if not self._keep([document]):
            return False
        self.book.heed([document])
        return True

    def slots(self) -> list[int]:
        """Slots by expert of all layers, over all producers."""
        totals = [item.totals for item in self.state.producers()]
        return [int(sum(column)) for column in zip(*(item.counts for item in totals), strict=True)]

    def kill(self) -> None:
        """Let go of everything; nothing is written."""
        self.store.close()

    def _keep(self, records: Sequence[Record]) -> bool:
        try:
            self.store.save(records)
        except StoreError:
            assert self.line.is_cut
            return False
        return True
