"""The lives of one producer: which of them counts at present, and whether several do at once.

A life is one start of one worker. Ordinarily they follow each other: a worker starts again, and what its
former life had still in flight comes late. Two live processes that claim one rank are something else: their
totals are of different requests, and nobody can tell what belongs together.

The rules, all by the service's clock, because the clocks of hosts differ:

- Lives are ordered by when they began: when the first frame came, less the time that the worker had been up
  if it tells that. Epochs, which are of the workers' clocks, decide only between lives that began at once.
- The newest life counts at present. Once it has been silent for ``stale_after`` seconds, an older one that
  goes on takes its place: it was in conflict with it, or was heard after that. What a life says as it shuts
  down is no going on.
- A life overlaps a newer one each time that it sends newly counted totals which it captured after the newer
  one's first frame had come, if the newer one has spoken since the time before. What was captured earlier
  and comes late is no overlap, nor is a frame that repeats what is known.
- A life that overlapped newer ones :data:`OVERLAPS` times is in conflict with them, for as long as both are
  heard. So a former process that sends its last frame after the new one has begun is none.

When a life captured something is known from how long it had been up. If it doesn't tell, it is known from its
own clock: the least delay of its frames so far is taken for the difference between the clocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from moescope.capture.wire import Frame, Producer
from moescope.service.counts.account_state import EpochState
from moescope.service.counts.conflict import REMEDY, Conflict, joined, name_of, named, rank_of
from moescope.service.counts.layers import Layout
from moescope.service.counts.refusals import RefusedError
from moescope.service.counts.step_costs import Stragglers
from moescope.service.counts.totals import Totals

OVERLAPS: Final = 2
"""So many overlaps are a conflict."""
MAX_LIVES: Final = 64
"""Lives of one producer that are heard at once, at most: an array of all its counts each."""
STALE_AFTER_S: Final = 15.0
"""Seconds without a frame after which a life is silent, as the service's setting is by default."""


