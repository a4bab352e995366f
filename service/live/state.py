"""The live state: accounts and history of all producers, behind one lock.

What leaves this module is immutable, so that readers compute in their own threads while frames arrive.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from moescope.capture.wire import Frame, MoeLayer, Placement
from moescope.service.counts.account import Account, Verdict
from moescope.service.counts.layers import Layout, Layouts
from moescope.service.counts.merging import merge_accounts
from moescope.service.counts.refusals import RefusedError
from moescope.service.counts.step_costs import Stragglers
from moescope.service.live.history import History, Snapshot
from moescope.service.live.outbox import Outbox
from moescope.service.live.past import Archive, Remembered, improve
from moescope.service.live.placements import DatedPlacement, Placements
from moescope.service.live.producers import Deployment, ProducerSpan, ProducerState, of_present_start
from moescope.service.live.roster import Roster
from moescope.service.live.step_joins import Joins
from moescope.service.live.step_stage import Status
from moescope.service.settings import Settings
from moescope.service.store.records import Key, Posting, Record


class LiveState:
    """Takes frames, answers what was counted since when.

    Args:
        settings: limits, and what counts as stale.
        clock: seconds of Unix time.
        archive: what was kept of the past, for windows that memory can't answer; None: memory only.
    """

    def __init__(
        self, settings: Settings, clock: Callable[[], float], archive: Archive | None = None
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._archive = archive
        self._lock = threading.Lock()
        self._roster = Roster(settings, clock)
        self._history = History(settings.history_mib * 1024 * 1024)
        self._frames: Counter[tuple[str, str]] = Counter()
        self._placements = Placements()
        self._outbox = Outbox()
        self._layouts = Layouts()
        self._joins = Joins(self._add_stragglers)

    def now(self) -> float:
        """Seconds of Unix time, by the service's clock."""
        return self._clock()

    def restore(self, postings: Iterable[Posting]) -> None:
        """Go on from what a store has kept. To be called before the first frame."""
        with self._lock:
            for posting in postings:
                account = Account.restored(posting.account, self._settings.max_epochs)
                self._roster.enter(posting.key, account, posting.at)
                self._history.record(posting.key, posting.birth, Snapshot(posting.at, account.totals))

    def adopt(self, postings: Iterable[Posting]) -> None:
        """Take in what other services of the store know; see :mod:`moescope.service.counts.merging`."""
        with self._lock:
            for posting in postings:
                key, entry = posting.key, self._roster.get(posting.key)
                state = posting.account
                if entry is not None:
                    mine = entry.account.state()
                    state = merge_accounts(mine, state, self._settings.max_epochs)
                    if state is mine:
                        continue
                elif self._roster.is_full:
                    continue
                told_at = min(posting.at, self._clock())  # the other service's clock may be ahead
                at = told_at if entry is None else max(told_at, entry.received_at)
                account = Account.restored(state, self._settings.max_epochs)
                if not self._makes_way(key, state.totals.layout, at):
                    continue
                if entry is not None and entry.account.totals.layout.conflict(state.totals.layout):
                    self._history.forget(key)
                self._roster.enter(key, account, at)
                self._history.record(key, posting.birth, Snapshot(told_at, state.totals))
                if state is not posting.account:
                    self._record(
                        key, account, self._outbox.post_newest
                    )  # nobody takes it until a frame comes

    def ingest(self, frame: Frame) -> Verdict:
        """Take a checked frame; :meth:`take_records` then has what to keep of it.

        Raises:
            RefusedError: see :meth:`Account.post`; also when another deployment under the same name has
                another shape, or when there are too many producers.
        """
        with self._lock:
            verdict = self._post(frame)
            self._joins.take(frame)
            self._frames[verdict.value, ""] += 1
            return verdict

    def take_records(self) -> list[Record]:
        """What changed for good since the last call, in order."""
        with self._lock:
            return self._outbox.take()

    def not_kept(self, records: Iterable[Record]) -> None:
        """What :meth:`take_records` gave could not be kept: say again what no later posting says."""
        with self._lock:
            self._outbox.not_kept(records, lambda key: self._roster.get(key) is not None)

    def count_refused(self, reason: str) -> None:
        """Count a frame, or a body that should have been one, which was refused."""
        with self._lock:
            self._frames["refused", reason] += 1

    def frames(self) -> Mapping[tuple[str, str], int]:
        """How many frames came, by (result, reason)."""
        with self._lock:
            return dict(self._frames)

    def history_size(self) -> tuple[int, int]:
        """Snapshots remembered, and their bytes."""
        with self._lock:
            return len(self._history), self._history.nbytes

    def deployments(self) -> list[Deployment]:
        """All (server, model), sorted."""
        with self._lock:
            return self._roster.deployments()

    def live_deployments(self) -> list[Deployment]:
        """All (server, model) with a producer that has not expired, sorted."""
        return sorted({item.latest.producer.key[:2] for item in self.producers() if not item.expired})

    def placements(self, deployment: Deployment) -> list[tuple[tuple[MoeLayer, ...], Placement]]:
        """The layers of each producer of a deployment and where their experts last were, parallel.

        Producers of a former start are left out: versions begin at 0 again with each start.
        """
        with self._lock:
            states = [self._roster.state(key) for key in self._roster.members(deployment)]
            keys = [state.latest.producer.key for state in of_present_start(states)]
            return self._placements.newest(keys)

    def placement_history(self, deployment: Deployment) -> list[DatedPlacement]:
        """Where a deployment's experts have been, by pipeline stage and time."""
        with self._lock:
            return self._placements.history(*deployment)

    def rearrangements(self, deployment: Deployment) -> int:
        """How often a deployment's experts were rearranged, as far as this service saw it."""
        with self._lock:
            return self._placements.rearrangements(*deployment)

    def joins(self, deployment: Deployment) -> dict[int, Status]:
        """How the joins of a deployment's steps go, by pipeline stage."""
        with self._lock:
            return self._joins.status(*deployment)

    def producers(self) -> list[ProducerState]:
        """All producers, sorted by key."""
        with self._lock:
            return [self._roster.state(key) for key in self._roster.members()]

    def spans(self, deployment: Deployment, start: float | None, end: float | None) -> list[ProducerSpan]:
        """What each producer of a deployment counted; None: ``start`` is its birth, ``end`` is now."""
        [spans] = self.series(deployment, (start, end))
        return spans

    def series(self, deployment: Deployment, instants: Sequence[float | None]) -> list[list[ProducerSpan]]:
        """What each producer of a deployment counted between neighbours of B rising instants: B - 1 lists.

        Raises:
            StoreError: the archive can't be read.
        """
        result: list[list[ProducerSpan]] = [[] for _ in instants[1:]]
        for producer, memory in self.boundaries(deployment, instants):
            for interval, span in zip(result, memory.spans(), strict=True):
                interval.append(ProducerSpan(producer, span))
        return result

    def boundaries(
        self, deployment: Deployment, instants: Sequence[float | None]
    ) -> list[tuple[ProducerState, Remembered]]:
        """Each producer of a deployment with its totals at B rising instants.

        Reads the archive where memory is too short, in the caller's thread and without holding up frames.

        Raises:
            StoreError: the archive can't be read.
        """
        with self._lock:
            found = [
                (self._roster.state(key), self._remembered(key, instants))
                for key in self._roster.members(deployment)
            ]
        if self._archive is None:
            return found
        archive = self._archive
        return [(item, improve(archive, item.latest.producer.key, memory)) for item, memory in found]

    def _remembered(self, key: Key, instants: Sequence[float | None]) -> Remembered:
        track = self._history.track(key)
        first = track.boundary(instants[0], track.birth)
        later = [track.boundary(instant, None) for instant in instants[1:]]
        return Remembered(track.birth, track.complete_since, tuple(instants), (first, *later))

    def _post(self, frame: Frame) -> Verdict:
        now, key = self._clock(), frame.producer.key
        entry = self._roster.get(key)
        account = Account(self._settings.max_epochs) if entry is None else entry.account
        layout = self._layouts.of(frame.layers)
        leaving = set(self._roster.outgrown_by(key, layout))
        if entry is None:
            leaving.update(self._roster.to_make_room())
        generation = account.generation
        verdict = account.post(frame, layout)
        if verdict is not Verdict.ACCEPTED:
            # Whether the frame that was here before could be kept isn't known here: keep it again.
            self._record(key, account, self._outbox.post)
            return verdict
        for other in sorted(leaving):
            self._forget(other)
        if account.generation != generation:
            self._history.forget(key)
        assert account.latest is not None
        is_newest = frame.epoch == account.latest.epoch
        if is_newest:
            self._placements.note(frame, now)
        self._roster.enter(key, account, now if is_newest or entry is None else entry.received_at)
        self._history.set_back(key, now)
        birth = now - max(0.0, (frame.captured_at_ns - frame.epoch) / 1e9)
        self._history.record(key, birth, Snapshot(now, account.totals))
        self._record(key, account, self._outbox.post, began_again=account.generation != generation)
        return verdict

    def _makes_way(self, key: Key, layout: Layout, at: float) -> bool:
        """Forget producers whose shape is not that of another service's newer frame, as seen at ``at``.

        False, and none is forgotten: one of them still reports, or reported later.
        """
        try:
            leaving = self._roster.outgrown_by(key, layout)
        except RefusedError:
            return False
        entries = [entry for other in leaving if (entry := self._roster.get(other)) is not None]
        if any(entry.received_at > at for entry in entries):
            return False
        for other in leaving:
            self._forget(other)
        return True

    def _add_stragglers(self, key: Key, layout: Layout, more: Stragglers) -> bool:
        """Add what joined steps cost to an account; False: there is none yet."""
        entry = self._roster.get(key)
        if entry is None:
            return False
        if entry.account.add_stragglers(layout, more):
            self._history.amend(key, entry.account.totals)
            self._record(key, entry.account, self._outbox.post)
        return True

    def _record(
        self, key: Key, account: Account, post: Callable[[Posting], None], began_again: bool = False
    ) -> None:
        if self._archive is not None:
            track = self._history.track(key)
            post(Posting(key, track.birth, track.newest_at, account.state(), began_again))

    def _forget(self, key: Key) -> None:
        self._roster.remove(key)
        self._placements.forget(key)
        self._history.forget(key)
        self._joins.forget(key)
        if self._archive is not None:
            self._outbox.forget(key)
