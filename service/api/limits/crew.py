"""Threads for work that would hold up the event loop; whoever awaits one has waited until it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T], cancelled: Callable[[], None] = lambda: None) -> T:
    """What the work returns or raises. Who is cancelled here goes when the work has ended, not before.

    A thread can't be cancelled. Without this the await would end while the thread still works, so what its
    caller holds for it, such as a turn, would be given to others too early.

    Args:
        work: awaits a thread; it runs as a task of its own, which is not cancelled.
        cancelled: called at once on cancellation, to have the work end early.

    Raises:
        CancelledError: the caller was cancelled; what the work returned or raised is dropped.
    """
    task = asyncio.ensure_future(work)
    error: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as cancellation:
            error = error or cancellation
            cancelled()
    if error is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # so that asyncio doesn't log it as never retrieved
    raise error


class Crew:
    """Runs jobs in threads, so many at a time, in the order they came; for one event loop.

    A job that has begun is finished, whether or not its client still waits; one that has not is not begun for
    a client who left.

    Args:
        size: how many jobs run at a time. With one, jobs see each other's effects in order.
    """

    def __init__(self, size: int) -> None:
        self._free = asyncio.Semaphore(size)
        self._threads = CapacityLimiter(size)

    async def run(self, job: Callable[[], T]) -> T:
        """What the job returns or raises."""
        async with self._free:
            return await to_the_end(to_thread.run_sync(job, limiter=self._threads))
