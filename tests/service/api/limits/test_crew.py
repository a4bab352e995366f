"""Threads of those who are cancelled: what is held for a thread is held until the thread ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request

from moescope.service.api.limits.blocks import Blocks, send_blocks
from moescope.service.api.limits.crew import Crew, to_the_end
from moescope.service.api.limits.downloads import Downloads
from moescope.service.api.limits.turns import Turns
from moescope.service.live.large import LargeQuestions
from moescope.service.settings import Settings
from moescope.service.store.records import StoreError
from moescope.service.wanted import UnwantedError, check_wanted

SCOPE = {"type": "http", "path": "/x", "method": "GET", "headers": [], "query_string": b"", "root_path": ""}


class Held:
    """A job that lasts until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go, self.over = threading.Event(), threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.go.wait(60)
        self.over.set()
        return "done"

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 60)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


async def lasts(task: asyncio.Task[Any]) -> bool:
    """Whether it is not done once everything that could happen now has happened."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


def one_turn() -> Turns:
    """One turn for all queries."""
    return Turns(1, LargeQuestions(1 << 20))


async def takes_a_turn(turns: Turns) -> None:
    """Waits for a turn and gives it back."""
    async with turns.one():
        pass


async def forever() -> dict[str, Any]:
    """What a client that stays sends."""
    await asyncio.Event().wait()
    return {}


def test_who_is_cancelled_goes_when_the_thread_has_ended() -> None:
    async def work() -> None:
        job, told = Held(), []
        asks = to_the_end(run_in_threadpool(job), cancelled=lambda: told.append(1))
        task = asyncio.create_task(asks)
        await job.has_begun()
        for times in (1, 2):  # whoever is impatient may cancel again
            task.cancel()
            assert await lasts(task)
            assert len(told) == times
        job.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert job.over.is_set()

    run(work())


def test_what_the_thread_returns_or_raises_comes_through() -> None:
    def fails() -> None:
        raise ValueError("it failed")

    async def work() -> None:
        assert await to_the_end(run_in_threadpool(lambda: 7)) == 7
        with pytest.raises(ValueError, match="it failed"):
            await to_the_end(run_in_threadpool(fails))

    run(work())


def test_a_crew_of_one_does_no_two_jobs_at_once_when_a_client_is_cancelled() -> None:
    async def work() -> None:
        crew, first, second, third = Crew(1), Held(), Held(), Held()
        one, two, three = (asyncio.create_task(crew.run(job)) for job in (first, second, third))
        await first.has_begun()
        one.cancel()
        two.cancel()  # it waits, and is never begun
        assert await lasts(one)
        assert not third.begun.wait(0.1)
        first.go.set()
        await third.has_begun()
        assert first.over.is_set()
        third.go.set()
        assert await three == "done"
        assert not second.begun.is_set()
        assert one.cancelled()
        assert two.cancelled()

    run(work())


def test_a_download_that_ends_while_its_block_is_made_holds_its_place_and_turn_until_then() -> None:
    block = Held()
    closed = threading.Event()

    def others() -> Generator[bytes]:
        try:
            block()
            yield b"second"
        finally:
            closed.set()

    async def work() -> None:
        room, turns, sent = Downloads(10), one_turn(), []
        place = await room.enter(10)
        answer = Blocks(b"first", others(), place, room, turns, "application/json", {})

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        task = asyncio.create_task(answer(SCOPE, forever, send))
        await block.has_begun()
        place.end()
        turn = asyncio.create_task(takes_a_turn(turns))
        assert await lasts(task)
        assert await lasts(turn)
        assert room.held_bytes == 10
        block.go.set()
        await task  # quietly: the generator was not closed while the thread ran it
        await turn
        assert closed.is_set()
        assert room.held_bytes == 0
        assert sent == [b"", b"first"]

    run(work())


def test_answers_that_the_store_cuts_off_are_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    def others() -> Generator[bytes]:
        yield b"second"
        raise StoreError("the trace is gone")

    async def work() -> None:
        room = Downloads(10)
        for _ in range(3):
            answer = Blocks(b"", others(), await room.enter(10), room, one_turn(), "application/json", {})
            await answer(SCOPE, forever, _nobody)

    run(work())
    assert [record.message for record in caplog.records] == [
        "an answer to /x ends early (logged once a minute): the trace is gone"
    ]


class Begins:
    """A download whose first block, or the look for which, lasts until it is let go."""

    memory, media_type = 10, "application/json"

    def __init__(self, job: Held) -> None:
        self._job = job

    def begin(self) -> tuple[bytes, Generator[bytes], dict[str, str]]:
        self._job()
        return b"", (b"" for _ in range(0)), {}


@pytest.mark.parametrize("looking", [True, False])
def test_a_client_cancelled_before_the_first_block_holds_its_turn_until_the_thread_ends(
    looking: bool,
) -> None:
    async def work() -> None:
        room, turns, job = Downloads(10), one_turn(), Held()

        def look() -> Begins:
            if looking:
                job()
            return Begins(job)

        task = asyncio.create_task(send_blocks(Request(SCOPE, forever), look, turns, room))
        await job.has_begun()
        task.cancel()
        turn = asyncio.create_task(takes_a_turn(turns))
        assert await lasts(task)
        assert await lasts(turn)
        assert room.held_bytes == (0 if looking else 10)
        job.go.set()
        await turn
        with pytest.raises(asyncio.CancelledError):
            await task
        assert room.held_bytes == 0

    run(work())


def test_a_cancelled_query_keeps_its_turn_until_its_thread_sees_that_nobody_wants_it() -> None:
    job, unwanted = Held(), threading.Event()

    def query() -> None:
        job()
        try:
            check_wanted()
        except UnwantedError:
            unwanted.set()
            raise

    async def work() -> None:
        turns = one_turn()
        router = APIRouter(route_class=turns.route)
        router.get("/x")(query)
        app = FastAPI()
        app.state.running = SimpleNamespace(settings=Settings())
        app.include_router(router)
        task = asyncio.create_task(app(dict(SCOPE), _stays(), _nobody))
        await job.has_begun()
        task.cancel()
        turn = asyncio.create_task(takes_a_turn(turns))
        assert await lasts(task)
        assert await lasts(turn)
        job.go.set()
        await turn
        with pytest.raises(asyncio.CancelledError):
            await task
        assert unwanted.is_set()

    run(work())


def _stays() -> Callable[[], Coroutine[Any, Any, dict[str, Any]]]:
    """A client that sends a request without a body, and stays."""
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        message = next(messages, None)
        return await forever() if message is None else message

    return receive


async def _nobody(_message: Any) -> None:
    """Takes what is sent."""
