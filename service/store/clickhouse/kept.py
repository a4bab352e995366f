"""What of each start of each producer this service knows to be in the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from moescope.service.counts.account_state import AccountState
from moescope.service.counts.epoch_state import EpochState
from moescope.service.store.records import Key, Posting


class Mark(NamedTuple):
    """How much a row tells of a start; of two with one ``seq`` each may tell what the other doesn't.

    Attributes:
        seq: the number of the newest frame.
        joined: steps that were joined.
        left_out: tokens that counters leave out, negative: the less they leave out the more is known.
        seen: how many starts the account knows of.
        since: when the start began, when its counting did and when its first frame came, and its least lag;
            of the newest one also when the producer's counting began. Milliseconds. Frames come doubled and
            late, so services hear of one start at different times: of each of these the earliest holds.
        until: when it was heard, its totals were true, it went on and it overlapped others last, in
            milliseconds, and how often: of each of these the latest holds.
    """

    seq: int
    joined: int = 0
    left_out: int = 0
    seen: int = 0
    since: tuple[int, ...] = ()
    until: tuple[int, ...] = ()

    @classmethod
    def of(cls, posting: Posting, life: EpochState) -> Mark:
        """What a row with this posting tells of one of its starts; the newest one tells of all."""
        account, base = posting.account, posting.account.base
        since = _ms(life.began_at, life.started_at, life.came_at, life.lag)
        until = (*_ms(life.heard_at, life.made_at, life.going_at, life.spoken_at), life.overlaps)
        if life.epoch != account.latest.epoch:
            return cls(life.seq, life.joined, since=since, until=until)
        left_out = 0 if base is None else -1 - base.totals.tokens
        since += (round(1000 * posting.birth),)
        return cls(life.seq, life.joined, left_out, account.epochs_seen, since, until)

    def is_over(self, other: Mark | None) -> bool:
        """Whether it tells something that the other one doesn't."""
        if other is None or self.seq > other.seq:
            return True
        return self.seq == other.seq and (
            self.joined > other.joined
            or self.left_out > other.left_out
            or self.seen > other.seen
            or any(mine < its for mine, its in zip(self.since, other.since, strict=False))
            or any(mine > its for mine, its in zip(self.until, other.until, strict=False))
        )


def _ms(*seconds: float) -> tuple[int, ...]:
    return tuple(round(1000 * each) for each in seconds)


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
        """A row is in the store. One with the same ``seq`` has taken the place of the one before."""
        marks = self._marks.setdefault(key, {})
        if epoch not in marks or mark.seq >= marks[epoch].seq:
            marks[epoch] = mark

    def lacking(self, posting: Posting) -> dict[int, Mark]:
        """The starts of an account of which the store may lack something, and what it would have then."""
        marks = self._marks.get(posting.key, {})
        found = {life.epoch: self._mark(posting, life) for life in posting.account.epochs}
        return {epoch: mark for epoch, mark in found.items() if mark.is_over(marks.get(epoch))}

    def _mark(self, posting: Posting, life: EpochState) -> Mark:
        return Mark.of(posting, life) if self._whole else Mark(life.seq, life.joined)

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
