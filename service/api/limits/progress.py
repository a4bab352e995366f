"""An answer that may take long: one JSON document, or lines that tell how far it is until it is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import Any, Final, Protocol

from fastapi import Request, Response
from pydantic import BaseModel

from moescope.service.api.limits.blocks import send_blocks
from moescope.service.api.limits.downloads import Downloads
from moescope.service.api.limits.turns import Turns
from moescope.service.api.problems import ProblemError
from moescope.service.store.records import StoreError

LINES: Final = "application/x-ndjson"
_MEMORY: Final = 4 << 20  # of an answer as a line


class Progress(Protocol):
    """How far an answer is: how many requests were read for it, and how many must be."""

    @property
    def read(self) -> int: ...  # noqa: D102

    @property
    def total(self) -> int: ...  # noqa: D102


Question = Callable[[], Generator[Progress, None, BaseModel]]
"""Yields how far it is, several times a second, and returns the answer."""


def described_lines(answer: type[BaseModel], what: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's ``responses`` of an answer that is given in both ways."""
    lines = {
        "schema": {"type": "string"},
        "example": '{"progress": {"read": 640, "total": 5000}}\\n{"answer": {...}}\\n',
    }
    return {200: {"model": answer, "content": {LINES: lines}, "description": what}}


async def answer_telling(
    request: Request, question: Question, turns: Turns, downloads: Downloads
) -> Response:
    """The answer to a question, in the way that the client accepts.

    With ``Accept: application/x-ndjson`` it is lines of JSON: any number of ``{"progress": ...}``, then
    ``{"answer": ...}`` or ``{"problem": ...}``. A client that leaves ends the work.

    Raises:
        ProblemError: of the question; among lines only before the first one.
    """
    if LINES in request.headers.get("accept", ""):
        return await send_blocks(request, lambda: _Lines(question), turns, downloads)
    return await turns.answer(request, lambda: _whole(question))


def _whole(question: Question) -> Response:
    work = question()
    while True:
        try:
            next(work)
        except StopIteration as end:
            return Response(end.value.model_dump_json(), media_type="application/json")


class _Lines:
    """A question as a :class:`moescope.service.api.limits.blocks.Download`."""

    memory = _MEMORY
    media_type = LINES

    def __init__(self, question: Question) -> None:
        self._question = question

    def begin(self) -> tuple[bytes, Generator[bytes], dict[str, str]]:
        """The first line, what makes the others, and no headers."""
        lines = self._lines()
        return next(lines), lines, {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

    def _lines(self) -> Generator[bytes]:
        work, begun = self._question(), False
        while True:
            try:
                far = next(work)
                yield _line("progress", json.dumps({"read": far.read, "total": far.total}))
                begun = True
            except StopIteration as end:
                yield _line("answer", end.value.model_dump_json())
                return
            except (ProblemError, StoreError) as error:
                if not begun:
                    raise
                yield _line("problem", json.dumps({"detail": str(error)}))
                return


def _line(name: str, value: str) -> bytes:
    return f'{{"{name}":{value}}}\n'.encode()
