"""Servers that answer otherwise than the service, or not at all."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


def take_request(peer: socket.socket) -> bytes:
    """Read one request, which may come in pieces; empty once the peer sends no more."""
    taken = b""
    while (end := taken.find(b"\r\n\r\n")) < 0 or len(taken) < end + 4 + _content_length(taken[:end]):
        piece = peer.recv(65536)
        if not piece:
            return b""
        taken += piece
    return taken


def _content_length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0


@contextmanager
def silent_server() -> Iterator[int]:
    """Listens and never answers; yields the port."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@contextmanager
def answering(*pieces: bytes, pause: float = 0.0, hangs_up: bool = False) -> Iterator[str]:
    """Answers each request with these pieces, with a pause after each piece; yields the URL.

    If it ``hangs_up``, a connection has one request only.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    with peer, contextlib.suppress(OSError):
                        while take_request(peer):
                            for piece in pieces:
                                peer.sendall(piece)
                                time.sleep(pause)
                            if hangs_up:
                                break

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
