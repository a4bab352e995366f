"""Endpoints that are anything but a service: each listens on a port of its own and misbehaves in one way."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

Behaviour = Callable[[socket.socket], None]


@contextlib.contextmanager
def endpoint(behaviour: Behaviour) -> Iterator[str]:
    """A URL whose connections are given to `behaviour`, each in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                stack.callback(connection.close)
                threading.Thread(target=_quietly, args=(behaviour, connection), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _quietly(behaviour: Behaviour, connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        behaviour(connection)


def silent(connection: socket.socket) -> None:
    """Takes everything and never answers."""
    while connection.recv(65536):
        pass


def deaf(connection: socket.socket) -> None:
    """Is connected to and reads nothing: the sender's socket fills."""
    threading.Event().wait(60)


def resetting(connection: socket.socket) -> None:
    """Breaks the connection with RST in mid-request."""
    connection.recv(100)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def answering(reply: bytes) -> Behaviour:
    """Answers each request with these bytes, whatever they are."""

    def behave(connection: socket.socket) -> None:
        connection.recv(1 << 20)
        connection.sendall(reply)
        connection.close()

    return behave


def endless(connection: socket.socket) -> None:
    """Says yes, and then goes on talking."""
    connection.recv(1 << 20)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


def dripping(connection: socket.socket) -> None:
    """Says yes, and then a byte now and then."""
    connection.recv(1 << 20)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.2)
