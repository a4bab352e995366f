"""Errors as RFC 9457 problem documents that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from moescope.service.live.large import NoRoomError
from moescope.service.nearest import hint
from moescope.service.store.records import StoreError

MEDIA_TYPE: Final = "application/problem+json"
MAX_DETAIL: Final = 2000
"""Longest detail, characters: what is wrong may quote what was sent."""


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    type: str = Field(description="Kind of the problem: a URN that programs can tell apart.")
    title: str = Field(description="The kind in words.")
    status: int = Field(description="HTTP status.")
    detail: str = Field(description="What is wrong with this request, and what to do.")
    instance: str = Field(description="Path of the request.")


class ProblemError(Exception):
    """Ends a request with a problem document.

    ``kind`` is a slug such as ``no-such-layer``; ``detail`` says what is wrong and what to do.
    """

    def __init__(
        self, status: int, kind: str, title: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status = status
        self.kind = kind
        self.title = title
        self.detail = _shortened(detail)
        self.headers = dict(headers or {})
        super().__init__(f"{title}: {self.detail}")


class RefusedFrameError(ProblemError):
    """A refused frame, or a refused part of a trace.

    ``reason`` becomes the label ``reason`` of ``moescope_frames_total``.
    """

    def __init__(self, reason: str, status: int, title: str, detail: str, **headers: str) -> None:
        self.reason = reason
        super().__init__(status, reason.replace("_", "-"), title, detail, headers)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_DETAIL else f"{text[:MAX_DETAIL]}... ({len(text)} characters)"


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's ``responses`` for the statuses that a route answers with a problem document."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: schema}}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` with a problem document."""
    app.add_exception_handler(ProblemError, _answer_problem)
    app.add_exception_handler(StoreError, _answer_store_failed)
    app.add_exception_handler(NoRoomError, _answer_no_room)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_unexpected)


def respond(
    request: Request,
    status: int,
    kind: str,
    title: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem document as the answer to a request."""
    problem = Problem(
        type=f"urn:moescope:problem:{kind}",
        title=title,
        status=status,
        detail=_shortened(detail),
        instance=request.scope["path"],
    )
    always = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return JSONResponse(
        problem.model_dump(), status, headers={**always, **(headers or {})}, media_type=MEDIA_TYPE
    )


async def _answer_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProblemError)
    return respond(request, error.status, error.kind, error.title, error.detail, error.headers)


async def _answer_store_failed(request: Request, error: Exception) -> JSONResponse:
    return respond(request, 503, "store-failed", "The store failed", f"{error} Ask again, or see the log.")


async def _answer_no_room(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, NoRoomError)
    if error.ever:
        return respond(request, 503, "busy", "Too many large questions", str(error), {"Retry-After": "5"})
    return respond(request, 400, "too-large", "Too large a question", str(error))


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = "; ".join(_fault(request, fault) for fault in error.errors())
    detail = f"{faults}. The parameters are described at /docs."
    return respond(request, 422, "invalid-parameters", "The parameters are not valid", detail)


def _fault(request: Request, fault: Mapping[str, Any]) -> str:
    """What is wrong with one value; of a field that the body doesn't have, which one may be meant."""
    where = [str(part) for part in fault["loc"]]
    if fault["type"] != "extra_forbidden" or len(where) != 2:  # all bodies are flat
        return f"{'.'.join(where)}: {fault['msg']}"
    field = getattr(request.scope.get("route"), "body_field", None)
    known = list(getattr(getattr(field, "field_info", None), "annotation", BaseModel).model_fields)
    name = where[1]
    return f"There is no field {name[:100]!r} in the body.{hint(name, known)} It takes {', '.join(known)}"


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers, path = error.headers or {}, request.scope["path"]
    if error.status_code == 404:
        known = [there for route in request.app.routes if (there := getattr(route, "path", None))]
        near = hint(path, known)
        detail = f"There is nothing at {path[:200]}.{near} What there is stands at /docs."
        return respond(request, 404, "not-found", "No such path", detail, headers)
    if error.status_code == 405:
        detail = f"{path} takes {headers.get('Allow', 'other methods')}, not {request.method}."
        return respond(request, 405, "method-not-allowed", "Wrong method", detail, headers)
    title = HTTPStatus(error.status_code).phrase
    return respond(request, error.status_code, "http", title, f"{error.detail}. See /docs.", headers)


async def _answer_unexpected(request: Request, _error: Exception) -> JSONResponse:
    detail = "This is a bug of moescope: please report it with the lines that the service logged."
    # The server ends the connection after such an error: a client that knows doesn't use it again.
    return respond(request, 500, "internal", "The service failed", detail, {"Connection": "close"})
