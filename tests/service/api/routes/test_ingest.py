"""POST /v1/ingest over a real connection."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from moescope.capture import wire
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame


def _problem(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["type"]) == (status, f"urn:moescope:problem:{kind}")
    detail: str = problem["detail"]
    return detail


def test_the_answer_says_what_became_of_the_frame(service: Service) -> None:
    second, first = frame({0: [2, 2]}, seq=2), frame({0: [1, 1]}, seq=1)
    results = [service.push(made).json()["result"] for made in (second, second, first)]
    assert results == ["accepted", "duplicate", "stale"]
    assert service.get("/v1/histogram")["layers"][0]["counts"] == [2, 2]


def test_another_major_version_is_named_with_ours(service: Service) -> None:
    body = msgspec.msgpack.encode({"wire": (9, 0), "anything": 1})
    assert "version 9" in (detail := _problem(service.push_bytes(body), 415, "version"))
    assert f"version {wire.WIRE_MAJOR}" in detail


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seq": 0}, "seq"),
        ({"counts": b"1234"}, "counts"),
        ({"tokens": "many"}, "tokens"),
        ({"rows": None}, "rows"),
    ],
)
def test_a_malformed_frame_is_refused_by_field(
    service: Service, change: dict[str, object], field: str
) -> None:
    body = msgspec.msgpack.encode(
        {**msgspec.to_builtins(frame({0: [1, 1]}), builtin_types=(bytes,)), **change}
    )
    assert field in _problem(service.push_bytes(body), 400, "malformed")


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff" * 100, b"\x91" * 50_000])
def test_what_is_not_a_frame_is_refused(service: Service, body: bytes) -> None:
    _problem(service.push_bytes(body), 400, "malformed")


def test_only_the_frames_content_type_is_taken(service: Service) -> None:
    response = service.push_bytes(b"{}", content_type="application/json")
    assert wire.CONTENT_TYPE in _problem(response, 415, "content-type")


def test_a_lying_producer_is_a_conflict(service: Service) -> None:
    service.push(frame({0: [5, 5]}))
    assert _problem(service.push(frame({0: [5, 4]}, seq=2)), 409, "shrunk").startswith("counts[1]: ")


def test_the_limit_holds_for_a_body_of_undeclared_length(start_service: Callable[..., Service]) -> None:
    service = start_service(max_body_mib=1)

    # The service may answer and hang up while we still send; then the answer is there to be read.
    parts = urlsplit(service.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.putrequest("POST", "/v1/ingest")
    connection.putheader("Content-Type", wire.CONTENT_TYPE)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    try:
        for _ in range(32):
            chunk = b"\0" * (64 * 1024)
            connection.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        connection.send(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError):
        pass
    response = connection.getresponse()
    assert response.status == 413
    connection.close()
    assert service.push(frame({0: [1, 1]})).status_code == 200


def test_a_declared_length_is_not_trusted(start_service: Callable[..., Service]) -> None:
    service = start_service(max_body_mib=1)
    response = service.push_bytes(b"\0" * (1024 * 1024 + 1))
    _problem(response, 413, "too-large")


def test_a_body_that_trickles_is_given_up(start_service: Callable[..., Service]) -> None:
    service = start_service(body_timeout_s=0.2)
    parts = urlsplit(service.url)
    head = f"POST /v1/ingest HTTP/1.1\r\nHost: x\r\nContent-Type: {wire.CONTENT_TYPE}\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(head.encode() + b"Content-Length: 99\r\n\r\nab")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_the_token_is_required_when_set(start_service: Callable[..., Service]) -> None:
    service = start_service(token="s3cret")
    made = frame({0: [1, 1]})
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cret"}):
        response = service.push(made, **headers)
        assert "MOESCOPE_TOKEN" in _problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert service.push(made, authorization="Bearer s3cret").status_code == 200


def test_every_refusal_is_counted_by_reason(service: Service) -> None:
    service.push(frame({0: [5, 5]}))
    service.push_bytes(b"no")
    service.push(frame({0: [1, 1]}, seq=2))
    service.push(frame({1: [1, 1]}, seq=2, epoch=EPOCH))
    text = service.client.get("/metrics").text
    assert 'moescope_frames_total{reason="",result="accepted"} 1.0' in text
    for reason in ("malformed", "shrunk", "layers_changed"):
        assert f'moescope_frames_total{{reason="{reason}",result="refused"}} 1.0' in text
