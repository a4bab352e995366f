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
_MEMORY: Final = 4 << 20  # of an answer as a line, which lists a thousand requests at most
NUMBER_BYTES: Final = 64
"""Of each number of an answer: an object, its place in a list, and its digits, twice."""


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
    request: Request, question: Question, turns: Turns, downloads: Downloads, numbers: int = 0
) -> Response:
    """The answer to a question, in the way that the client accepts.

    Args:
        request: the question's.
        question: makes the answer.
        turns, downloads: bound those that are under way.
        numbers: how many numbers the answer may have in lists, besides what it says of requests.

    With ``Accept: application/x-ndjson`` it is lines of JSON: any number of ``{"progress": ...}``, then
    ``{"answer": ...}`` or ``{"problem": ...}``. A client that leaves ends the work.

    Raises:
        ProblemError: of the question; among lines only before the first one.
    """
    if LINES in request.headers.get("accept", ""):
        return await send_blocks(request, lambda: Lines(question, numbers), turns, downloads)
    return await turns.answer(request, lambda: _whole(question))


def _whole(question: Question) -> Response:
    work = question()
    while True:
        try:
            next(work)
        except StopIteration as end:
            return Response(_as_json(end.value), media_type="application/json")


class Lines:
    """A question as a :class:`moescope.service.api.limits.blocks.Download`."""

    media_type = LINES

    def __init__(self, question: Question, numbers: int) -> None:
        self._question = question
        self.memory = _MEMORY + NUMBER_BYTES * numbers

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
                yield b'{"answer":'
                yield _as_json(end.value)
                yield b"}\n"
                return
            except (ProblemError, StoreError) as error:
                if not begun:
                    raise
                yield _line("problem", json.dumps({"detail": str(error)}))
                return


def _as_json(answer: BaseModel) -> bytes:
    """Its JSON, of which there is no second copy as text."""
    return answer.__pydantic_serializer__.to_json(answer)


def _line(name: str, value: str) -> bytes:
    return f'{{"{name}":{value}}}\n'.encode()
