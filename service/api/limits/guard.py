"""The first to see a request: it compares what the route needs with what the sender may do."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from moescope.service.api.problems import respond
from moescope.service.auth.book import TokenBook
from moescope.service.auth.sessions import COOKIE, Sessions, needed
from moescope.service.auth.tokens import Scope as Right
from moescope.service.auth.tokens import Token


class Guard:
    """Answers 401 or 403, or lets the request through; a plain ASGI middleware.

    Args:
        app: what it guards.
        book: the tokens; without any everybody may do everything.
        sessions: sessions of browsers, which may only ask.
        open_read: asking needs no token.
        refused: called with ``unauthorized`` or ``forbidden`` for a frame or trace that is turned away.
        clock: seconds of Unix time, for expiry.
    """

    def __init__(
        self,
        app: ASGIApp,
        book: TokenBook,
        sessions: Sessions,
        *,
        open_read: bool,
        refused: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._book = book
        self._sessions = sessions
        self._open_read = open_read
        self._refused = refused
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through, or answer in its place."""
        if scope["type"] != "http" or not self._book:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        # The path that is routed. Before Starlette 1.0 `request.url` was made from the Host header too.
        right = needed(request.method, scope["path"])
        if right is None or (right is Right.READ and self._open_read and request.method != "POST"):
            await self._app(scope, receive, send)
            return
        token, wrong = self._who(request)
        if token is not None and token.allows(right):
            scope["moescope.token"] = token
            scope["moescope.still_allowed"] = lambda: self._may(request, right)
            await self._app(scope, receive, send)
            return
        kind = "unauthorized" if token is None else "forbidden"
        if right is Right.INGEST:
            self._refused(kind)
        if token is None:
            answer = respond(
                request,
                401,
                "unauthorized",
                wrong or "A token is needed",
                "Send a bearer token that this service knows: MOESCOPE_TOKEN or MOESCOPE_TOKEN_FILE in "
                "vLLM's environment and for the command line, authorization.credentials_file in Prometheus.",
                {"WWW-Authenticate": 'Bearer error="invalid_token"' if wrong else "Bearer"},
            )
        else:
            answer = respond(
                request,
                403,
                "forbidden",
                "The token may not do this",
                f"{token.name!r} has {', '.join(sorted(token.scopes))}; this needs {right.value}: "
                "send a token that has it.",
            )
        await answer(scope, receive, send)

    def _may(self, request: Request, right: Right) -> bool:
        """Whether the sender may still do what it was allowed to do."""
        token, _ = self._who(request)
        return token is not None and token.allows(right)

    def _who(self, request: Request) -> tuple[Token | None, str]:
        """The sender's token, or what is wrong with it; empty if there is none at all."""
        given = request.headers.get("authorization")
        if given is not None:
            kind, _, text = given.partition(" ")
            token = self._book.find(text.strip()) if kind.lower() == "bearer" and text.strip() else None
        else:
            # A browser sends its cookie by itself, so it only ever serves for asking.
            value = request.cookies.get(COOKIE) if request.method in ("GET", "HEAD") else None
            if not value:
                return None, ""
            token = self._sessions.find(value)
            if token is not None:
                reads = {Right.READ} if token.allows(Right.READ) else set()
                token = Token(token.name, frozenset(reads), token.digest, token.expires)
        if token is None:
            return None, "The token is wrong"
        if token.expired(self._clock()):
            return None, "The token has expired"
        return token, ""
