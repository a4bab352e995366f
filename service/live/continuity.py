"""What of a frame is news for counters in ``/metrics``, and when counters go on where a store left them.

Prometheus takes a counter that falls for one that began again at zero: everything that it then shows counts
as new. So a counter must never fall but to what really is new, over restarts of the service, with whatever
became of its store. Two rules do that:

- What a frame adds that was taken elsewhere before, or by this service before it lost what it knew, is left
  out of the counters. A frame says so (``Frame.acknowledged``).
- What comes from a store is shown when the workers' frames have shown that nothing is missing in it. If
  something is missing, the counters of that deployment begin at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from moescope.capture.wire import Frame
from moescope.service.counts.account import Account
from moescope.service.live.producers import Deployment
from moescope.service.store.records import Key

LATE_S: Final = 30.0
"""A worker that doesn't tell what was acknowledged, and has counted for longer than this when its first frame
comes, is taken for one whose frames went elsewhere before."""


@dataclass(slots=True)
class _Held:
    """A deployment whose counters are not shown yet.

    ``awaited`` has the producers that were not heard since the start, with when each reported last;
    ``newest`` is the latest of these instants over all producers.
    """

    newest: float = -math.inf
    heard: bool = False
    awaited: dict[Key, float] = field(default_factory=dict)


class Continuity:
    """Says which counts are news. Not safe for several threads.

    Args:
        clock: seconds of Unix time.
        wait_s: seconds that workers which reported last may take to report again after a restart.
        alone: no other service writes to the store: what was acknowledged is there, or was taken elsewhere.
    """

    def __init__(self, clock: Callable[[], float], wait_s: float, alone: bool) -> None:
        self._clock = clock
        self._wait_s = wait_s
        self._alone = alone
        self._begun = clock()
        self._held: dict[Deployment, _Held] = {}
        self._doubted: set[Key] = set()

    def restored(self, key: Key, at: float, unbroken: bool) -> None:
        """A producer is known from a store.

        Args:
            key: who.
            at: when its newest frame came.
            unbroken: the store had everything that it was given.
        """
        if not unbroken:
            self._doubted.add(key)
        elif self._alone:
            held = self._held.setdefault(key[:2], _Held())
            held.awaited[key], held.newest = at, max(at, held.newest)

    def holds(self, deployment: Deployment) -> bool:
        """Whether the counters of a deployment have not been shown since the start, and still can't be."""
        held = self._held.get(deployment)
        if held is None:
            return False
        if not held.heard:
            return True
        missing = any(at >= held.newest - self._wait_s for at in held.awaited.values())
        return missing and abs(self._clock() - self._begun) < self._wait_s

    def show(self, deployment: Deployment) -> bool:
        """Whether the counters of a deployment may be shown; from then on they are."""
        if self.holds(deployment):
            return False
        self._held.pop(deployment, None)
        return True

    def is_old(self, account: Account, frame: Frame) -> bool:
        """Whether what a frame adds to an account was taken elsewhere before: counters may have it there."""
        known, told = account.seq_of(frame.epoch), frame.acknowledged
        if known is None:
            return told > 0 if told is not None else (frame.captured_at_ns - frame.epoch) / 1e9 > LATE_S
        if told is not None:
            return self._alone and told > known
        return frame.producer.key in self._doubted

    def heard(self, key: Key) -> None:
        """A frame of a producer was accepted."""
        self._doubted.discard(key)
        held = self._held.get(key[:2])
        if held is not None:
            held.heard = True
            held.awaited.pop(key, None)
