"""What nobody wants any more ends between two steps, in the thread that computes it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from fastapi.concurrency import run_in_threadpool

from moescope.service.wanted import UnwantedError, check_wanted, wanted_until


def test_without_anybody_who_says_so_all_is_wanted() -> None:
    check_wanted()


def test_a_thread_ends_between_two_steps() -> None:
    left, steps = threading.Event(), []

    def work() -> None:
        for step in range(10):
            check_wanted()
            steps.append(step)
            if step == 3:
                left.set()

    async def ask() -> None:
        with wanted_until(left):
            await run_in_threadpool(work)

    with pytest.raises(UnwantedError):
        asyncio.run(ask())
    assert steps == [0, 1, 2, 3]
    check_wanted()
