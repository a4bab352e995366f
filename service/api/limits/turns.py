"""A few costly queries at a time, however many ask; none for those who gave up while they waited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute

from moescope.service.api.params.checked import CheckedRoute

_CLIENT_CLOSED: Final = 499  # nginx's status for this; nobody reads the answer


class Turns:
    """Turns for queries, in the order they came; for one event loop.

    A query of hundreds of ranks takes tens of MiB for a moment, and most of a core. uvicorn doesn't end a
    request whose client went away, so without turns as many run as there are threads, for nobody.

    Args:
        limit: how many are answered at a time.
    """

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)

    @property
    def route(self) -> type[APIRoute]:
        """For ``APIRouter(route_class=...)``: its routes are checked, then take a turn.

        A turn lasts until the answer is made. Sending it is not part of the turn, since a client may read
        slowly.
        """
        answer = self._answer

        class TurnRoute(CheckedRoute):
            def answering(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                handler = super().answering()

                async def in_turn(request: Request) -> Response:
                    return await answer(handler, request)

                return in_turn

        return TurnRoute

    async def _answer(
        self, handler: Callable[[Request], Coroutine[Any, Any, Response]], request: Request
    ) -> Response:
        async with self._free:
            if await request.is_disconnected():
                return Response(status_code=_CLIENT_CLOSED)
            return await handler(request)
