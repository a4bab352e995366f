"""What is known of producers on its way to the store: each change once, and again what was not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from moescope.service.counts.account import Account
from moescope.service.live.history import History
from moescope.service.live.outbox import Outbox
from moescope.service.live.roster import Roster
from moescope.service.store.records import Forgotten, Key, Posting, Record

_ANY_SEQ: Final = (1 << 63) - 1


class Poster:
    """Posts accounts to the outbox, if there is a store. Not safe for several threads.

    Args:
        roster: who is here.
        history: their past.
        clock: seconds of Unix time.
        keeps: there is a store.
    """

    def __init__(self, roster: Roster, history: History, clock: Callable[[], float], keeps: bool) -> None:
        self._roster = roster
        self._history = history
        self._clock = clock
        self._keeps = keeps
        self._outbox = Outbox()
        self._unkept: set[Key] = set()  # the store may lack something of these, which are here

    def post(self, key: Key, account: Account, began_again: bool = False) -> None:
        """A frame changed what is known of a producer."""
        if self._keeps:
            self._outbox.post(self._posting(key, account, began_again))

    def post_newest(self, key: Key, account: Account) -> None:
        """As :meth:`post`, in place of what waits of it: nobody takes that until a frame comes."""
        if self._keeps:
            self._outbox.post_newest(self._posting(key, account))

    def forget(self, key: Key, account: Account) -> None:
        """A producer is forgotten, with its past."""
        if self._keeps:
            state = account.state()
            lives = [(epoch, _ANY_SEQ) for epoch in state.forgotten]
            lives += [(life.epoch, life.seq) for life in state.epochs]
            self._outbox.forget(Forgotten(key, tuple(lives), self._clock()))

    def take(self) -> list[Record]:
        """What has come since the last call."""
        return self._outbox.take()

    def not_kept(self, records: Iterable[Record]) -> None:
        """The store failed to keep these: it is given again what it lacks of what is here."""
        records = list(records)
        self._outbox.not_kept(records, lambda key: self._roster.get(key) is not None)
        for item in records:
            if not isinstance(item, Posting | Forgotten):
                continue
            entry = self._roster.get(item.key)
            if entry is None:
                continue
            self._unkept.add(item.key)
            if isinstance(item, Forgotten):  # it is back: what is here must not go with what was
                self.post(item.key, entry.account)

    def say_again(self) -> None:
        """Post what the store may lack of producers from which no frame may come any more."""
        unkept, self._unkept = self._unkept, set()
        for key in sorted(unkept):
            entry = self._roster.get(key)
            if entry is not None:
                self.post_newest(key, entry.account)
                self._history.track(key).heard_late(self._clock())

    def _posting(self, key: Key, account: Account, began_again: bool = False) -> Posting:
        track = self._history.track(key)
        return Posting(key, track.birth, track.newest_at, account.state(), began_again)
