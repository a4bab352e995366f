"""Takes moescope's frames and traces over HTTP as the side service does, and keeps them."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moescope.capture.wire import TRACES_PATH, Frame, decode_frame
from moescope.capture.wire.traces import TracePart, decode_part


class FrameSink:
    """An HTTP server on a free port of this machine.

    Args:
        host: the address that it listens on.

    Attributes:
        frames, traces: what came, in the order of arrival.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.frames: list[Frame] = []
        self.traces: list[TracePart] = []
        frames, traces = self.frames, self.traces

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == TRACES_PATH:
                    traces.append(decode_part(body))
                else:
                    frames.append(decode_frame(body))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Stay quiet."""

        self._host = host
        self._server = ThreadingHTTPServer((host, 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """The server's address, for ``MOESCOPE_ENDPOINT``."""
        return f"http://{self._host}:{self._server.server_port}"

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, tokens: int, timeout: float = 60.0) -> Frame:
        """The first frame with at least this many tokens.

        Raises:
            TimeoutError: none came; the message says how far it went.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.frames and self.frames[-1].tokens >= tokens:
                return self.frames[-1]
            time.sleep(0.05)
        seen = [(frame.tokens, frame.state, frame.state_reason) for frame in self.frames[-1:]]
        raise TimeoutError(f"no frame of {tokens} tokens within {timeout} s; the last: {seen}")

    def wait_for_traces(self, number: int, timeout: float = 60.0) -> list[TracePart]:
        """The parts that have come, as soon as ``number`` traces are whole or the time is over."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if sum(part.part == part.parts - 1 for part in self.traces) >= number:
                break
            time.sleep(0.05)
        return list(self.traces)
