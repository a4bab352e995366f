"""Log lines that don't repeat: at most one a minute for each kind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

DEFAULT_PERIOD = 60.0


class ThrottledLog:
    """Writes a line of each kind at most once a period, and how many of its kind were left out since."""

    def __init__(
        self,
        logger: logging.Logger,
        period: float = DEFAULT_PERIOD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._period = period
        self._clock = clock
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def log(self, kind: str, level: int, message: str) -> None:
        """Write the message, unless one of its kind was written less than a period ago."""
        now = self._clock()
        if now < self._next.get(kind, now):
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        self._next[kind] = now + self._period
        left_out = self._left_out.pop(kind, 0)
        suffix = f" ({left_out} more like this since the last line)" if left_out else ""
        self._logger.log(level, "%s%s", message, suffix)
