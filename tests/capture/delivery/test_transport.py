"""The transport against real sockets: answers byte by byte, what is no answer, dropped connections."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from moescope.capture.delivery.transport import DeliveryError, HttpTransport
from tests.capture.servers import answering, silent_server, take_request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: "


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 60],
        [OK + b"200\r\n\r\n", *[b" "] * 200],
    ],
    ids=["head", "body"],
)
def test_an_answer_that_drips_holds_the_sender_only_for_its_timeout(pieces: list[bytes]) -> None:
    with answering(*pieces, pause=0.06) as url:
        transport = HttpTransport(url, None, timeout=0.15)
        with pytest.raises(DeliveryError) as caught:
            transport.post(b"x" * 100)
    assert caught.value.kind == "TimeoutError"  # after all pieces it would be another one


def test_each_answer_has_the_whole_timeout() -> None:
    with answering(OK + b"2\r\n\r\n", b"{", b"}", pause=0.04) as url:
        transport = HttpTransport(url, None, timeout=0.6)
        for _ in range(6):  # six answers take longer than the timeout
            transport.post(b"x")
            time.sleep(0.06)  # until the last pause is over
        transport.close()


def test_a_limit_of_a_proxy_is_told_from_the_services_own() -> None:
    page = b"<html><h1>413 Request Entity Too Large</h1></html>"
    ours = b'{"type": "urn:moescope:problem:too-large", "detail": "32 MiB at most"}'
    for body, expected in ((page, True), (ours, False), (b"", True)):
        head = b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n" % len(body)
        with answering(head + body) as url:
            transport = HttpTransport(url, None)
            with pytest.raises(DeliveryError) as caught:
                transport.post(b"x" * 100)
            transport.close()
        assert caught.value.kind == "413"
        assert ("client_max_body_size" in str(caught.value)) is expected


@pytest.mark.parametrize(
    "reply",
    [
        OK + b"13\r\n\r\n<html></html>",
        OK + b"2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"{" * 0x10000,
        OK + b"20000\r\n\r\n" + b"[" * 20_000,  # it was a RecursionError, after which nobody backed off
    ],
    ids=["a page", "a list", "without end", "nested"],
)
def test_what_is_no_receipt_is_no_delivery(reply: bytes) -> None:
    with answering(reply) as url:
        transport = HttpTransport(url, None)
        with pytest.raises(DeliveryError, match=r"no moescope service: 200 with") as caught:
            transport.post(b"x")
        transport.close()
    assert caught.value.permanent
    assert len(str(caught.value)) < 700


def test_an_answer_without_a_body_is_a_receipt() -> None:
    with answering(b"HTTP/1.1 204 No Content\r\n\r\n") as url:
        transport = HttpTransport(url, None)
        transport.post(b"x")
        transport.close()


def test_a_slow_service_holds_the_sender_only_for_its_timeout() -> None:
    with silent_server() as port:
        transport = HttpTransport(f"http://127.0.0.1:{port}", None, timeout=0.1)
        with pytest.raises(DeliveryError) as caught:
            transport.post(b"x" * 100)
    assert caught.value.kind == "TimeoutError"
    assert not caught.value.permanent


def test_a_name_that_does_not_resolve_is_a_delivery_error() -> None:
    with pytest.raises(DeliveryError, match="can't be reached"):
        HttpTransport("http://no.such.host.invalid:1", None).post(b"")


def test_an_answer_that_is_no_http_is_a_delivery_error() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def babble() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(1024)
                peer.sendall(b"220 smtp ready\r\n\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(DeliveryError, match="can't be reached"):
            HttpTransport(f"http://127.0.0.1:{server.getsockname()[1]}", None).post(b"")
        thread.join()


@contextmanager
def dropping(*requests_per_connection: int) -> Iterator[tuple[str, list[bytes]]]:
    """Answers so many requests of each connection, then drops it; after the last one nobody listens."""
    answer, seen = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", list[bytes]()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def serve() -> None:
            with server, contextlib.suppress(OSError):
                for requests in requests_per_connection:
                    peer, _ = server.accept()
                    with peer:
                        for _ in range(requests):
                            seen.append(take_request(peer))
                            peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", seen
        thread.join()


def test_a_connection_that_was_dropped_while_idle_costs_no_delivery() -> None:
    # A proxy or the service closes an idle connection after a minute or so. Without a second try the last
    # trace before a shutdown would be lost, and any other late.
    with dropping(2, 1, 1) as (url, seen):
        transport = HttpTransport(url, None)
        for _ in range(4):
            transport.post(b"x")
            time.sleep(0.02)  # until the connection has ended
        transport.close()
    assert len(seen) == 4


def test_a_service_that_has_gone_is_tried_once_more_and_not_again() -> None:
    with dropping(1, 0) as (url, seen):
        transport = HttpTransport(url, None)
        transport.post(b"x")
        time.sleep(0.02)
        with pytest.raises(DeliveryError) as caught:
            transport.post(b"x")  # the second connection ends without an answer
        assert not caught.value.permanent
        with pytest.raises(DeliveryError):
            transport.post(b"x")  # and there is no third
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("endpoint", "host", "port"),
    [
        ("http://[::1:4321]", "::1:4321", 80),
        ("https://[fd00::10]", "fd00::10", 443),
        ("http://[::1]:4321", "::1", 4321),
        ("http://scope", "scope", 80),
    ],
)
def test_the_end_of_an_ipv6_address_is_no_port(endpoint: str, host: str, port: int) -> None:
    """http.client takes it for one, and then the token goes to another host or port."""
    connection = HttpTransport(endpoint, "secret")._connect()
    assert (connection.host, connection.port) == (host, port)


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "\u00e4" * 70, "."])
def test_a_name_that_can_not_be_asked_for_is_a_delivery_error(host: str) -> None:
    with pytest.raises(DeliveryError, match="can't be reached") as caught:
        HttpTransport(f"http://{host}:1", None).post(b"x")
    assert not caught.value.permanent


def test_a_refusal_that_is_nested_without_end_is_a_refusal() -> None:
    reply = b"HTTP/1.1 503 Busy\r\nContent-Length: 20000\r\n\r\n" + b"[" * 20_000
    with (
        answering(reply) as url,
        closing(HttpTransport(url, None)) as transport,
        pytest.raises(DeliveryError, match="answered 503") as caught,
    ):
        transport.post(b"x")
    assert (caught.value.kind, caught.value.permanent) == ("503", False)
