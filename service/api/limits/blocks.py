"""An answer that is made block by block, each when the client has taken the one before."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Mapping
from typing import Final, Protocol, TypeVar

from fastapi import Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from moescope.service.api.limits.crew import to_the_end
from moescope.service.api.limits.downloads import Downloads, Place
from moescope.service.api.limits.turns import CLIENT_CLOSED, Turns
from moescope.service.store.records import StoreError
from moescope.service.wanted import UnwantedError

T = TypeVar("T")
PIECE_BYTES: Final = 128 << 10
"""Bytes that are given to the connection at once; it holds this and 64 KiB more until the client reads."""

_log = logging.getLogger(__name__)


class Download(Protocol):
    """What was found and is to be sent."""

    @property
    def memory(self) -> int:
        """The most bytes that making and sending it takes at any time."""

    @property
    def media_type(self) -> str:
        """Of the answer."""

    def begin(self) -> tuple[bytes, Generator[bytes], dict[str, str]]:
        """The first block, what makes the others, and headers."""


async def send_blocks(
    request: Request, look: Callable[[], Download], turns: Turns, downloads: Downloads
) -> Response:
    """An answer of blocks. Looking and the first block take a turn each; in between there is a wait for room.

    Args:
        request: whose answer it is.
        look: finds what is to be sent; it reads little.
        turns: of queries.
        downloads: all that are under way.

    Raises:
        ProblemError: of ``look`` and ``begin``, or there is no room (see :meth:`Downloads.enter`).
    """
    try:
        download = await _in_turn(request, look, turns)
        place = await downloads.enter(download.memory)
        try:
            first, others, headers = await _in_turn(request, download.begin, turns)
        except BaseException:
            downloads.leave(place)
            raise
    except UnwantedError:
        return Response(status_code=CLIENT_CLOSED)
    return Blocks(first, others, place, downloads, turns, download.media_type, headers)


async def _in_turn(request: Request, work: Callable[[], T], turns: Turns) -> T:
    """What the work returns, in a thread and in a turn.

    Raises:
        UnwantedError: the client had left when it was the request's turn.
    """
    async with turns.one():
        if await request.is_disconnected():
            raise UnwantedError("the client has left")
        return await to_the_end(run_in_threadpool(work))


class Blocks(Response):
    """Sends blocks. Each is made in a thread, in a turn among the queries; while it is sent it has no turn.

    Whatever ends an answer before its last block cuts the connection off, so that no client takes what it
    has for the whole: there is no last chunk, or less than Content-Length says.

    Args:
        first: the first block, which has been made: what was wrong until then had an answer of its own.
        others: makes the blocks after it; it is closed at the end.
        place: the download's room, left at the end.
        downloads: whose room that is.
        turns: of queries.
        media_type, headers: of the answer.
    """

    def __init__(
        self,
        first: bytes,
        others: Generator[bytes],
        place: Place,
        downloads: Downloads,
        turns: Turns,
        media_type: str,
        headers: Mapping[str, str],
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self._block: bytes | None = first
        self._others = others
        self._place = place
        self._downloads = downloads
        self._turns = turns
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or as much as can be sent."""
        request = Request(scope, receive)
        try:
            async with asyncio.timeout(None) as timeout:
                with self._place.endable(timeout):
                    await self._send(request, send)
        except TimeoutError:
            pass  # others needed its place
        except StoreError as error:
            if self._downloads.may_log("ends early"):
                _log.warning("an answer to %s ends early (logged once a minute): %s", scope["path"], error)
        finally:
            self._block = None
            try:
                self._others.close()
            finally:
                self._downloads.leave(self._place)

    async def _send(self, request: Request, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if request.scope.get("moescope.head"):
            return
        while self._block is not None:
            for start in range(0, len(self._block), PIECE_BYTES):
                piece = self._block[start : start + PIECE_BYTES]
                with self._downloads.sending(self._place, len(piece)):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                if await request.is_disconnected():
                    return
            self._block = None  # before the next one is made
            async with self._turns.one():
                self._block = await to_the_end(run_in_threadpool(next, self._others, None))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
