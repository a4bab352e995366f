"""Where workers said that their experts are, and what of that the store or this service doesn't have yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from moescope.capture.wire import Frame
from moescope.service.live.placements import Placements, ToldPlacement, told_in
from moescope.service.live.roster import Roster
from moescope.service.store.records import Document, Key, Record

_EARLY_S: Final = 60.0
"""How long what is told of where experts are waits for the account of who told it."""


class PlacementNews:
    """Placements as frames and a store tell them. Not safe for several threads.

    Args:
        placements: what is known of them.
        roster: who is here.
        clock: seconds of Unix time.
        keeps: there is a store.
    """

    def __init__(
        self, placements: Placements, roster: Roster, clock: Callable[[], float], keeps: bool
    ) -> None:
        self._placements = placements
        self._roster = roster
        self._clock = clock
        self._keeps = keeps
        self._told: dict[Key, Document] = {}  # that the store does not have yet
        # Told of producers of which nothing else was heard yet, and when it was heard.
        self._early: dict[Key, tuple[float, ToldPlacement]] = {}
        self._untold: set[Key] = set()  # here, and the store says that where their experts are is gone

    def note(self, frame: Frame, now: float, started_at: float) -> None:
        """Take what the newest frame of a producer says; see :meth:`Placements.note`."""
        key = frame.producer.key
        told = self._placements.note(frame, now, started_at)
        if told is None and key in self._untold:
            told = self._placements.of(key)
        self._untold.discard(key)
        if told is not None and self._keeps:
            self._told[key] = told.document()

    def hear(self, told: ToldPlacement) -> None:
        """Take in where the store says that a producer's experts are, told to this service or to another one.

        What is told of a producer that isn't here waits for it: its account may come with the next round. Of
        those that don't come it is dropped; together there are never over ``max_producers``.
        """
        told = told.by(self._clock())
        if self._roster.get(told.key) is not None:
            self._take(told)
            return
        _, early = self._early.get(told.key, (0.0, None))
        if early is not None and not told.is_over(early, None):
            return
        # It may be old when it comes: of a service that was cut off from the store.
        if early is not None or self._roster.has_room_for(len(self._early)):
            self._early[told.key] = self._clock(), told

    def hear_gone(self, key: Key) -> None:
        """Take in that the store no longer has where a producer's experts are.

        Another service forgot the producer. If a frame of it comes here, its placement is kept again.
        """
        self._early.pop(key, None)
        if self._keeps and self._placements.of(key) is not None:
            self._untold.add(key)

    def entered(self, key: Key) -> None:
        """A producer is here: take what was told of it before."""
        if key in self._early:
            self._take(self._early.pop(key)[1])

    def _take(self, told: ToldPlacement) -> None:
        """Take in what is told of a producer that is here.

        A service that was cut off from the store may have put something older there in place of what is known
        here: that is kept again.
        """
        entry = self._roster.get(told.key)
        newer = self._placements.take(told, None if entry is None else entry.account.life.epoch)
        if newer is not None and self._keeps:
            self._told[told.key] = newer.document()

    def not_kept(self, records: Iterable[Record]) -> None:
        """The store failed to keep these: it is given again what it lacks of producers that are here."""
        for record in records:
            if not isinstance(record, Document):
                continue
            told = told_in(record.name, record.content or b"")
            if told is not None and self._placements.of(told.key) is not None:
                self._told.setdefault(told.key, record)

    def take_documents(self) -> list[Document]:
        """What the store is to keep since the last call."""
        documents = list(self._told.values())
        self._told.clear()
        return documents

    def end_round(self) -> None:
        """All that other services have kept so far was heard."""
        oldest = self._clock() - _EARLY_S
        self._early = {key: early for key, early in self._early.items() if oldest <= early[0]}

    def forget(self, key: Key) -> None:
        """Drop a producer."""
        self._placements.forget(key)
        self._told.pop(key, None)
        self._untold.discard(key)
