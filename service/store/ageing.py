"""The instant by which history ages: Unix time, except for a while after the wall clock jumped forward.

A wall clock jumps when NTP sets it, or when a virtual machine was suspended. By such a clock years may seem
to have passed, and what is removed for its age does not come back when the clock is set right. So for a day
after a jump history ages at most twice as fast as time passes. A service that was down sees a jump too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

JUMP_S: Final = 60.0
"""A jump by less than this is believed at once."""
DOUBT_S: Final = 86400.0
"""For how long a jump is doubted; after that it is believed."""


class Ageing:
    """The instant up to which history may be looked at as past; never goes back.

    Args:
        reached: what :meth:`until` last gave when the service ran before; None: not known.
        steady: seconds that pass evenly, whatever the wall clock does.
    """

    def __init__(self, reached: float | None, steady: Callable[[], float]) -> None:
        self._reached = reached
        self._steady = steady
        self._looked = self._jumped = steady()
        self._ahead = 0.0

    def until(self, now: float) -> float:
        """The instant, when the wall clock says ``now``; both in seconds of Unix time."""
        looked = self._steady()
        passed, self._looked = looked - self._looked, looked
        before = now if self._reached is None else self._reached
        ahead = now - before - passed
        if ahead > self._ahead + JUMP_S:
            self._jumped = looked
        self._ahead = ahead
        doubted = ahead > JUMP_S and looked - self._jumped < DOUBT_S
        self._reached = max(before, before + 2 * passed if doubted else now)
        return self._reached
