"""The server's clock, which all services that share it go by, whatever the clocks of their hosts show."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_MOST_UNSURE_S: Final = 5.0


class ServerClock:
    """Seconds of Unix time on the server's clock, as it was when it was asked last; for any threads.

    Between two questions a clock of this host goes on that nobody sets. While the server can't be reached it
    goes on alone.

    Args:
        ask: the server's time, seconds of Unix time.
        own: seconds that pass evenly.
    """

    def __init__(self, ask: Callable[[], float], own: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._own = own
        self._ahead, self._unsure = self._measured()

    def __call__(self) -> float:
        """The time now."""
        return self._own() + self._ahead

    def set(self) -> None:
        """Ask the server again; a difference that the answer's delay explains changes nothing."""
        ahead, unsure = self._measured()
        off = abs(ahead - self._ahead)
        if unsure < self._unsure or (off > unsure + self._unsure and unsure < _MOST_UNSURE_S):
            self._ahead, self._unsure = ahead, unsure

    def _measured(self) -> tuple[float, float]:
        """By how much the server's clock is ahead, and by how much that may be wrong, seconds."""
        before = self._own()
        told = self._ask()
        after = self._own()
        return told - (before + after) / 2, (after - before) / 2 + 1e-3
