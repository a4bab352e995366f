"""What holds for every answer, whichever route it is of; a plain ASGI middleware around all others."""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moescope.service.api.problems import respond

NO_STORE: Final = "no-store"


class Answers:
    """Headers, HEAD, and bodies that nobody reads.

    No answer is stored by a browser or a proxy unless its route says otherwise, and none is taken for another
    type than it is. HEAD is answered as GET without the body, also where that would have no end. A request
    whose body is larger than any that is taken, or has no declared end, and that was answered before all of
    it was read, is the last one of its connection: what follows would be read for as long as it comes.
    A request that the service waits for no longer as it ends is answered 503.

    Args:
        app: what answers.
        max_body: the most bytes of a body that are read to the end for the sake of the connection.
    """

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        one = _Exchange(receive, send, scope["method"] == "HEAD", self._without_end(Headers(scope=scope)))
        inner = {**scope, "method": "GET", "moescope.head": True} if one.head else scope
        try:
            await self._app(inner, one.receive, one.send)
        except asyncio.CancelledError:  # by the server, when it ends: nobody else cancels
            if not one.begun:
                answer = respond(
                    Request(scope), 503, "ending", "The service ends", "It waits no longer. Ask again."
                )
                await answer(scope, receive, send)

    def _without_end(self, headers: Headers) -> bool:
        """Whether a request's body is longer than would be read to its end, or may be."""
        length = headers.get("content-length", "0")
        # The server has refused what is no number; such a length is taken for a long one.
        return "transfer-encoding" in headers or not length.isdigit() or int(length[:20]) > self._max_body


class _Exchange:
    """One request and its answer."""

    def __init__(self, receive: Receive, send: Send, head: bool, unread: bool) -> None:
        self.head = head
        self._receive = receive
        self._send = send
        self._unread = unread
        self._over = False
        self.begun = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            headers.setdefault("cache-control", NO_STORE)
            headers["x-content-type-options"] = "nosniff"
            if self._unread:
                headers["connection"] = "close"
            message = {**message, "headers": headers.raw}
        await self._send(message)
        if self.head and message["type"] == "http.response.start":
            self._over = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
