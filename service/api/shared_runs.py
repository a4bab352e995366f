"""One run of a costly job at a time, however many ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from fastapi.concurrency import run_in_threadpool

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SharedRuns(Generic[K, T]):
    """Runs ``job`` in a thread, once at a time, whatever its argument; for one event loop.

    Callers who come with the same argument while another run is under way share the next one, so each gets
    what was computed after it came, and runs can't pile up behind clients who gave up. Errors of the job
    reach all callers of the run.
    """

    def __init__(self, job: Callable[[K], T]) -> None:
        self._job = job
        self._turn = asyncio.Lock()
        self._waiting: dict[K, asyncio.Task[T]] = {}

    async def __call__(self, argument: K) -> T:
        """The result of a run that begins after this call."""
        run = self._waiting.get(argument)
        if run is None:
            run = self._waiting[argument] = asyncio.create_task(self._run(argument))
        return await asyncio.shield(run)  # others may wait for it when this caller goes away

    async def _run(self, argument: K) -> T:
        try:
            await self._turn.acquire()
        finally:
            del self._waiting[argument]
        try:
            return await run_in_threadpool(self._job, argument)
        finally:
            self._turn.release()
