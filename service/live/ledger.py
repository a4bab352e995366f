"""The accounts of all producers, and with them their history, their placements and the joins of their steps.

Here everything changes together. Nothing here is safe for several threads: the live state has the lock.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from moescope.capture.wire import Frame
from moescope.service.counts.account import Account, Verdict
from moescope.service.counts.account_state import AccountState
from moescope.service.counts.conflict import Conflict, named
from moescope.service.counts.layers import Layout, Layouts
from moescope.service.counts.lives import takes_place
from moescope.service.counts.merging import merge_accounts
from moescope.service.counts.step_costs import Stragglers
from moescope.service.counts.totals import Totals
from moescope.service.live.continuity import Continuity
from moescope.service.live.history import History
from moescope.service.live.memory import available_bytes
from moescope.service.live.outbox import Outbox
from moescope.service.live.past import Remembered
from moescope.service.live.placements import Placements, ToldPlacement, told_in
from moescope.service.live.producers import ProducerState
from moescope.service.live.roster import Roster
from moescope.service.live.row_laws import RowLaws
from moescope.service.live.spans import Snapshot
from moescope.service.live.step_joins import Joins
from moescope.service.settings import ClickHouseUrl, Settings
from moescope.service.store.records import Document, Forgotten, Key, Posting, Record

_HISTORY_BYTES: Final = 256 << 20
_ON_THE_WAY_S: Final = 2.0
"""How long ago another service may have taken a frame that the store does not show yet."""
_EARLY_S: Final = 60.0
"""How long what is told of where experts are waits for the account of who told it."""
_LONG_S: Final = 7.0
"""After so long without a round several frames of a producer may come as one."""
_ANY_SEQ: Final = (1 << 63) - 1
_log = logging.getLogger(__name__)


class Ledger:
    """Takes frames, and what a store kept of them.

    Args:
        settings: limits, and what counts as stale.
        clock: seconds of Unix time.
        keeps: there is a store, so that what changes is put into the outbox.

    Attributes:
        roster, history, placements, joins, outbox: to read from; the outbox is also to be emptied.
        continuity: says which deployments' counters may be shown.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float], keeps: bool) -> None:
        self._settings = settings
        self._clock = clock
        self._keeps = keeps
        self._layouts = Layouts()
        self.roster = Roster(settings, clock)
        self.history = _history(settings, keeps)
        self.placements = Placements()
        self.joins = Joins(self._add_stragglers)
        self._laws = RowLaws()
        self._conflicts: dict[Key, Conflict] = {}
        self.outbox = Outbox()
        alone = not isinstance(settings.store, ClickHouseUrl)
        self.continuity = Continuity(clock, settings.stale_after_s, alone)
        self._told_placements: dict[Key, Document] = {}  # that the store does not have yet
        # Told of producers of which nothing else was heard yet, and when it was heard.
        self._early: dict[Key, tuple[float, ToldPlacement]] = {}
        self._untold: set[Key] = set()  # here, and the store says that where their experts are is gone
        self._round_at = clock()  # when what other services had kept by then was heard
        self._unkept: set[Key] = set()  # the store may lack something of these, which are here
        self._starts: dict[Key, int] = {}  # of the producers that another shape of their model has pushed out

    def restore(self, posting: Posting, unbroken: bool = True) -> None:
        """Go on from what a store has kept of a producer. To be called before its first frame.

        Unless the store is ``unbroken``, counters begin at zero.
        """
        if not self._makes_way(posting.key, posting.account):
            return
        account = self._restored(posting.account)
        self._enter(posting.key, account, posting.at)
        self.history.record(posting.key, posting.birth, Snapshot(posting.at, posting.account.totals))
        self.continuity.restored(posting.key, posting.at, unbroken)
        if not unbroken:
            account.leave_all_out(self._clock())
            self._record(posting.key, account, self.outbox.post)

    def take(self, frame: Frame) -> Verdict:
        """Take a checked frame.

        Raises:
            RefusedError: see :meth:`Account.post`; also when another deployment under the same name has
                another shape, or when there are too many producers.
        """
        verdict = self._post(frame)
        entry = self.roster.get(frame.producer.key)
        assert entry is not None, "a frame that was taken has an account"
        life = entry.account.life
        if frame.epoch == life.epoch and frame.producer.key not in self._conflicts:
            self.joins.take(frame, life)
        return verdict

    def adopt(self, posting: Posting) -> None:
        """Take in what another service of the store knows of a producer."""
        now = self._clock()  # the other service's clock may be ahead
        key, entry, state = posting.key, self.roster.get(posting.key), posting.account.heard_by(now)
        merged = False
        if entry is not None:
            mine = entry.account.state()
            limits = self._settings.max_epochs, self._settings.stale_after_s
            told = state
            state = merge_accounts(mine, told, *limits)
            if state is mine:
                # The row that was told may have taken the place of one that knew more; the store finds out.
                self._record(key, entry.account, self.outbox.post_newest)
                return
            merged = state is not told
        elif self.roster.is_full:
            return
        told_at = min(posting.at, now)
        at = told_at if entry is None else max(told_at, entry.received_at)
        account = self._restored(state)
        if not self._makes_way(key, state):
            return
        if entry is not None and entry.account.totals.layout.conflict(state.totals.layout):
            self.history.forget(key)
        self._enter(key, account, at)
        known = self.history.find(key)
        newest_at = -math.inf if known is None else known.newest_at
        self.history.record(key, posting.birth, Snapshot(told_at, state.totals))
        track = self.history.track(key)
        if entry is not None and (told_at < self._round_at or now - self._round_at > _LONG_S):
            track.heard_late(now)
        elif told_at < newest_at:
            track.heard_late(newest_at)
        self._note_conflict(key, account, now)
        if merged:  # nobody takes it until a frame comes
            self._record(key, account, self.outbox.post_newest)

    def hear_placement(self, told: ToldPlacement) -> None:
        """Take in where the store says that a producer's experts are, told to this service or to another one.

        What is told of a producer that isn't here waits for it: its account may come with the next round. Of
        those that don't come it is dropped; together there are never over ``max_producers``.
        """
        if self.roster.get(told.key) is not None:
            self._take_placement(told)
            return
        _, early = self._early.get(told.key, (0.0, None))
        if early is not None and early.order > told.order:
            return
        # It may be old when it comes: of a service that was cut off from the store.
        if early is not None or self.roster.has_room_for(len(self._early)):
            self._early[told.key] = self._clock(), told

    def hear_placement_gone(self, key: Key) -> None:
        """Take in that the store no longer has where a producer's experts are.

        Another service forgot the producer. If a frame of it comes here, its placement is kept again.
        """
        self._early.pop(key, None)
        if self._keeps and self.placements.of(key) is not None:
            self._untold.add(key)

    def _take_placement(self, told: ToldPlacement) -> None:
        """Take in what is told of a producer that is here.

        A service that was cut off from the store may have put something older there in place of what is known
        here: that is kept again.
        """
        newer = self.placements.take(told)
        if newer is not None and self._keeps:
            self._told_placements[told.key] = newer.document()

    def not_kept(self, records: Iterable[Record]) -> None:
        """The store failed to keep these: it is given again what it lacks of what is here."""
        records = list(records)
        self.outbox.not_kept(records, lambda key: self.roster.get(key) is not None)
        for record in records:
            told = told_in(record.name, record.content or b"") if isinstance(record, Document) else None
            if told is not None and isinstance(record, Document) and self.placements.of(told.key) is not None:
                self._told_placements.setdefault(told.key, record)
        for item in records:
            if not isinstance(item, Posting | Forgotten):
                continue
            entry = self.roster.get(item.key)
            if entry is None:
                continue
            self._unkept.add(item.key)
            if isinstance(item, Forgotten):  # it is back: what is here must not go with what was
                self._record(item.key, entry.account, self.outbox.post)

    def take_records(self) -> list[Record]:
        """What changed for good since the last call, in order."""
        records = [*self.outbox.take(), *self._told_placements.values()]
        self._told_placements.clear()
        return records

    def say_again(self) -> None:
        """Put into the outbox what the store may lack of producers from which no frame may come any more."""
        unkept, self._unkept = self._unkept, set()
        for key in sorted(unkept):
            entry = self.roster.get(key)
            if entry is not None:
                self._record(key, entry.account, self.outbox.post_newest)
                self.history.track(key).heard_late(self._clock())

    def end_round(self) -> None:
        """All that other services have kept so far has been adopted."""
        self._round_at = self._clock() - _ON_THE_WAY_S
        oldest = self._clock() - _EARLY_S
        self._early = {key: early for key, early in self._early.items() if oldest <= early[0]}

    def state(self, key: Key) -> ProducerState:
        """A producer that is here, as of now."""
        return self.roster.state(key, self._laws.of(key))

    def mended_at(self, keys: Sequence[Key]) -> float | None:
        """When the last conflict of lives of some producers ended; None: there was none, or one goes on."""
        now, ended = self._clock(), []
        for key in keys:
            entry = self.roster.get(key)
            if entry is not None and entry.account.conflicts:
                if entry.account.conflict(now) is not None:
                    return None
                ended.append(min(entry.account.conflicts[-1][1], now))
        return max(ended, default=None)

    def remembered(
        self, key: Key, instants: Sequence[float | None], mended_at: float | None = None
    ) -> Remembered:
        """A producer's totals at rising instants, as far as memory has them; None is an open end.

        Args:
            key: the producer.
            instants: the instants.
            mended_at: a window without a begin begins with the first totals from then on.
        """
        track = self.history.track(key)
        first = track.boundary(instants[0], track.birth)
        if mended_at is not None and instants[0] is None:
            first = track.at_or_after(mended_at)
        later = [track.boundary(instant, None) for instant in instants[1:]]
        return Remembered(
            track.birth, track.complete_since, tuple(instants), (first, *later), track.told_until
        )

    def _restored(self, state: AccountState) -> Account:
        return Account.restored(state, self._settings.max_epochs, self._settings.stale_after_s)

    def _note_conflict(self, key: Key, account: Account, now: float) -> None:
        """Say in the log when lives begin to be in conflict and when that is over; join no steps of them."""
        found, before = account.conflict(now), self._conflicts.get(key)
        if found is None:
            if before is not None:
                del self._conflicts[key]
                _log.warning("the conflict of %s is over: %s goes on alone", key, named([account.life]))
        elif before is None or len(before.lives) != len(found.lives):
            self._conflicts[key] = found
            self.joins.break_off(key)
            _log.error(
                "%s; their totals are kept, and what rests on them together is not answered", found.reason
            )

    def _post(self, frame: Frame) -> Verdict:
        now, key = self._clock(), frame.producer.key
        entry = self.roster.get(key)
        limits = self._settings
        if entry is None:
            account = Account(limits.max_epochs, limits.stale_after_s, self._starts.get(key, 0))
        else:
            account = entry.account
        layout = self._layouts.of(frame.layers)
        leaving = set(self.roster.outgrown_by(key, layout))
        for other in leaving:
            silent = self.roster.get(other)
            assert silent is not None
            account.check_late(frame, now, silent.account.life, limits.expire_after_s)
        if entry is None:
            leaving.update(self.roster.to_make_room())
        generation, before, is_new = account.generation, account.totals, entry is None
        is_old = self.continuity.is_old(account, frame)
        verdict = account.post(frame, layout, now)
        if verdict is not Verdict.ACCEPTED:
            # Whether the frame that was here before could be kept isn't known here: keep it again.
            self._record(key, account, self.outbox.post)
            return verdict
        for other in sorted(leaving):
            self._forget(other)
        self._starts.pop(key, None)
        if account.generation != generation:
            self.history.forget(key)
        assert account.latest is not None
        is_newest = frame.epoch == account.latest.epoch
        if is_newest:
            told = self.placements.note(frame, now, account.life.started_at)
            if told is None and key in self._untold:
                told = self.placements.of(key)
            self._untold.discard(key)
            if told is not None and self._keeps:
                self._told_placements[key] = told.document()
        if is_newest or entry is None:
            self._enter(key, account, now)
        else:
            self.roster.enter(key, account, entry.received_at)
        self.history.set_back(key, now)
        self.history.record(key, account.started_at(frame.epoch), Snapshot(now, account.totals))
        self._note_conflict(key, account, now)
        if is_old:
            self._leave_out(key, account, None if is_new or account.generation != generation else before)
        self.continuity.heard(key)
        self._record(key, account, self.outbox.post, began_again=account.generation != generation)
        return verdict

    def _enter(self, key: Key, account: Account, at: float) -> None:
        """Note a producer's newest frame, which was accepted at ``at``."""
        self.roster.enter(key, account, at)
        entry = self.roster.get(key)
        assert entry is not None
        assert account.latest is not None
        if key in self._early:
            self._take_placement(self._early.pop(key)[1])
        self._laws.note(account.latest, entry.started_at, at)

    def _leave_out(self, key: Key, account: Account, before: Totals | None) -> None:
        """Leave out of the counters what a frame has added to ``before``, as it was counted elsewhere.

        Then the store lacks what workers know to be kept. While nothing of it is shown, the counters of the
        whole deployment begin at zero.
        """
        now = self._clock()
        if not self.continuity.holds(key[:2]):
            if before is None:
                account.leave_out(account.totals, now)
            else:  # counters that were there before go on
                account.leave_out(account.totals.minus(before), self.history.track(key).birth)
            return
        for member in self.roster.members(key[:2]):
            entry = self.roster.get(member)
            assert entry is not None
            entry.account.leave_all_out(now)
            if member != key:
                self._record(member, entry.account, self.outbox.post)

    def _makes_way(self, key: Key, told: AccountState) -> bool:
        """Forget here the producers whose shape is another than that of what a store has of one.

        False, and none is forgotten: one of them takes the place of this one. Whoever has the same accounts
        finds the same, in whatever order it hears of them. The store is not told: only whoever took the frame
        of another shape knows what it took the place of.
        """
        others = self.roster.of_another_shape(key, told.totals.layout)
        entries = [entry for other in others if (entry := self.roster.get(other)) is not None]
        silent_s = self._settings.stale_after_s
        if not all(takes_place(told.life, entry.account.life, silent_s) for entry in entries):
            return False
        for other in others:
            self._forget(other, tell=False)
        return True

    def _add_stragglers(self, key: Key, layout: Layout, more: Stragglers) -> bool:
        """Add what joined steps cost to an account; False: there is none yet."""
        entry = self.roster.get(key)
        if entry is None:
            return False
        if entry.account.add_stragglers(layout, more):
            self.history.amend(key, entry.account.totals)
            self._record(key, entry.account, self.outbox.post)
        return True

    def _record(
        self, key: Key, account: Account, post: Callable[[Posting], None], began_again: bool = False
    ) -> None:
        if self._keeps:
            track = self.history.track(key)
            post(Posting(key, track.birth, track.newest_at, account.state(), began_again))

    def _forget(self, key: Key, tell: bool = True) -> None:
        entry = self.roster.get(key)
        if entry is not None and len(self._starts) < self._settings.max_producers:
            self._starts[key] = entry.account.restarts + 1
        self.roster.remove(key)
        self.placements.forget(key)
        self._told_placements.pop(key, None)
        self._untold.discard(key)
        self.history.forget(key)
        self.joins.forget(key)
        self._laws.forget(key)
        self._conflicts.pop(key, None)
        if self._keeps and tell and entry is not None:
            account = entry.account.state()
            lives = [(epoch, _ANY_SEQ) for epoch in account.forgotten]
            lives += [(life.epoch, life.seq) for life in account.epochs]
            self.outbox.forget(Forgotten(key, tuple(lives), self._clock()))


def _history(settings: Settings, keeps: bool) -> History:
    """Memory for the past: what a store keeps is in memory for speed only."""
    if settings.history_mib is not None:
        return History(settings.history_mib << 20)
    return History(_HISTORY_BYTES, None if keeps else available_bytes() // 4)
