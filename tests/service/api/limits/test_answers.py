"""What holds for every answer: its headers, HEAD, and where a redirect must not lead."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from starlette.types import Message, Receive, Scope, Send

from moescope.service.api.app import create_app
from moescope.service.api.limits.answers import Answers
from moescope.service.settings import Settings
from tests.service.conftest import Service
from tests.service.frames import frame

PROBES = ["/healthz", "/readyz", "/metrics"]
PATHS = ["/", "/docs", "/openapi.json", *PROBES, "/v1/ranks", "/v1/balance", "/v1/x"]


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_the_body(service: Service, path: str) -> None:
    service.push(frame({0: [100, 100]}))
    whole, head = service.client.get(path), service.client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert service.client.get("/healthz").status_code == 200, "the connection is still of use"


def test_head_of_a_stream_without_an_end_ends(service: Service) -> None:
    assert service.client.head("/v1/live").headers["content-type"].startswith("text/event-stream")
    assert service.client.head("/v1/ingest").status_code == 405


@pytest.mark.parametrize("path", [*PATHS, "/v1/live?x=1", "/v1/balance?x=1"])
def test_no_answer_is_stored_or_taken_for_another_type(service: Service, path: str) -> None:
    headers = service.client.get(path).headers
    assert headers["cache-control"] == ("no-cache" if path in ("/", "/docs") else "no-store")
    assert headers["x-content-type-options"] == "nosniff"


def test_a_refusal_by_the_guard_and_a_fault_have_these_headers_too(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(token="a-token-of-this-test")
    headers = service.client.get("/v1/ranks").headers
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    other = start_service()
    monkeypatch.setattr("moescope.service.live.state.LiveState.producers", fail)
    answer = other.client.get("/v1/ranks")
    assert answer.status_code == 500
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/v1/ranks/", "/healthz/", "/docs/", "/v1/baselines/"])
def test_no_redirect_leads_where_the_client_says(service: Service, path: str) -> None:
    answer = service.client.get(path, headers={"host": "evil.example"})
    assert "location" not in answer.headers
    assert "evil.example" not in answer.text
    assert answer.status_code == 404


@pytest.mark.parametrize("length", ["99999999999999999999", "4294967296"])
def test_a_declared_length_that_nobody_reads_ends_the_connection(service: Service, length: str) -> None:
    parts = urlsplit(service.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60) as connection:
        head = f"POST /v1/nothing HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\nxx"
        connection.sendall(head.encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 "))


def test_every_path_is_one_of_an_application_without_redirects() -> None:
    assert create_app(Settings(port=0)).router.redirect_slashes is False


@pytest.mark.parametrize("begins", [False, True])
def test_who_waits_when_the_service_ends_is_told_so_and_the_log_is_not(begins: bool) -> None:
    """The server cancels what it waits for no longer, and would log a traceback of each."""
    sent: list[Message] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    async def send(message: Message) -> None:
        sent.append(message)

    async def ended() -> None:
        scope = {"type": "http", "method": "GET", "path": "/v1/ranks", "headers": []}
        task = asyncio.ensure_future(Answers(app, 1)(scope, asyncio.Event().wait, send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        await task

    asyncio.run(ended())
    assert sent[0]["status"] == (200 if begins else 503)
    if not begins:
        assert json.loads(sent[1]["body"])["type"] == "urn:moescope:problem:ending"
