"""What of each start of each producer this service knows to be in the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from moescope.service.counts.account_state import AccountState, EpochState
from moescope.service.store.records import Key


class Mark(NamedTuple):
    """How much a row tells of a start.

    Attributes:
        seq: the number of the newest frame.
        joined: steps that were joined.
        left_out: tokens that counters leave out, negative: the less they leave out the more is known.
        seen: how many starts the account knows of.
    """

    seq: int
    joined: int = 0
    left_out: int = 0
    seen: int = 0

    @classmethod
    def of(cls, account: AccountState, life: EpochState) -> Mark:
        """What a row with this account tells of one of its starts; the newest one tells of all."""
        if life.epoch != account.latest.epoch:
            return cls(life.seq, life.joined)
        base = account.base
        return cls(life.seq, life.joined, 0 if base is None else -1 - base.totals.tokens, account.epochs_seen)

    def is_over(self, other: Mark | None) -> bool:
        """Whether it tells something that the other one doesn't."""
        if other is None or self.seq > other.seq:
            return True
        return self.seq == other.seq and (
            self.joined > other.joined or self.left_out > other.left_out or self.seen > other.seen
        )


class Kept:
    """Marks by producer and start, of one table; a start that an account has forgotten goes.

    Memory is bounded by the starts of the accounts that this service has, and of those it was told.

    Args:
        whole: rows tell all of an account, and not only what was counted.
    """

    def __init__(self, whole: bool = True) -> None:
        self._whole = whole
        self._marks: dict[Key, dict[int, Mark]] = {}

    def knows(self, key: Key) -> bool:
        """Whether anything of a producer is in the store."""
        return key in self._marks

    def note(self, key: Key, epoch: int, mark: Mark) -> None:
        """A row is in the store."""
        marks = self._marks.setdefault(key, {})
        if mark.is_over(marks.get(epoch)):
            marks[epoch] = mark

    def lacking(self, key: Key, account: AccountState) -> dict[int, Mark]:
        """The starts of an account of which the store may lack something, and what it would have then."""
        marks = self._marks.get(key, {})
        found = {life.epoch: self._mark(account, life) for life in account.epochs}
        return {epoch: mark for epoch, mark in found.items() if mark.is_over(marks.get(epoch))}

    def _mark(self, account: AccountState, life: EpochState) -> Mark:
        return Mark.of(account, life) if self._whole else Mark(life.seq, life.joined)

    def settle(self, key: Key, account: AccountState, written: Mapping[int, Mark]) -> None:
        """Rows of an account were written."""
        for epoch, mark in written.items():
            self.note(key, epoch, mark)
        marks = self._marks.setdefault(key, {})
        for epoch in marks.keys() - {life.epoch for life in account.epochs}:
            del marks[epoch]

    def drop(self, key: Key, epochs: Iterable[int] | None = None) -> None:
        """Rows of some starts, or of all, are no longer there."""
        if epochs is None:
            self._marks.pop(key, None)
            return
        marks = self._marks.get(key, {})
        for epoch in epochs:
            marks.pop(epoch, None)
