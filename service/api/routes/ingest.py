"""POST /v1/ingest: frames in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect

from moescope.capture.wire import CONTENT_TYPE, WireError, WireVersionError, decode_frame
from moescope.service.api.limits.keeping import Keeper
from moescope.service.api.limits.limits import Limits, RefusedFrameError
from moescope.service.api.problems import documented
from moescope.service.api.schemas.common import Receipt
from moescope.service.counts.refusals import RefusedError
from moescope.service.live.state import LiveState
from moescope.service.logs import Throttle
from moescope.service.metrics.instruments import Instruments
from moescope.service.settings import Settings
from moescope.service.store.records import StoreError

_log = logging.getLogger(__name__)

REFUSALS: Final = (400, 401, 403, 408, 409, 413, 415, 429, 503)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


def ingest_router(
    state: LiveState, settings: Settings, instruments: Instruments, keeper: Keeper, limits: Limits
) -> APIRouter:
    """The route that takes frames into ``state``, and answers when ``keeper`` has kept them."""
    router = APIRouter(tags=["ingest"])
    throttle = Throttle(state.now)

    @router.post("/v1/ingest", openapi_extra=_BODY, responses=documented(*REFUSALS))
    async def ingest(request: Request) -> Receipt:
        """Take one cumulative frame of a producer: msgpack, as `moescope.capture.wire` defines it.

        Sending a frame twice, late or out of order is harmless. The service that has a store answers when
        the totals are kept there.
        """
        try:
            with limits.body_of(client_of(request)) as took:
                return await _take(request, state, settings, instruments, keeper, limits, took)
        except RefusedFrameError as error:
            state.count_refused(error.reason)
            if throttle.allows(error.reason):
                _log.warning("refused a frame (logged once a minute): %s", error)
            raise

    return router


async def _take(
    request: Request,
    state: LiveState,
    settings: Settings,
    instruments: Instruments,
    keeper: Keeper,
    limits: Limits,
    took: Callable[[int], None],
) -> Receipt:
    body = await receive(request, settings, CONTENT_TYPE, took)
    instruments.took_in(len(body))
    try:
        with instruments.ingest.timed():
            frame = decode_frame(body)
            limits.admit("frame", frame.producer.key)
            verdict = state.ingest(frame)
    except WireVersionError as error:
        raise RefusedFrameError("version", 415, "Another wire version", str(error)) from error
    except WireError as error:
        raise RefusedFrameError("malformed", 400, "Not a frame", str(error)) from error
    except RefusedError as error:
        status = 503 if error.reason == "too_many_producers" else 409
        raise RefusedFrameError(error.reason, status, "The frame can't be counted", str(error)) from error
    try:
        await keeper.keep_state()
    except StoreError as error:
        raise RefusedFrameError("store_failed", 503, "The frame could not be kept", str(error)) from error
    return Receipt(result=verdict.value, epoch=frame.epoch, seq=frame.seq)


def client_of(request: Request) -> str:
    """The address that a request comes from."""
    return "" if request.client is None else request.client.host


async def receive(
    request: Request, settings: Settings, content_type: str, took: Callable[[int], None]
) -> bytes:
    """The body of a producer's request, each piece of which is told to ``took``.

    Raises:
        RefusedFrameError: it is of another type, too large, too slow, or there is too much of all.
    """
    _check_content_type(request, content_type)
    return await _read_body(request, settings, took)


def _check_content_type(request: Request, expected: str) -> None:
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != expected:
        raise RefusedFrameError(
            "content_type", 415, "Wrong content type", f"It is {given or 'absent'!r}: send {expected}."
        )


async def _read_body(request: Request, settings: Settings, took: Callable[[int], None]) -> bytes:
    """The body, read no further than the limit whatever its declared length."""
    limit = settings.max_body_mib * 1024 * 1024
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                took(len(chunk))
                body += chunk
                if len(body) > limit:
                    raise RefusedFrameError(
                        "too_large",
                        413,
                        "The body is too large",
                        f"It is over {limit} bytes: raise max_body_mib if the model is really that large.",
                        Connection="close",
                    )
    except TimeoutError as error:
        raise RefusedFrameError(
            "slow_body",
            408,
            "The body came too slowly",
            f"It took over {settings.body_timeout_s:g} s: send it again.",
            Connection="close",
        ) from error
    except ClientDisconnect as error:
        raise RefusedFrameError(
            "disconnected", 400, "The client went away", "Send the frame again."
        ) from error
    return bytes(body)
