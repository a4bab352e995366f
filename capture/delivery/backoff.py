"""When to try again after a delivery that failed."""

from __future__ import annotations

import random
from typing import Final

FIRST: Final = 4.0
LONGEST: Final = 15.0


class Backoff:
    """Waits with full jitter: anything up to a limit, which doubles with each failure.

    Already the first limit is several seconds: workers fail together when a service goes away, and a few
    hundred of them must not come back together, not even after a short outage.

    The random generator is not Python's global one, and the system seeds it. vLLM seeds the global one alike
    in all workers of a DP rank, in some versions in all workers: they would all wait equally long, and vLLM
    would draw other numbers than without capture.

    Args:
        first: limit after the first failure, seconds.
        longest: no limit is above it, seconds. After this time the service takes a silent producer for stale.
    """

    def __init__(self, first: float = FIRST, longest: float = LONGEST) -> None:
        self._first = first
        self._longest = longest
        self._limit = first
        self._random = random.Random()  # noqa: S311 - jitter

    def failed(self, permanent: bool = False) -> float:
        """Seconds to wait. After a `permanent` failure at least `longest`, and at most twice that."""
        if permanent:
            self._limit = self._longest
            return self._random.uniform(self._longest, 2 * self._longest)
        limit, self._limit = self._limit, min(2 * self._limit, self._longest)
        return self._random.uniform(0.0, limit)

    def succeeded(self) -> None:
        """Begin again with the first limit."""
        self._limit = self._first