class Lives:
    """The lives that are remembered of one producer. Not safe for several threads.

    Args:
        max_epochs: how many are remembered; lives that are still heard are beyond that.
        stale_after: seconds without a frame after which a life is silent.
    """

    def __init__(self, max_epochs: int, stale_after: float) -> None:
        self._max_epochs = max_epochs
        self._stale_after = stale_after
        self._known: dict[int, EpochState] = {}
        self._heard_at = -math.inf
        self.current: EpochState | None = None
        self.conflicts: tuple[tuple[float, float], ...] = ()
        """When several lives counted at once: (since, until), oldest first."""

    def __iter__(self) -> Iterator[EpochState]:
        return iter(self._known.values())

    def get(self, epoch: int) -> EpochState | None:
        """A life by its epoch, if it is remembered."""
        return self._known.get(epoch)

    def restore(
        self, lives: Iterable[EpochState], current: int, conflicts: tuple[tuple[float, float], ...]
    ) -> None:
        """Go on from what was kept; ``current`` is one of the lives."""
        self._known = {item.epoch: item for item in lives}
        self._heard_at = max(item.heard_at for item in self)
        self.current = self._known[current]
        self.conflicts = conflicts

    def clear(self) -> list[int]:
        """Begin anew without any life; the epochs of those that there were."""
        gone = list(self._known)
        self._known.clear()
        self.current = None
        self.conflicts = ()
        return gone

    def is_heard(self, life: EpochState, now: float) -> bool:
        """Whether a life was heard lately."""
        return abs(now - life.heard_at) <= self._stale_after  # the service's clock may have been set back

    def check(self, frame: Frame, at: float) -> None:
        """A frame can be taken.

        Raises:
            RefusedError: there are too many lives, or another process has this epoch.
        """
        known, who = self._known.get(frame.epoch), frame.producer
        if known is None:
            if len(self._known) >= MAX_LIVES and sum(self.is_heard(item, at) for item in self) >= MAX_LIVES:
                raise RefusedError(
                    "too_many_lives",
                    f"producer: {MAX_LIVES} live processes claim {rank_of(who)} already, among them "
                    f"{named(self)}; {REMEDY}",
                )
        elif known.producer is not None and _is_other(known.producer, who):
            raise RefusedError(
                "epoch_claimed",
                f"epoch: {frame.epoch} is that of {name_of(known.producer)}, this is {name_of(who)}; "
                f"{REMEDY}",
            )

    def stands(self, frame: Frame, at: float) -> tuple[tuple[float, int], float]:
        """What a frame's life is ordered by, and when its totals were true, if it comes at ``at``."""
        known = self._known.get(frame.epoch)
        order = (_began(frame, at), frame.epoch) if known is None else known.order
        return order, _made_at(frame, known, at)

    def is_older(self, frame: Frame, at: float) -> bool:
        """Whether a frame is of an older life than the one that counts at present."""
        if self.current is None or frame.epoch == self.current.epoch:
            return False
        return self.stands(frame, at)[0] < self.current.order

    def hear(self, frame: Frame, counted: Totals, at: float, added: Totals | None = None) -> bool:
        """Take a frame that tells something new; whether its life is the one that counts at present.

        Args:
            frame: the frame.
            counted: its totals.
            at: when it came.
            added: see :class:`EpochState`.
        """
        if at < self._heard_at:
            self._set_back(at)
        self._heard_at = at
        known = self._known.get(frame.epoch)
        made_at = _made_at(frame, known, at)
        life = replace(_heard(frame, counted, known, at, made_at), added=added)
        if known is not None and len(self._known) > 1 and _is_news(counted, known.counted):
            life = self._overlapping(life)
        self._known[frame.epoch] = life
        if self._takes_place(life, at):
            life = self._known[frame.epoch] = replace(life, overlaps=0) if life.overlaps else life
            self.current = life
        elif self.current is not None and life.epoch == self.current.epoch:
            self.current = life
        if len(self._known) > 1:
            self._note_conflict(at)
        return self.current is life

    def add_stragglers(self, layout: Layout, more: Stragglers) -> None:
        """Add what joined steps cost to the present life, if it has all layers of ``layout``."""
        life = self.current
        if life is None or any(layer.layer not in life.counted.layout.index for layer in layout.layers):
            return
        wide = more.widened(layout, life.counted.layout)
        total = wide if life.stragglers is None else life.stragglers.plus(wide)
        self.current = self._known[life.epoch] = replace(life, stragglers=total)

    def settle(self, now: float) -> bool:
        """Let a life that is heard take the place of one that fell silent; whether one did."""
        current = self.current
        if len(self._known) < 2 or current is None or self.is_heard(current, now):
            return False
        going_on = [item for item in self if self.is_heard(item, now) and self._outlives(item, current)]
        if not going_on:
            return False
        newest = replace(max(going_on, key=lambda item: item.order), overlaps=0)
        self.current = self._known[newest.epoch] = newest
        return True

    def conflict(self, now: float) -> Conflict | None:
        """The conflict of lives at present, or None."""
        if len(self._known) < 2:
            return None
        heard = sorted((item for item in self if self.is_heard(item, now)), key=lambda item: item.order)
        if len(heard) < 2 or all(item.overlaps < OVERLAPS for item in heard[:-1]):
            return None
        return Conflict(tuple(heard), heard[1].came_at)

    def forget_old(self, at: float) -> list[int]:
        """Forget lives that are too many, those first that were not heard for longest; their epochs."""
        if len(self._known) <= self._max_epochs or self.current is None:
            return []
        gone = surplus(self, self.current.epoch, at, self._max_epochs, self._stale_after)
        for epoch in gone:
            del self._known[epoch]
        return gone

    def _takes_place(self, life: EpochState, at: float) -> bool:
        current = self.current
        if current is None or life.order > current.order:
            return True
        return (
            life.epoch != current.epoch and not self.is_heard(current, at) and self._outlives(life, current)
        )

    def _outlives(self, life: EpochState, current: EpochState) -> bool:
        """Whether a life goes on though the one that counts at present fell silent."""
        if life.producer is None or life.ended or life.made_at < current.came_at:
            return False
        return life.overlaps >= OVERLAPS or life.heard_at - current.heard_at > self._stale_after

    def _overlapping(self, life: EpochState) -> EpochState:
        """A life that has just told something new, with one more overlap of newer ones if that is one."""
        others = (item for item in self if item.epoch != life.epoch and self.is_heard(item, life.heard_at))
        newer = [item for item in others if item.order > life.order]
        if not newer or life.made_at < min(item.came_at for item in newer):
            return life
        spoken_at = max(item.heard_at for item in newer)
        if spoken_at <= life.spoken_at:
            return life
        return replace(life, overlaps=min(life.overlaps + 1, OVERLAPS), spoken_at=spoken_at)

    def _note_conflict(self, at: float) -> None:
        found = self.conflict(at)
        if found is not None:
            self.conflicts = joined([*self.conflicts, (found.since, at)])

    def _set_back(self, at: float) -> None:
        """The service's clock was set back: all lives are on that clock, and so are their conflicts."""
        by = at - self._heard_at
        self._known = {item.epoch: item.shifted(by) for item in self}
        self.conflicts = tuple((since + by, until + by) for since, until in self.conflicts)
        if self.current is not None:
            self.current = self._known[self.current.epoch]


