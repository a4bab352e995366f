"""Costly jobs that many ask for at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from moescope.service.api.shared_runs import SharedRuns


class Job:
    """Waits until it is let go, and notes its runs."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.at_once = self.most_at_once = 0
        self.begins, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, argument: str) -> int:
        self.began.append(argument)
        self.begins.release()
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        assert self.go.acquire(timeout=10)
        self.at_once -= 1
        if argument == "fails":
            raise ValueError(argument)
        return len(self.began)


def _ask(coroutine: Coroutine[Any, Any, int]) -> asyncio.Task[int]:
    return asyncio.create_task(coroutine)


def test_who_comes_during_a_run_shares_the_next() -> None:
    async def ask() -> None:
        job = Job()
        shared = SharedRuns(job)
        first = _ask(shared("a"))
        assert await asyncio.to_thread(job.begins.acquire, timeout=10)
        later = [_ask(shared("a")) for _ in range(30)]
        other = _ask(shared("b"))
        await asyncio.sleep(0)
        job.go.release(3)
        assert await first == 1
        assert await asyncio.gather(*later) == [2] * 30
        assert await other == 3
        assert job.began == ["a", "a", "b"]
        assert job.most_at_once == 1

    asyncio.run(ask())


def test_a_caller_who_goes_away_leaves_the_run_to_the_others() -> None:
    async def ask() -> None:
        job = Job()
        shared = SharedRuns(job)
        running = _ask(shared("a"))
        assert await asyncio.to_thread(job.begins.acquire, timeout=10)
        gone, stays = _ask(shared("a")), _ask(shared("a"))
        await asyncio.sleep(0)
        gone.cancel()
        running.cancel()
        job.go.release(2)
        assert await stays == 2
        job.go.release()
        assert await shared("a") == 3

    asyncio.run(ask())


def test_an_error_reaches_all_callers_of_its_run_and_no_other() -> None:
    async def ask() -> None:
        job = Job()
        shared = SharedRuns(job)
        failing = [_ask(shared("fails")) for _ in range(2)]
        fine = _ask(shared("a"))
        job.go.release(2)
        for task in failing:
            with pytest.raises(ValueError, match="fails"):
                await task
        assert await fine == 2
        assert job.began == ["fails", "a"]

    asyncio.run(ask())
