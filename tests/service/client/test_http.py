"""Asking a service: addresses that mislead, and answers that are none."""

from __future__ import annotations

import pytest

from moescope.service.client.http import (
    Connection,
    ServiceUnavailableError,
    address,
    get_json,
    get_json_lines,
    send_json,
)
from moescope.service.client.settings import ClientSettings
from tests.capture.servers import answering
from tests.waiting import PATIENCE_S


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://[::1]", "::1", 80),
        ("http://[::1:4321]", "::1:4321", 80),
        ("https://[fd00::10]", "fd00::10", 443),
    ],
)
def test_the_end_of_an_ipv6_address_is_no_port(url: str, host: str, port: int) -> None:
    """http.client takes it for one, and then the token goes to another host or port."""
    connection = Connection(url, ClientSettings(), 1.0)._connection
    assert (connection.host, connection.port) == (host, port)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://me:secret@host", "no user or password"),
        ("http://host/?a=b", "no query"),
        ("http://host/#a", "no query"),
        ("http://host/?", "no query"),
        ("http://ho st", "not an http address"),
        ("http://host/\n", "not an http address"),
        ("host:9890", "not an http address"),
    ],
)
def test_what_is_no_address_is_told(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        address(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("body", [b"[" * 20_000, b"<html></html>", b"\xff", b"9" * 5000])
def test_an_answer_that_is_no_json_is_not_a_services(body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    with answering(head + body) as url, pytest.raises(ServiceUnavailableError, match="not a moescope"):
        get_json(url, "/v1/ranks", {})
    with answering(head + body) as url, pytest.raises(ServiceUnavailableError, match="not a moescope"):
        send_json("POST", url, "/v1/baselines", {}, {})


def test_a_refusal_that_is_nested_without_end_is_a_refusal() -> None:
    reply = b"HTTP/1.1 503 Busy\r\nContent-Length: 20000\r\n\r\n" + b"[" * 20_000
    with answering(reply) as url, pytest.raises(ServiceUnavailableError, match="answers 503"):
        get_json(url, "/v1/ranks", {})


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def lines(
    body: bytes, head: bytes = CHUNKED, timeout_s: float = 10.0, hangs_up: bool = False
) -> list[object]:
    with answering(head + body, hangs_up=hangs_up) as url:
        return list(get_json_lines(url, "/v1/requests/unusual", {"limit": 3}, timeout_s))


def test_lines_come_as_objects_wherever_their_chunks_end() -> None:
    assert lines(b'9\r\n{"a":1}\n{\r\n6\r\n"b":2}\r\n1\r\n\n\r\n0\r\n\r\n') == [{"a": 1}, {"b": 2}]


def test_lines_that_are_cut_off_or_none_are_told() -> None:
    begun = b'9\r\n{"a":1}\n{\r\n6\r\n"b"'
    with pytest.raises(ServiceUnavailableError, match=r"no service answers.*timed out"):
        lines(begun, timeout_s=0.2)
    with pytest.raises(ServiceUnavailableError, match="no service answers"):
        lines(begun, timeout_s=PATIENCE_S, hangs_up=True)
    with pytest.raises(ServiceUnavailableError, match="not a moescope"):
        lines(b"6\r\n<html>\r\n0\r\n\r\n")
    refusal = b'HTTP/1.1 404 Not Found\r\nContent-Length: 18\r\n\r\n{"detail": "gone"}'
    with pytest.raises(ServiceUnavailableError, match="gone"):
        lines(b"", refusal)
