"""An answer is read within one deadline, whole or not at all."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from moescope.capture.delivery.reply import TimedResponse


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection: the service's and the sender's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_an_answer_that_arrives_in_pieces_is_read_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    service, sender = pair
    sender.settimeout(60)
    service.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
    rest = threading.Timer(0.05, service.sendall, [b"ngth: 5\r\n\r\nhello"])
    rest.start()
    response = TimedResponse(sender)
    response.begin()
    assert (response.status, response.read()) == (200, b"hello")
    rest.join()


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"])
def test_a_byte_now_and_then_does_not_begin_the_time_anew(
    pair: tuple[socket.socket, socket.socket], head: bytes
) -> None:
    service, sender = pair
    sender.settimeout(0.3)
    service.sendall(head)
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.02):
            service.sendall(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    try:
        response = TimedResponse(sender)
        with pytest.raises(TimeoutError):
            _read(response)
    finally:
        over.set()
        thread.join()
    assert time.monotonic() - began > 0.25


def _read(response: TimedResponse) -> bytes:
    response.begin()
    return response.read()


def test_without_a_timeout_it_waits_for_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    service, sender = pair
    service.sendall(b"HTTP/1.1 200 OK\r\n\r\nall")
    service.shutdown(socket.SHUT_WR)
    response = TimedResponse(sender)
    response.begin()
    assert response.read() == b"all"
