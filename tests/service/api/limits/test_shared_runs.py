"""Costly jobs that many ask for at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from moescope.service.api.limits.shared_runs import SharedRuns


class Job:
    """Waits until it is let go, and notes its runs."""

    def __init__(self) -> None:
        self.began: list[set[str]] = []
        self.at_once = self.most_at_once = 0
        self.begins, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, forms: frozenset[str]) -> dict[str, str]:
        self.began.append(set(forms))
        self.begins.release()
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        assert self.go.acquire(timeout=60)
        self.at_once -= 1
        if "fails" in forms:
            raise ValueError(forms)
        return {form: f"{form}{len(self.began)}" for form in forms}


def _ask(coroutine: Coroutine[Any, Any, str]) -> asyncio.Task[str]:
    return asyncio.create_task(coroutine)


def test_who_comes_during_a_run_shares_the_next_whatever_form_he_wants() -> None:
    async def ask() -> None:
        job = Job()
        shared = SharedRuns(job)
        first = _ask(shared("a"))
        assert await asyncio.to_thread(job.begins.acquire, timeout=60)
        later = [_ask(shared("a")) for _ in range(30)]
        other = _ask(shared("b"))
        await asyncio.sleep(0)
        job.go.release(2)
        assert await first == "a1"
        assert await asyncio.gather(*later) == ["a2"] * 30
        assert await other == "b2"
        assert job.began == [{"a"}, {"a", "b"}]
        assert job.most_at_once == 1

    asyncio.run(ask())


def test_a_caller_who_goes_away_leaves_the_run_to_the_others() -> None:
    async def ask() -> None:
        job = Job()
        shared = SharedRuns(job)
        running = _ask(shared("a"))
        assert await asyncio.to_thread(job.begins.acquire, timeout=60)
        gone, stays = _ask(shared("a")), _ask(shared("a"))
        await asyncio.sleep(0)
        gone.cancel()
        running.cancel()
        job.go.release(2)
        assert await stays == "a2"
        job.go.release()
        assert await shared("a") == "a3"

    asyncio.run(ask())


def test_an_error_reaches_all_callers_of_its_run_and_no_other() -> None:
    async def ask() -> None:
        job = Job()
        shared = SharedRuns(job)
        failing = [_ask(shared(form)) for form in ("fails", "a")]
        assert await asyncio.to_thread(job.begins.acquire, timeout=60)
        fine = _ask(shared("a"))
        job.go.release(2)
        for task in failing:
            with pytest.raises(ValueError, match="fails"):
                await task
        assert await fine == "a2"
        assert job.began == [{"fails", "a"}, {"a"}]

    asyncio.run(ask())
