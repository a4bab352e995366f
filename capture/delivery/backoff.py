"""When to try again after a delivery that failed."""

from __future__ import annotations

import random
from typing import Final

FIRST: Final = 4.0
LONGEST: Final = 15.0


class Backoff:
    """Waits with full jitter: anything up to a limit, which doubles with each failure.

    The first limit is seconds already: workers fail together when a service goes away, and a few hundred of
    them must not come back together after a short outage either.

    The generator is its own and seeded by the system. vLLM seeds Python's alike in all workers of a DP rank,
    in some versions in all workers: with that they would wait equally long, and vLLM's draws would change.

    Args:
        first: limit after the first failure, seconds.
        longest: limit of limits, seconds; as long as the service waits until a silent producer is stale.
    """

    def __init__(self, first: float = FIRST, longest: float = LONGEST) -> None:
        self._first = first
        self._longest = longest
        self._limit = first
        self._random = random.Random()  # noqa: S311 - jitter

    def failed(self, permanent: bool = False) -> float:
        """Seconds to wait; where trying again soon is in vain, the longest at least, twice that at most."""
        if permanent:
            self._limit = self._longest
            return self._random.uniform(self._longest, 2 * self._longest)
        limit, self._limit = self._limit, min(2 * self._limit, self._longest)
        return self._random.uniform(0.0, limit)

    def succeeded(self) -> None:
        """Begin again with the first limit."""
        self._limit = self._first
