"""What the service measures about itself: durations and sizes, for its own metrics."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

INGEST_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
SCRAPE_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Durations:
    """A histogram of durations in seconds; for all threads.

    Args:
        bounds: upper bounds of the buckets, rising; the last one, infinity, is added.
        timer: seconds of a clock that never goes back.
    """

    def __init__(self, bounds: tuple[float, ...], timer: Callable[[], float]) -> None:
        self._bounds = (*bounds, math.inf)
        self._timer = timer
        self._lock = threading.Lock()
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        with self._lock:
            self._counts[bisect_left(self._bounds, seconds)] += 1
            self._sum += seconds

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Observe how long the block takes, also when it raises."""
        began = self._timer()
        try:
            yield
        finally:
            self.observe(self._timer() - began)

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative buckets as (``le``, count), and the sum in seconds."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        buckets, reached = [], 0
        for bound, count in zip(self._bounds, counts, strict=True):
            reached += count
            buckets.append(("+Inf" if bound == math.inf else str(bound), float(reached)))
        return buckets, total


class Instruments:
    """One service's instruments."""

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        self.ingest = Durations(INGEST_BUCKETS, timer)
        self.scrape = Durations(SCRAPE_BUCKETS, timer)
        self._lock = threading.Lock()
        self._ingest_bytes = 0

    def took_in(self, nbytes: int) -> None:
        """Count a body's bytes."""
        with self._lock:
            self._ingest_bytes += nbytes

    @property
    def ingest_bytes(self) -> int:
        """Bytes of all bodies so far."""
        with self._lock:
            return self._ingest_bytes
