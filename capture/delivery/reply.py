"""Reading an answer within one deadline, however slowly its bytes come."""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any


class TimedResponse(http.client.HTTPResponse):
    """An answer whose head and body together must arrive within the socket's timeout.

    A socket's own timeout begins again with every byte: an answer that comes byte by byte could hold the
    sender's thread for hours.

    Raises:
        TimeoutError: while reading, when the time is over.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()  # nothing was read yet
        self.fp = io.BufferedReader(_Timed(sock))


class _Timed(io.RawIOBase):
    """Reads a socket until the deadline. It keeps the socket open, as `http.client` expects, until closed."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._raw = sock.makefile("rb", buffering=0)
        timeout = sock.gettimeout()
        self._until = None if timeout is None else time.monotonic() + timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._until is not None:
            left = self._until - time.monotonic()
            if left <= 0:
                raise TimeoutError("the answer took too long")
            self._socket.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