def takes_place(life: EpochState, other: EpochState, stale_after: float) -> bool:
    """Whether of two lives whose models have different shapes the first one counts.

    It is the one that began later, unless the other still counted when that one had been silent for long.
    """
    older, newer = sorted((life, other), key=lambda item: item.order)
    goes_on = older.made_at - newer.heard_at > stale_after
    return life is (older if goes_on else newer)


def surplus(
    lives: Iterable[EpochState], current: int, at: float, max_epochs: int, stale_after: float
) -> list[int]:
    """The epochs of lives that are too many, those first that were not heard for longest.

    Args:
        lives: all that there are.
        current: the epoch of the one that counts at present, which stays.
        at: when that is, seconds of Unix time on the service's clock.
        max_epochs: how many may stay. Those that were heard in the last ``stale_after`` seconds stay too.
    """
    known = sorted(lives, key=lambda item: (item.heard_at, item.order))
    silent = [item.epoch for item in known if item.epoch != current and at - item.heard_at > stale_after]
    return silent[: max(0, len(known) - max_epochs)]


def _heard(frame: Frame, counted: Totals, known: EpochState | None, at: float, made_at: float) -> EpochState:
    """A life once one more of its frames was accepted."""
    began, started = _began(frame, at), _started(frame, at)
    lag = at - frame.captured_at_ns / 1e9
    came = at
    if known is not None:
        came, started, lag = known.came_at, min(started, known.started_at), min(lag, known.lag)
        began = min(began, known.began_at)
    return EpochState(
        epoch=frame.epoch,
        seq=frame.seq,
        counted=counted,
        producer=frame.producer,
        began_at=began,
        started_at=started,
        came_at=came,
        heard_at=at,
        made_at=made_at,
        captured_at_ns=frame.captured_at_ns,
        lag=lag,
        overlaps=0 if known is None else known.overlaps,
        spoken_at=0.0 if known is None else known.spoken_at,
        ended=frame.ended,
        stragglers=_carried(known, counted.layout),
    )


def _carried(known: EpochState | None, layout: Layout) -> Stragglers | None:
    """The stragglers of a life in arrays of its newest layout, which has all layers of those before."""
    if known is None or known.stragglers is None:
        return None
    return known.stragglers.widened(known.counted.layout, layout)


def _began(frame: Frame, at: float) -> float:
    return at - frame.uptime_ns / 1e9


def _started(frame: Frame, at: float) -> float:
    return at - (frame.uptime_ns or max(0, frame.captured_at_ns - frame.epoch)) / 1e9


def _made_at(frame: Frame, known: EpochState | None, at: float) -> float:
    """When the totals of a frame were true, by the service's clock; ``at`` where the frame doesn't say."""
    if known is not None and frame.uptime_ns:  # nobody sets this clock
        return min(at, known.began_at + frame.uptime_ns / 1e9)
    if known is None or frame.captured_at_ns <= known.captured_at_ns:
        return at
    captured = frame.captured_at_ns / 1e9
    return captured + min(known.lag, at - captured)


def _is_news(counted: Totals, before: Totals) -> bool:
    return (counted.tokens, counted.steps, counted.idle_steps) != (
        before.tokens,
        before.steps,
        before.idle_steps,
    )


def _is_other(one: Producer, other: Producer) -> bool:
    return (one.host, one.pid) != (other.host, other.pid)
