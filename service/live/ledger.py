"""The accounts of all producers, and with them their history, their placements and the joins of their steps.

Here everything changes together. Nothing here is safe for several threads: the live state has the lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from moescope.capture.wire import Frame
from moescope.service.counts.account import Account, Verdict
from moescope.service.counts.account_state import AccountState
from moescope.service.counts.choosing import takes_place
from moescope.service.counts.layers import Layout, Layouts
from moescope.service.counts.merging import merge_accounts
from moescope.service.counts.step_costs import Stragglers
from moescope.service.counts.totals import Totals
from moescope.service.live.conflict_log import Conflicts
from moescope.service.live.continuity import Continuity
from moescope.service.live.memory import history_of
from moescope.service.live.past import Remembered
from moescope.service.live.placement_news import PlacementNews
from moescope.service.live.placements import Placements
from moescope.service.live.posting import Poster
from moescope.service.live.producers import ProducerState
from moescope.service.live.roster import Roster
from moescope.service.live.row_laws import RowLaws
from moescope.service.live.spans import Snapshot
from moescope.service.live.step_joins import Joins
from moescope.service.settings import ClickHouseUrl, Settings
from moescope.service.store.records import Key, Posting, Record

_ON_THE_WAY_S: Final = 2.0
"""How long ago another service may have taken a frame that the store does not show yet."""
_LONG_S: Final = 7.0
"""After so long without a round several frames of a producer may come as one."""


class Ledger:
    """Takes frames, and what a store kept of them.

    Args:
        settings: limits, and what counts as stale.
        clock: seconds of Unix time.
        keeps: there is a store, so that what changes is posted to it.

    Attributes:
        roster, history, placements, joins: to read from.
        placement_news, poster: what is on its way from the store, and to it.
        continuity: says which deployments' counters may be shown.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float], keeps: bool) -> None:
        self._settings = settings
        self._clock = clock
        self._layouts = Layouts()
        self.roster = Roster(settings, clock)
        self.history = history_of(settings, keeps)
        self.placements = Placements()
        self.joins = Joins(self._add_stragglers)
        self._laws = RowLaws()
        self._conflicts = Conflicts()
        self.placement_news = PlacementNews(self.placements, self.roster, clock, keeps)
        self.poster = Poster(self.roster, self.history, clock, keeps)
        alone = not isinstance(settings.store, ClickHouseUrl)
        self.continuity = Continuity(clock, settings.stale_after_s, alone)
        self._shown_at = -math.inf  # what the clock showed last, or what is known of services that go by it
        self._round_at = clock()  # when what other services had kept by then was heard
        self._starts: dict[Key, int] = {}  # of the producers that another shape of their model has pushed out

    def restore(self, posting: Posting, unbroken: bool = True) -> None:
        """Go on from what a store has kept of a producer. To be called before its first frame.

        Unless the store is ``unbroken``, counters begin at zero.
        """
        if not self._makes_way(posting.key, posting.account):
            return
        account = self._restored(posting.account)
        self._shown_at = max(self._shown_at, *(life.heard_at for life in posting.account.epochs))
        self._enter(posting.key, account, account.life.heard_at)
        self.history.record(posting.key, posting.birth, Snapshot(posting.at, posting.account.totals))
        self.continuity.restored(posting.key, posting.at, unbroken)
        if not unbroken:
            account.leave_all_out(self._clock())
            self.poster.post(posting.key, account)

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
        now = self._time()  # the other service's clock may be ahead
        key, entry = posting.key, self.roster.get(posting.key)
        mine = None if entry is None else entry.account.state()
        told = state = posting.account.heard_by(now, () if mine is None else mine.epochs)
        merged = False
        if entry is not None and mine is not None:
            limits = self._settings.max_epochs, self._settings.stale_after_s
            state = merge_accounts(mine, told, *limits)
            if state is mine:
                # The row that was told may have taken the place of one that knew more; the store finds out.
                self.poster.post_newest(key, entry.account)
                return
            merged = state is not told
        elif self.roster.is_full:
            return
        told_at = min(posting.at, now)
        account = self._restored(state)
        if not self._makes_way(key, state):
            return
        if entry is not None and entry.account.totals.layout.conflict(state.totals.layout):
            self.history.forget(key)
        # Not the row's time: that may be when a former start's late frame came.
        self._enter(key, account, min(account.life.heard_at, now))
        known = self.history.find(key)
        newest_at = -math.inf if known is None else known.newest_at
        self.history.record(key, min(posting.birth, told_at), Snapshot(told_at, state.totals))
        track = self.history.track(key)
        if entry is not None and (told_at < self._round_at or now - self._round_at > _LONG_S):
            track.heard_late(now)
        elif told_at < newest_at:
            track.heard_late(newest_at)
        if self._conflicts.note(key, account, now):
            self.joins.break_off(key)
        if merged:  # nobody takes it until a frame comes
            self.poster.post_newest(key, account)

    def not_kept(self, records: Iterable[Record]) -> None:
        """The store failed to keep these: it is given again what it lacks of what is here."""
        records = list(records)
        self.poster.not_kept(records)
        self.placement_news.not_kept(records)

    def take_records(self) -> list[Record]:
        """What changed for good since the last call, in order."""
        return [*self.poster.take(), *self.placement_news.take_documents()]

    def end_round(self) -> None:
        """All that other services have kept so far has been adopted."""
        self._round_at = self._clock() - _ON_THE_WAY_S
        self.placement_news.end_round()

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

    def _time(self) -> float:
        """Now. If the clock was set back meanwhile, what was noted by it is not after that."""
        now = self._clock()
        if now < self._shown_at:
            self.roster.set_back(now)
            self.placements.set_back(now)
        self._shown_at = now
        return now

    def _restored(self, state: AccountState) -> Account:
        return Account.restored(state, self._settings.max_epochs, self._settings.stale_after_s)

    def _post(self, frame: Frame) -> Verdict:
        now, key = self._time(), frame.producer.key
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
            self.poster.post(key, account)
            return verdict
        for other in sorted(leaving):
            self._forget(other)
        self._starts.pop(key, None)
        if account.generation != generation:
            self.history.forget(key)
        assert account.latest is not None
        is_newest = frame.epoch == account.latest.epoch
        if is_newest:
            self.placement_news.note(frame, now, account.life.started_at)
        if is_newest or entry is None:
            self._enter(key, account, now)
        elif account.life.epoch == entry.told_epoch:
            self.roster.enter(key, account, entry.received_at)
        else:  # the frame told that another start is newer than the one that counted
            self._enter(key, account, account.life.heard_at)
        self.history.set_back(key, now)
        self.history.record(key, account.started_at(frame.epoch), Snapshot(now, account.totals))
        if self._conflicts.note(key, account, now):
            self.joins.break_off(key)
        if is_old:
            self._leave_out(key, account, None if is_new or account.generation != generation else before)
        self.continuity.heard(key)
        self.poster.post(key, account, began_again=account.generation != generation)
        return verdict

    def _enter(self, key: Key, account: Account, at: float) -> None:
        """Note a producer's newest frame, which was accepted at ``at``."""
        self.roster.enter(key, account, at)
        entry = self.roster.get(key)
        assert entry is not None
        assert account.latest is not None
        self.placement_news.entered(key)
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
                self.poster.post(member, entry.account)

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
            self.poster.post(key, entry.account)
        return True

    def _forget(self, key: Key, tell: bool = True) -> None:
        entry = self.roster.get(key)
        if entry is not None and len(self._starts) < self._settings.max_producers:
            self._starts[key] = entry.account.restarts + 1
        self.roster.remove(key)
        self.placement_news.forget(key)
        self.history.forget(key)
        self.joins.forget(key)
        self._laws.forget(key)
        self._conflicts.forget(key)
        if tell and entry is not None:
            self.poster.forget(key, entry.account)
