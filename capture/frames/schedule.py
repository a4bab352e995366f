"""When a snapshot is due: at steps that all workers of a DP rank choose alike, though each has its own clock.

The service adds up the rows of a DP rank's TP workers and compares the sum with the rank's tokens. That is
exact only for snapshots that were taken after the same step. The workers run the same steps and number them
alike, but they started their intervals at moments of their own. So a snapshot is taken where the step's
number is a multiple of a power of two: the largest one that is not above the number of steps in an interval.
Workers that find different powers still meet, because a multiple of the larger one is one of the smaller.
"""

from __future__ import annotations

import math


class SnapshotSchedule:
    """Says when a snapshot is due. The thread of the steps and the sender's thread may both ask.

    In a steady flow of steps snapshots are half an interval to one interval apart. Where steps suddenly take
    much longer they are two intervals apart at most, at any step.

    Args:
        interval: seconds between snapshots, at most, while the worker is busy.

    Attributes:
        earliest: before this time no snapshot is due at the end of a step; on the clock of `taken`.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._last = (-math.inf, 0)  # the first snapshot, of nothing, announces the producer
        self._forced = False
        self.earliest = -math.inf

    def force(self) -> None:
        """Make the next snapshot due at once."""
        self._forced, self.earliest = True, -math.inf

    def taken(self, now: float, step: int) -> None:
        """A snapshot was taken after `step` steps."""
        self.earliest = now + self._interval / 4  # first: `force` may come in between
        self._last, self._forced = (now, step), False

    def due_after(self, step: int, now: float) -> bool:
        """Whether a snapshot is due at the end of a step.

        Args:
            step: steps so far, dummy steps included; the same number on all workers of a DP rank.
            now: seconds, on the clock of `taken`.
        """
        if now < self.earliest:
            return False
        at, last = self._last
        elapsed = now - at
        if self._forced or elapsed >= 2 * self._interval:
            return True
        if step == last:  # nothing was computed since: capture is off, or steps have no tokens
            return elapsed >= self._interval
        # The largest power that divides the step's number is the one in question, or above it.
        return (step - last) * self._interval < 2 * (step & -step) * elapsed

    def due_between(self, idle: bool, now: float) -> bool:
        """Whether a snapshot is due outside of the steps' thread.

        Args:
            idle: no step has begun since the last look. A busy worker takes its snapshots at the ends of its
                steps, so that their numbers are those of the other workers' snapshots.
            now: seconds, on the clock of `taken`.
        """
        return self._forced or now - self._last[0] >= self._interval * (1 if idle else 2)
