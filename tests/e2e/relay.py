"""A relay between capturer and service that doubles, holds back and reorders real frames, or is down."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from moescope.capture.wire import CONTENT_TYPE, INGEST_PATH, TRACES_PATH, Frame, decode_frame
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE


class Relay:
    """Listens on `port` and passes frames on to the service.

    Attributes:
        target_port: the service's port.
        disorder: while set, each frame goes on twice, and every other one only after its successor.
        down: while set, connections are answered with 503.
        frames: every frame that came in, in order.
        frame_bodies: the bytes of each of these frames.
        trace_bodies: every part of a trace that came in, in order.
        replies: the status and body of each answer of the service.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.disorder = False
        self.down = False
        self.frames: list[Frame] = []
        self.replies: list[tuple[int, bytes]] = []
        self.frame_bodies: list[bytes] = []
        self.trace_bodies: list[bytes] = []
        self._held: list[bytes] = []
        self._lock = threading.Lock()
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == TRACES_PATH:
                    status, reply = relay.take_trace(body)
                else:
                    status, reply = relay.take(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        """What the capturer is told as the service's address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, body: bytes) -> tuple[int, bytes]:
        """Take one frame and pass on what the mode says."""
        with self._lock:
            if self.down:
                return 503, b"down"
            self.frames.append(decode_frame(body))
            self.frame_bodies.append(body)
            if not self.disorder:
                held, self._held = self._held, []
                return [self._pass_on(each) for each in [*held, body]][-1]
            if not self._held:
                self._held.append(body)
                return 200, b"{}"
            held, self._held = self._held, []
            replies = [self._pass_on(each) for each in (body, *held, body, *held)]
            return replies[0]

    def take_trace(self, body: bytes) -> tuple[int, bytes]:
        """Take a part of a trace and pass it on, twice in disorder."""
        with self._lock:
            if self.down:
                return 503, b"down"
            self.trace_bodies.append(body)
            for _ in range(self.disorder):
                self._pass_on(body, TRACES_PATH, TRACE_CONTENT_TYPE)
            return self._pass_on(body, TRACES_PATH, TRACE_CONTENT_TYPE)

    def _pass_on(
        self, body: bytes, path: str = INGEST_PATH, content_type: str = CONTENT_TYPE
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.target_port, timeout=5)
        try:
            connection.request("POST", path, body, {"Content-Type": content_type})
            response = connection.getresponse()
            reply = response.status, response.read()
        except OSError as error:
            reply = 502, repr(error).encode()
        finally:
            connection.close()
        self.replies.append(reply)
        return reply
