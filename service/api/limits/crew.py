"""Threads of a bounded number for work that would hold up the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")


class Crew:
    """Runs jobs in threads, so many at a time, in the order they came; for one event loop.

    A job that has begun is finished, whether or not its client still waits; one that has not is not begun for
    a client who left.

    Args:
        size: how many jobs run at a time. With one, jobs see each other's effects in order.
    """

    def __init__(self, size: int) -> None:
        self._limiter = CapacityLimiter(size)

    async def run(self, job: Callable[[], T]) -> T:
        """What the job returns or raises."""
        return await to_thread.run_sync(job, limiter=self._limiter)
