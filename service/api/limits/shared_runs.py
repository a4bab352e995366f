"""One run of a costly job at a time, however many ask for it, whatever form each wants its result in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from fastapi.concurrency import run_in_threadpool

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SharedRuns(Generic[K, T]):
    """Runs ``job`` in a thread, once at a time; for one event loop.

    Callers who come while a run is under way share the next one. So each gets a result that was computed
    after it came, at most one run waits, and runs can't pile up behind clients who gave up. An error of the
    job reaches all callers of the run.

    Args:
        job: from the forms that a run's callers want, each once, to the results.
    """

    def __init__(self, job: Callable[[frozenset[K]], Mapping[K, T]]) -> None:
        self._job = job
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[Mapping[K, T]] | None = None
        self._wanted: set[K] = set()
        """The forms that callers of ``_next`` want."""

    async def __call__(self, form: K) -> T:
        """The result of a run that begins after this call."""
        if self._next is None:
            self._next = asyncio.create_task(self._run())
        self._wanted.add(form)
        results = await asyncio.shield(self._next)  # others may wait for it when this caller goes away
        return results[form]

    async def _run(self) -> Mapping[K, T]:
        async with self._turn:
            wanted, self._wanted, self._next = frozenset(self._wanted), set(), None
            return await run_in_threadpool(self._job, wanted)
