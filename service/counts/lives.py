"""The lives of one producer: which of them counts at present, and whether several do at once.

A life is one start of one worker. Ordinarily they follow each other: a worker starts again, and what its
former life had still in flight comes late. Two live processes that claim one rank are something else: their
totals are of different requests, and nobody can tell what belongs together.

The rules, all by the service's clock, because the clocks of hosts differ:

- Lives are ordered by when they began: when the first frame came, less the time that the worker had been up
  if it tells that. Epochs, which are of the workers' clocks, decide only between lives that began at once.
- The newest life counts at present. Once it has been silent for ``stale_after`` seconds, an older one that
  goes on takes its place: it was in conflict with it and heard after it, or counted after these seconds. What
  a life says as it shuts down is no going on.
- Which one counts follows from what is known of all lives, whatever came first: see
  :mod:`moescope.service.counts.choosing`. So all services that know the same lives say the same.
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
from moescope.service.counts.choosing import counting, surplus
from moescope.service.counts.conflict import REMEDY, Conflict, joined, name_of, named, rank_of
from moescope.service.counts.epoch_state import EpochState
from moescope.service.counts.hearing import began_of, heard, made_at_of
from moescope.service.counts.instants import not_after
from moescope.service.counts.layers import Layout
from moescope.service.counts.refusals import RefusedError
from moescope.service.counts.step_costs import Stragglers
from moescope.service.counts.totals import Totals

OVERLAPS: Final = 2
"""So many overlaps are a conflict."""
MAX_LIVES: Final = 64
"""Lives of one producer that are heard at once, at most: an array of all its counts each."""


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
        order = (began_of(frame, at), frame.epoch) if known is None else known.order
        return order, made_at_of(frame, known, at)

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
        self.set_back(at)
        self._heard_at = at
        known = self._known.get(frame.epoch)
        made_at = made_at_of(frame, known, at)
        life = replace(heard(frame, counted, known, at, made_at), added=added)
        if known is not None and len(self._known) > 1 and _is_news(counted, known.counted):
            life = self._overlapping(life)
        self._known[frame.epoch] = life
        if len(self._known) == 1:
            self.current = life
            return True
        current = self._choose(at)
        self._note_conflict(at)
        return current.epoch == frame.epoch

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
        before = self.current
        if len(self._known) < 2 or before is None:
            return False
        return self._choose(now).epoch != before.epoch

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

    def _choose(self, now: float) -> EpochState:
        """The life that counts at present, which is :attr:`current` from now on."""
        found = counting(self, self._stale_after)
        rival = self._rival(found, now)
        if rival is not None:
            silent_at = max(item.heard_at for item in self if item.order > rival.order)
            since = math.nextafter(silent_at + self._stale_after, math.inf)
            self._known[rival.epoch] = replace(rival, going_at=max(rival.going_at, since))
            found = counting(self, self._stale_after)
        if found.overlaps and (self.current is None or found.epoch != self.current.epoch):
            found = self._known[found.epoch] = replace(found, overlaps=0)
        self.current = found
        return found

    def _rival(self, current: EpochState, now: float) -> EpochState | None:
        """The newest life that was in conflict with newer ones, all of which fell silent before it did."""
        if self.is_heard(current, now):
            return None
        rivals = [
            life
            for life in self
            if life.order < current.order
            and life.overlaps >= OVERLAPS
            and not life.ended
            and all(
                life.made_at > item.heard_at and not self.is_heard(item, now)
                for item in self
                if item.order > life.order
            )
        ]
        return max(rivals, key=lambda item: item.order, default=None)

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

    def set_back(self, now: float) -> None:
        """The service's clock shows ``now``, maybe less than before; see :meth:`AccountState.heard_by`."""
        if self._heard_at <= now or not self._known:
            return
        self._heard_at = now
        conflicts = [at for conflict in self.conflicts for at in conflict]
        to = not_after(now, [*(at for item in self for at in item.instants), *conflicts])
        if to is None:
            return
        self._known = {item.epoch: item.moved(to) for item in self}
        self.conflicts = tuple((to(since), to(until)) for since, until in self.conflicts)
        if self.current is not None:
            self.current = self._known[self.current.epoch]


def _is_news(counted: Totals, before: Totals) -> bool:
    return (counted.tokens, counted.steps, counted.idle_steps) != (
        before.tokens,
        before.steps,
        before.idle_steps,
    )


def _is_other(one: Producer, other: Producer) -> bool:
    return (one.host, one.pid) != (other.host, other.pid)
