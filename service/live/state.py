"""The live state: accounts and history of all producers, behind one lock.

What leaves this module is immutable, so that readers compute in their own threads while frames arrive.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from moescope.capture.wire import Frame, MoeLayer, Placement
from moescope.service.counts.account import Verdict
from moescope.service.live.large import LargeQuestions
from moescope.service.live.ledger import Ledger
from moescope.service.live.past import Archive, Remembered
from moescope.service.live.placements import DatedPlacement, ToldPlacement, told_in
from moescope.service.live.producers import (
    Deployment,
    ProducerSpan,
    ProducerState,
    of_present_start,
    with_gone,
)
from moescope.service.live.step_stage import Status
from moescope.service.live.walk import OneByOne, all_of, ends_of, walk
from moescope.service.settings import Settings
from moescope.service.store.records import Key, Posting, Record, key_in


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
        self._clock = clock
        self.begun = clock()
        """When this state began to be, seconds of Unix time."""
        self._archive = archive
        self.large = LargeQuestions(settings.max_question_mib << 20)
        """What questions of these windows may hold of the archive."""
        self._lock = threading.Lock()
        self._ledger = Ledger(settings, clock, keeps=archive is not None)
        # Apart, since the event loop counts too, and must not wait while a frame is taken.
        self._counting = threading.Lock()
        self._frames: Counter[tuple[str, str]] = Counter()

    def now(self) -> float:
        """Seconds of Unix time, by the service's clock."""
        return self._clock()

    def restore(self, postings: Iterable[Posting], unbroken: bool = True) -> None:
        """Go on from what a store has kept. To be called before the first frame.

        Args:
            postings: all accounts of the store.
            unbroken: the store had everything that it was ever given; else counters begin at zero, and
                :meth:`take_records` has what to keep of that.
        """
        with self._lock:
            for posting in sorted(postings, key=lambda item: item.account.order):
                self._ledger.restore(posting, unbroken)

    def shows_counters(self, deployment: Deployment) -> bool:
        """Whether the counters of a deployment may be shown; see :mod:`moescope.service.live.continuity`."""
        with self._lock:
            return self._ledger.continuity.show(deployment)

    def adopt(self, postings: Iterable[Posting]) -> None:
        """Take in what other services of the store know; see :mod:`moescope.service.counts.merging`."""
        with self._lock:
            for posting in postings:
                self._ledger.adopt(posting)
            self._ledger.end_round()

    def hear_placements(self, kept: Iterable[tuple[str, bytes | None]]) -> None:
        """Take in where workers said that their experts are: names and contents of documents of a store.

        No content: the store no longer has it.
        """
        told: list[ToldPlacement | Key | None] = [
            key_in(name) if content is None else told_in(name, content) for name, content in kept
        ]
        with self._lock:
            for item in told:
                if isinstance(item, ToldPlacement):
                    self._ledger.placement_news.hear(item)
                elif item is not None:
                    self._ledger.placement_news.hear_gone(item)

    def ingest(self, frame: Frame) -> Verdict:
        """Take a checked frame; :meth:`take_records` then has what to keep of it.

        Raises:
            RefusedError: see :meth:`Ledger.take`.
        """
        with self._lock:
            verdict = self._ledger.take(frame)
        self._count(verdict)
        return verdict

    def take(self, frame: Frame) -> tuple[Verdict, list[Record]]:
        """:meth:`ingest` and :meth:`take_records` at once.

        So nobody else takes what is to be kept of the frame before whoever tells its worker that it is.
        """
        with self._lock:
            verdict = self._ledger.take(frame)
            records = self._ledger.take_records()
        self._count(verdict)
        return verdict, records

    def take_records(self) -> list[Record]:
        """What changed for good since the last call, in order."""
        with self._lock:
            return self._ledger.take_records()

    def not_kept(self, records: Iterable[Record]) -> None:
        """What :meth:`take_records` gave could not be kept: say again what no later posting says."""
        with self._lock:
            self._ledger.not_kept(records)

    def take_unkept(self) -> list[Record]:
        """What is here and may not be with the store, whether or not a frame comes; see :meth:`not_kept`."""
        with self._lock:
            self._ledger.poster.say_again()
            return self._ledger.take_records()

    def _count(self, verdict: Verdict) -> None:
        with self._counting:
            self._frames[verdict.value, ""] += 1

    def count_refused(self, reason: str) -> None:
        """Count a frame, or a body that should have been one, which was refused."""
        with self._counting:
            self._frames["refused", reason] += 1

    def frames(self) -> Mapping[tuple[str, str], int]:
        """How many frames came, by (result, reason)."""
        with self._counting:
            return dict(self._frames)

    def history_size(self) -> tuple[int, int]:
        """Snapshots remembered, and their bytes."""
        with self._lock:
            return len(self._ledger.history), self._ledger.history.nbytes

    def reaches(self) -> dict[Deployment, float]:
        """The instant back to which the windows of each deployment can begin, seconds of Unix time.

        It is the begin of counting where nothing has been forgotten. Expired producers don't matter.

        Raises:
            StoreError: the archive can't be read.
        """
        kept = {} if self._archive is None else self._archive.begins()
        with self._lock:
            roster = self._ledger.roster
            keys = [key for key in roster.members() if not roster.is_expired(key)]
            tracks = [(key, self._ledger.history.track(key)) for key in keys]
            births = {key: track.birth for key, track in tracks}
            cut = {key: track.reaches for key, track in tracks if track.reaches is not None}
        found: dict[Deployment, float] = {}
        for key in keys:
            found[key[:2]] = min(found.get(key[:2], math.inf), births[key])
        for key, memory in cut.items():
            found[key[:2]] = max(found[key[:2]], min(memory, kept.get(key, memory)))
        return found

    def history_wanted(self) -> int:
        """Bytes of history with which windows reach back far without a store."""
        with self._lock:
            return self._ledger.history.enough_bytes

    def deployments(self) -> list[Deployment]:
        """All (server, model), sorted."""
        with self._lock:
            return self._ledger.roster.deployments()

    def live_deployments(self) -> list[Deployment]:
        """All (server, model) with a producer that has neither expired nor gone, sorted."""
        alive = (item for item in self.producers() if not item.expired and item.gone is None)
        return sorted({item.latest.producer.key[:2] for item in alive})

    def placements(self, deployment: Deployment) -> list[tuple[tuple[MoeLayer, ...], Placement]]:
        """The layers of each producer of a deployment and where their experts last were, parallel.

        Producers of a former start are left out: versions begin at 0 again with each start.
        """
        with self._lock:
            states = [self._ledger.state(key) for key in self._ledger.roster.members(deployment)]
            keys = [state.latest.producer.key for state in of_present_start(states)]
            return self._ledger.placements.newest(keys)

    def placement_history(self, deployment: Deployment) -> list[DatedPlacement]:
        """Where a deployment's experts have been, by pipeline stage and time."""
        with self._lock:
            return self._ledger.placements.history(*deployment)

    def rearrangements(self, deployment: Deployment) -> int:
        """How often a deployment's experts were rearranged, as far as this service saw it."""
        with self._lock:
            return self._ledger.placements.rearrangements(*deployment)

    def joins(self, deployment: Deployment) -> dict[int, Status]:
        """How the joins of a deployment's steps go, by pipeline stage."""
        with self._lock:
            found = self._ledger.joins.status(*deployment)
            if not found:
                return {}
            conflicts = map(self._ledger.roster.conflict, self._ledger.roster.members(deployment))
            conflict = next((item for item in conflicts if item is not None), None)
        if conflict is None:
            return found
        return {rank: Status(pending=item.pending, reason=conflict.reason) for rank, item in found.items()}

    def producers(self, deployment: Deployment | None = None) -> list[ProducerState]:
        """All producers, or those of one deployment, sorted by key."""
        with self._lock:
            states = [self._ledger.state(key) for key in self._ledger.roster.members(deployment)]
        groups = groupby(states, key=lambda item: item.latest.producer.key[:2])
        return [item for _, group in groups for item in with_gone(list(group))]

    def spans(self, deployment: Deployment, start: float | None, end: float | None) -> list[ProducerSpan]:
        """What each producer of a deployment counted from ``start`` to ``end``; see :meth:`series`."""
        [spans] = self.series(deployment, (start, end))
        return spans

    def totals(self, deployment: Deployment) -> list[ProducerSpan]:
        """What each producer of a deployment has counted since its birth, whatever has been in between."""
        with self._lock:
            members = self._ledger.roster.members(deployment)
            states = [self._ledger.state(key) for key in members]
            found = [self._ledger.remembered(key, (None, None)) for key in members]
        pairs = zip(with_gone(states), found, strict=True)
        return [ProducerSpan(item, memory.whole()) for item, memory in pairs]

    def series(self, deployment: Deployment, instants: Sequence[float | None]) -> list[list[ProducerSpan]]:
        """What each producer of a deployment counted between neighbours of B rising instants: B - 1 lists.

        None as the last one is now. A window without a begin (None) begins with each producer's birth. If
        lives were in conflict since, it begins after that: what was counted before can't be told apart.

        Reads the archive where memory is too short, in the caller's thread and without holding up frames.

        Raises:
            StoreError: the archive can't be read.
        """
        return list(self.walk(deployment, instants))

    def walk(self, deployment: Deployment, instants: Sequence[float | None]) -> Iterator[list[ProducerSpan]]:
        """As :meth:`series`, one interval after the other, of which few are in memory; see :func:`walk`.

        Raises:
            StoreError: the archive can't be read.
        """
        found = self._look(deployment, instants)
        return walk(self._archive, found) if found else iter([[] for _ in instants[1:]])

    def whole_and_parts(
        self, deployment: Deployment, instants: Sequence[float | None]
    ) -> tuple[list[ProducerSpan], Iterator[list[ProducerSpan]]]:
        """What was counted from the first to the last of the instants, and :meth:`walk` between them.

        Both are of one look, so the parts add up to the whole.

        Raises:
            StoreError: the archive can't be read.
        """
        found = self._look(deployment, instants)
        ends = ends_of(self._archive, found)
        whole = [ProducerSpan(item, memory.whole()) for item, memory in ends]
        return whole, walk(self._archive, found, ends)

    def one_by_one(
        self, deployment: Deployment, instants: Sequence[float | None]
    ) -> tuple[list[tuple[ProducerState, Remembered]], OneByOne]:
        """Each producer with its totals at the first and the last instant, and at all of them; of one look.

        Raises:
            StoreError: the archive can't be read.
        """
        found, archive = self._look(deployment, instants), self._archive
        return ends_of(archive, found), lambda: all_of(archive, found)

    def _look(
        self, deployment: Deployment, instants: Sequence[float | None]
    ) -> list[tuple[ProducerState, Remembered]]:
        """What memory has of each producer of a deployment at B rising instants; see :meth:`series`."""
        with self._lock:
            keys = self._ledger.roster.members(deployment)
            states = with_gone([self._ledger.state(key) for key in keys])
            mended_at = self._ledger.mended_at(keys) if instants[0] is None else None
            if mended_at is not None and any(at is not None and at < mended_at for at in instants[1:]):
                mended_at = None
            return [
                (state, self._ledger.remembered(key, instants, mended_at))
                for key, state in zip(keys, states, strict=True)
            ]
