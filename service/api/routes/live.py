"""GET /v1/live: server-sent events that say when there is something new to read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from moescope.service.api.params.checked import CheckedRoute
from moescope.service.live.state import LiveState

TICK_S: Final = 1.0
"""Shortest time between two events."""
HEARTBEAT_S: Final = 5.0
"""Longest time between two events: time passes without frames too, and makes ranks stale."""
_POLL_S: Final = 0.1


def live_router(state: LiveState) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["queries"], route_class=CheckedRoute)

    @router.get(
        "/v1/live",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def live(request: Request) -> StreamingResponse:
        """A `tick` whenever frames have come, once a second at most and every five seconds at least.

        Its data is JSON: `now`, Unix seconds on the service's clock, and `frames`, how many have come. It
        says that the queries have new answers; the answers themselves are asked for as usual.
        """
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_ticks(state, request), media_type="text/event-stream", headers=headers)

    return router


async def _ticks(state: LiveState, request: Request) -> AsyncIterator[str]:
    """Events until the client goes (which cancels this), its token ends, or the server does."""
    loop = asyncio.get_running_loop()
    sent_frames, sent_at = -1, -HEARTBEAT_S
    yield "retry: 1000\n\n"
    allowed = request.scope.get("moescope.still_allowed", lambda: True)
    while allowed() and not getattr(request.app.state, "stopping", False):
        frames, since = sum(state.frames().values()), loop.time() - sent_at
        if since >= HEARTBEAT_S or (frames != sent_frames and since >= TICK_S):
            data = json.dumps({"now": state.now(), "frames": frames})
            yield f"event: tick\nid: {frames}\ndata: {data}\n\n"
            sent_frames, sent_at = frames, loop.time()
        await asyncio.sleep(_POLL_S)
