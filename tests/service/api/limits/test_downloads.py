"""Room for downloads: counted, in order, given back, and not kept by those who don't read."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any

import pytest

from moescope.service.api.limits import downloads as module
from moescope.service.api.limits.downloads import Downloads, Place
from moescope.service.api.problems import ProblemError


class Timer:
    """A clock that moves by a step each time it is looked at."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


async def settled(task: asyncio.Task[Place]) -> bool:
    """Whether it is done once everything that could happen now has happened."""
    for _ in range(10):
        await asyncio.sleep(0)
    return task.done()


def test_those_that_find_no_room_wait_in_their_order() -> None:
    async def work() -> None:
        room = Downloads(10)
        first = await room.enter(6)
        large, small = asyncio.create_task(room.enter(9)), asyncio.create_task(room.enter(2))
        assert not await settled(large)
        assert not await settled(small), "nobody overtakes one that needs more"
        room.leave(first)
        room.leave(first)  # twice is once
        assert await settled(large)
        assert not await settled(small)
        room.leave(await large)
        assert await settled(small)
        assert room.held_bytes == 2
        room.leave(await small)
        assert room.held_bytes == 0

    run(work())


def test_one_that_gives_up_waiting_holds_up_nobody() -> None:
    async def work() -> None:
        room = Downloads(10)
        first = await room.enter(10)
        gone, next_one = asyncio.create_task(room.enter(10)), asyncio.create_task(room.enter(5))
        await settled(gone)
        gone.cancel()
        assert await settled(gone)
        room.leave(first)
        assert await settled(next_one)
        assert room.held_bytes == 5

    run(work())


def test_what_never_fits_and_what_found_no_room_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)

    async def work() -> None:
        room = Downloads(10, Timer(step=module.WAIT_S))
        with pytest.raises(ProblemError) as error:
            await room.enter(11)
        assert (error.value.status, error.value.kind) == (400, "too-large")
        quick = await room.enter(10)
        quick.sent = 1 << 40
        with pytest.raises(ProblemError) as error:
            await room.enter(1)
        assert (error.value.status, error.value.headers["Retry-After"]) == (503, "5")
        assert not quick.ending, "who reads as it should stays"
        room.leave(quick)
        assert room.held_bytes == 0
        await room.enter(10)

    run(work())


@pytest.mark.parametrize("stuck", [False, True])
def test_the_slow_go_for_one_that_waits(monkeypatch: pytest.MonkeyPatch, stuck: bool) -> None:
    """One whose client takes little, and one whose client took much and nothing any more."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)

    async def work() -> None:
        room = Downloads(12, Timer(step=0.02))
        places = [await room.enter(4) for _ in range(3)]
        for place, sent in zip(places, (1 << 40, 1 << 40 if stuck else 100, 1 << 40), strict=True):
            with room.sending(place, sent):
                pass

        async def download() -> None:
            try:
                async with asyncio.timeout(None) as timeout:
                    with places[1].endable(timeout), ExitStack() as stack:
                        if stuck:
                            stack.enter_context(room.sending(places[1], 1))
                        await asyncio.Event().wait()
            finally:
                room.leave(places[1])

        slow = asyncio.create_task(download())
        waits = asyncio.create_task(room.enter(4))
        with pytest.raises(TimeoutError):
            await slow
        await waits
        assert [place.ending for place in places] == [False, True, False]

    run(work())


def test_one_that_is_to_end_before_it_begins_ends_at_once() -> None:
    async def work() -> None:
        place = await Downloads(1).enter(1)
        place.end()

        async def download() -> None:
            async with asyncio.timeout(None) as timeout:
                with place.endable(timeout):
                    await asyncio.Event().wait()

        with pytest.raises(TimeoutError):
            await download()

    run(work())


def test_seconds_in_which_the_service_makes_blocks_are_not_the_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One client takes what it is given at once; the service then has nothing for it for an hour."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    timer = Timer()

    async def work() -> None:
        room = Downloads(8, timer)
        fast, slow = await room.enter(4), await room.enter(4)
        with room.sending(fast, 100):
            timer.now += 1e-6
        with room.sending(slow, 100):
            timer.now += 1
        timer.now += 3600
        waits = asyncio.create_task(room.enter(4))

        async def download() -> None:
            async with asyncio.timeout(None) as timeout:
                with slow.endable(timeout):
                    await asyncio.Event().wait()

        with pytest.raises(TimeoutError):
            await download()
        assert not fast.ending
        room.leave(slow)
        more = asyncio.create_task(room.enter(4))
        await asyncio.sleep(0.05)
        assert not fast.ending, "nor later, when it is the slowest that is left"
        room.leave(fast)
        await waits
        await more

    run(work())
