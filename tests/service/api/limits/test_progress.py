"""Answers that tell how far they are."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient
from pydantic import BaseModel

from moescope.service.api.limits import progress
from moescope.service.api.limits.downloads import Downloads
from moescope.service.api.limits.progress import Progress, Question, answer_telling
from moescope.service.api.limits.turns import Turns
from moescope.service.api.problems import ProblemError, install
from moescope.service.live.large import LargeQuestions
from moescope.service.store.records import StoreError


@dataclass(frozen=True)
class Far:
    read: int
    total: int = 3


class Answer(BaseModel):
    value: int


def whole() -> Generator[Progress, None, Answer]:
    yield Far(1)
    yield Far(2)
    return Answer(value=7)


def wrong_at_once() -> Generator[Progress, None, Answer]:
    raise ProblemError(404, "no-such-thing", "No such thing", "Ask for another.")
    yield Far(1)


def wrong_later() -> Generator[Progress, None, Answer]:
    yield Far(1)
    raise StoreError("the disk is gone")


def asked(question: Question, accept: str) -> tuple[int, list[dict[str, object]]]:
    app = FastAPI()
    install(app)
    turns, downloads = Turns(1, LargeQuestions(1 << 30)), Downloads(16 << 20)

    @app.get("/")
    async def answer(request: Request) -> Response:
        return await answer_telling(request, question, turns, downloads)

    response = TestClient(app).get("/", headers={"accept": accept})
    return response.status_code, [json.loads(line) for line in response.text.splitlines()]


def test_lines_or_one_document() -> None:
    far = [{"progress": {"read": read, "total": 3}} for read in (1, 2)]
    assert asked(whole, "application/x-ndjson") == (200, [*far, {"answer": {"value": 7}}])
    assert asked(whole, "*/*") == (200, [{"value": 7}])


def test_what_is_wrong_before_the_first_line_has_its_status() -> None:
    for accept in ("application/x-ndjson", "application/json"):
        status, [problem] = asked(wrong_at_once, accept)
        assert (status, problem["detail"]) == (404, "Ask for another.")


def test_what_goes_wrong_later_is_a_line() -> None:
    status, lines = asked(wrong_later, "application/x-ndjson")
    assert (status, lines[-1]) == (200, {"problem": {"detail": "the disk is gone"}})
    assert asked(wrong_later, "*/*")[0] == 503


class Numbers(BaseModel):
    counts: list[int]


def test_memory_of_an_answer_of_many_numbers() -> None:
    """What a download sets aside for it is what it takes at most."""
    numbers, held = 300_000, np.arange(1_000_000_000, 1_000_300_000)

    def question() -> Generator[Progress, None, Numbers]:
        yield Far(1)
        return Numbers(counts=held.tolist())

    lines = progress.Lines(question, numbers)
    _, rest, _ = lines.begin()
    tracemalloc.start()
    length = sum(len(block) for block in rest)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length > 11 * numbers
    assert 4 << 20 < peak < lines.memory
