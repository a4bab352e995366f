"""The bodies of requests, read up to a limit of size and time: msgpack of producers, JSON of others."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from moescope.service.api.problems import ProblemError, RefusedFrameError
from moescope.service.settings import Settings

MAX_JSON: Final = 64 << 10
"""Most bytes of a JSON body. The largest that any route takes has a note of 500 characters and four names."""
JSON_TYPE: Final = "application/json"
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
    limit = settings.max_body_mib * 1024 * 1024
    much = f"It is over {limit} bytes: raise max_body_mib if the model is really that large."
    return await read_body(request, limit, settings.body_timeout_s, much, took)


async def read_body(
    request: Request,
    limit: int,
    timeout_s: float,
    too_large: str,
    took: Callable[[int], None] = lambda _: None,
) -> bytes:
    """The body. It is read no further than the limit, whatever length the client declared.

    Args:
        request: the request.
        limit: most bytes.
        timeout_s: longest time that it may take to arrive, seconds.
        too_large: what to say of a body that is larger.
        took: called with the number of bytes of each piece that arrives; it may raise.

    Raises:
        RefusedFrameError: the body is too large (413) or too slow (408), or its client went (400).
    """
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                took(len(chunk))
                if len(body) + len(chunk) > limit:
                    raise RefusedFrameError(
                        "too_large", 413, "The body is too large", too_large, Connection="close"
                    )
                body += chunk
    except TimeoutError as error:
        raise RefusedFrameError(
            "slow_body",
            408,
            "The body came too slowly",
            f"It took over {timeout_s:g} s: send it again.",
            Connection="close",
        ) from error
    except ClientDisconnect as error:
        raise RefusedFrameError(
            "disconnected", 400, "The client went away", "Send the body again."
        ) from error
    return bytes(body)


async def take_none(request: Request, timeout_s: float) -> None:
    """Check that a request has no body, where none is taken: what it says would be ignored.

    Raises:
        ProblemError: it has one (422), or says so and sends nothing (408).
    """
    if not has_body(request):
        return
    try:
        await read_body(request, 0, timeout_s, "")
    except RefusedFrameError as error:
        if error.status != 413:
            raise
        path = request.scope["path"]
        detail = f"{request.method} {path} takes no body: its parameters are in the query, see /docs."
        raise ProblemError(
            422, "unexpected-body", "No body is taken here", detail, {"Connection": "close"}
        ) from None


async def take_json(request: Request, timeout_s: float) -> bytes:
    """The body of a request that must be JSON. Nothing of it is read if it doesn't say that it is.

    A browser sends other types to a service of another origin without asking; so the type is no formality.

    Raises:
        ProblemError: it is of another type (415), too large (413), too slow (408) or no JSON (400), or it
            names a field twice (422).
    """
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != JSON_TYPE:
        raise ProblemError(
            415, "content-type", "Wrong content type", f"It is {given or 'absent'!r}: send {JSON_TYPE}."
        )
    much = f"It is over {MAX_JSON} bytes, more than anything that can be said here."
    body = await read_body(request, MAX_JSON, timeout_s, much)
    try:
        json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ProblemError(400, "malformed", "Not JSON", f"The body is no JSON: {error}.") from None
    return body


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose fields must differ: which of two is meant can't be known."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ProblemError(
            422,
            "repeated-field",
            "A field is given twice",
            f"{name[:100]!r} is in the body twice: give it once.",
        )
    return found


def has_body(request: Request) -> bool:
    """Whether a request says that a body follows, even an empty one of unknown length."""
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


def replayed(request: Request, body: bytes) -> Request:
    """The request, for a reader who wants its body once more."""
    waiting = [body]

    async def receive() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await request.receive()

    return Request(request.scope, receive)
