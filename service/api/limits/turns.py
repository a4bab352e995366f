"""A few costly queries at a time, however many ask; none for those who gave up, before or meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from moescope.service.api.limits.crew import to_the_end
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.live.large import LargeQuestions
from moescope.service.wanted import UnwantedError, wanted_until

CLIENT_CLOSED: Final = 499
"""nginx's status for a client that left; nobody reads the answer."""


class Turns:
    """Turns for queries, in the order they came; for one event loop.

    A query of hundreds of ranks takes tens of MiB for a moment, and most of a core. uvicorn doesn't end a
    request whose client went away, so without turns as many run as there are threads, for nobody.

    Those that hold much of the past are answered one at a time (:mod:`moescope.service.live.large`).

    Args:
        limit: how many are answered at a time.
        large: what those do that hold much.
    """

    def __init__(self, limit: int, large: LargeQuestions) -> None:
        self._large = large
        self._free = asyncio.Semaphore(limit)

    @property
    def route(self) -> type[APIRoute]:
        """For ``APIRouter(route_class=...)``: its routes are checked, then take a turn.

        A turn lasts until the answer is made. Sending it is not part of the turn, since a client may read
        slowly. When the client leaves, :func:`moescope.service.wanted.check_wanted` ends the computation.
        """
        answer = self._answer

        class TurnRoute(CheckedRoute):
            def answering(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handler = super().answering()

                async def in_turn(request: Request) -> Response:
                    return await answer(handler, request)

                return in_turn

        return TurnRoute

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A turn for the block, which is one question."""
        async with self._free:
            with self._large.question():
                yield

    async def answer(self, request: Request, work: Callable[[], Response]) -> Response:
        """What the work returns, in a thread, and in a turn as a route of :attr:`route` has one."""
        return await self._answer(lambda _: run_in_threadpool(work), request)

    async def _answer(
        self, handler: Callable[[Request], Coroutine[Any, Any, Response]], request: Request
    ) -> Response:
        async with self.one():
            if await request.is_disconnected():
                return Response(status_code=CLIENT_CLOSED)
            try:
                async with _watched(request) as left:
                    return await to_the_end(handler(request), cancelled=left.set)
            except UnwantedError:
                return Response(status_code=CLIENT_CLOSED)


@contextlib.asynccontextmanager
async def _watched(request: Request) -> AsyncIterator[threading.Event]:
    """While the block runs, what it computes is wanted until the client leaves, or the event is set.

    A request with a body is not watched: its route reads it from the same place.
    """
    left = threading.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left.set()

    watcher = asyncio.create_task(watch()) if request.method == "GET" else None
    try:
        with wanted_until(left):
            yield left
    finally:
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
