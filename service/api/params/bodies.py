"""The bodies that producers send: msgpack, read up to a limit of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from fastapi import Request
from starlette.requests import ClientDisconnect

from moescope.service.api.problems import RefusedFrameError
from moescope.service.settings import Settings

REFUSALS: Final = (400, 401, 403, 408, 409, 413, 415, 429, 503)
"""HTTP statuses with which a route that takes such a body may refuse it."""


def described_body(content_type: str) -> dict[str, Any]:
    """OpenAPI's ``requestBody`` of a route that takes bytes of this content type."""
    content = {content_type: {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": True, "content": content}}


def client_of(request: Request) -> str:
    """The address that a request comes from; empty if the server does not know it."""
    return "" if request.client is None else request.client.host


async def receive(
    request: Request, settings: Settings, content_type: str, took: Callable[[int], None]
) -> bytes:
    """The body of a producer's request.

    Args:
        request: the request.
        settings: see ``max_body_mib`` and ``body_timeout_s``.
        content_type: the only content type that is taken.
        took: called with the number of bytes of each piece that arrives; it may raise.

    Raises:
        RefusedFrameError: the content type is another, the body is too large or too slow, or its client went.
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
    """The body. It is read no further than the limit, whatever length the client declared."""
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
            "disconnected", 400, "The client went away", "Send the body again."
        ) from error
    return bytes(body)
