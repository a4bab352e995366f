"""A network that fails.

A TCP proxy partitions, refuses, slows down and resets; an HTTP relay behind it doubles and reorders.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self

PIECE: Final = 65536
SMALL_BUFFER: Final = 16384
RESET: Final = struct.pack("ii", 1, 0)


class TcpProxy:
    """Passes bytes on to a port of loopback, and fails when told to.

    A client that keeps one connection open for all its requests meets each injury exactly once: one request
    gets no answer, or half of one.

    Attributes:
        injuries: connections that were broken or went silent, by the fault.
        rate: bytes a second for each connection, towards the target; unlimited if 0.
        reset_share: the share of the pieces, of either direction, that break their connection.
    """

    def __init__(self, target_port: int, seed: int = 0) -> None:
        self.injuries: Counter[str] = Counter()
        self.rate = 0.0
        self.reset_share = 0.0
        self._target_port = target_port
        self._random = random.Random(seed)  # noqa: S311
        self._silent = False
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        self._listener = self._listen(0)
        self._port = int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._hang_up()
        for link in self._all():
            link.close()

    def partition(self) -> None:
        """Nothing passes: connections, new ones too, are accepted and never answered."""
        with self._lock:
            self._silent = True
        for link in self._all():
            link.fall_silent()

    def heal(self) -> None:
        """New connections pass; those that were cut off stay silent, like one whose state was lost."""
        with self._lock:
            self._silent = False

    def refuse(self) -> None:
        """Nobody listens, and connections are reset."""
        self._hang_up()
        for link in self._all():
            link.reset("refused")

    def accept(self) -> None:
        """Listen again."""
        self._listener = self._listen(self._port)

    def breaks(self) -> bool:
        """Whether a piece breaks its connection."""
        return self._random.random() < self.reset_share

    def injured(self, fault: str) -> None:
        """Count a connection that a fault has hit."""
        with self._lock:
            self.injuries[fault] += 1

    def forget(self, link: _Link) -> None:
        """Drop a link that has ended."""
        with self._lock:
            self._links.discard(link)

    def _all(self) -> list[_Link]:
        with self._lock:
            return list(self._links)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                target = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                client.close()
                continue
            link = _Link(self, client, target)
            with self._lock:
                self._links.add(link)
                silent = self._silent
            if silent:
                link.fall_silent()
            link.start()


class _Link:
    """A connection of a client, and its continuation to the target."""

    def __init__(self, proxy: TcpProxy, client: socket.socket, target: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._target = target
        self._lock = threading.Lock()
        self._hit = False

    def start(self) -> None:
        """Pass on, in a thread for each direction."""
        threading.Thread(target=self._pump, args=(self._client, self._target, True), daemon=True).start()
        threading.Thread(target=self._pump, args=(self._target, self._client, False), daemon=True).start()

    def fall_silent(self) -> None:
        """Swallow what comes from the client until it gives up."""
        with self._lock:
            if self._hits("silent"):
                _end(self._target)

    def reset(self, fault: str) -> None:
        """Break it with RST."""
        with self._lock:
            self._reset(fault)

    def close(self) -> None:
        """End it, whatever its state."""
        _end(self._client)
        _end(self._target)

    def _hits(self, fault: str) -> bool:
        if self._hit:
            return False
        self._hit = True
        self._proxy.injured(fault)
        return True

    def _reset(self, fault: str) -> None:
        if self._hits(fault):
            with contextlib.suppress(OSError):
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                self._client.shutdown(socket.SHUT_RD)  # wakes the reader, and sends nothing
            self._client.close()
            _end(self._target)

    def _pump(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(2048 if self._proxy.rate else PIECE):
                if from_client and self._proxy.rate:
                    time.sleep(len(piece) / self._proxy.rate)
                with self._lock:
                    if not self._hit and self._proxy.breaks():
                        self._reset("reset")
                    if not self._hit:
                        sink.sendall(piece)
        if from_client or not self._hit:
            self.close()
            self._proxy.forget(self)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class DisorderlyRelay:
    """Passes frames on over HTTP; in disorder each of them twice, and every other one after its successor.

    Attributes:
        disorder: whether that happens; a frame that is held back is answered at once.
        results: what the service made of each frame that was passed on.
    """

    def __init__(self, target_port: int) -> None:
        self.disorder = False
        self.results: Counter[str] = Counter()
        self._target_port = target_port
        self._lock = threading.Lock()
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                self.held: list[bytes] = []
                self.onward = http.client.HTTPConnection("127.0.0.1", relay._target_port, timeout=30)

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                body = self.rfile.read(size)
                if len(body) < size:
                    self.close_connection = True
                    return
                late, self.held = self.held, []
                if relay.disorder and not late:
                    self.held = [body]
                    status, reply = 200, b"{}"
                else:
                    doubled = [body, *late, body, *late] if relay.disorder else [*late, body]
                    replies = [self.pass_on(each) for each in doubled]
                    status, reply = replies[0]
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def finish(self) -> None:
                try:
                    for each in self.held:
                        self.pass_on(each)
                finally:
                    self.onward.close()
                    super().finish()

            def pass_on(self, body: bytes) -> tuple[int, bytes]:
                headers = {"Content-Type": self.headers["Content-Type"]}
                self.onward.request("POST", self.path, body, headers)
                answer = self.onward.getresponse()
                reply = answer.read()
                relay.note(answer.status, reply)
                return answer.status, reply

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        # The proxy cuts its clients off, which is no error here.
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def note(self, status: int, reply: bytes) -> None:
        """Count an answer of the service."""
        result = str(json.loads(reply).get("result")) if status == 200 else str(status)
        with self._lock:
            self.results[result] += 1
