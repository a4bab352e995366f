"""The sender against real sockets: a service that is absent or slow, refuses, or is back after an outage."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from moescope.capture.delivery.backoff import FIRST, LONGEST
from moescope.capture.delivery.transport import HttpTransport
from moescope.capture.frames.builder import FrameBuilder
from moescope.capture.frames.sender import MAX_MARKED, FrameSender
from moescope.capture.frames.snapshot import Snapshot
from moescope.capture.step.totals import Totals
from moescope.capture.wire import CONTENT_TYPE, DROPS, Frame, MoeLayer, Producer, decode_frame
from tests.capture.servers import silent_server

Answer = Callable[[], tuple[int, bytes]]


class Service:
    """A real HTTP server that keeps what it gets and answers as the test says."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Answer = lambda: (200, b"{}")
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, reply = service.answer()
                if status == 200:
                    service.frames.append(decode_frame(body))
                service.headers.append(dict(self.headers))
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    yield running
    running.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def snapshot(tokens: int, marked: bool = False) -> Snapshot:
    flat = np.array([tokens, tokens, 0, 0, tokens, 0], dtype=np.int64)
    return Snapshot(flat, Totals(tokens, steps=1), None, time.time_ns(), marked=marked)


class Source:
    def __init__(self) -> None:
        self.put_off = 0
        self.ready: list[Snapshot] = []
        self.left_at_flush: Snapshot | None = None
        self.late = 0

    @property
    def is_behind(self) -> bool:
        return bool(self.ready) or self.late > 0

    def collect(self) -> Snapshot | None:
        if self.late:
            self.late -= 1
            return None
        return self.ready.pop(0) if self.ready else None

    def flush(self) -> None:
        if self.left_at_flush is not None:
            self.ready.append(self.left_at_flush)


class Bench:
    def __init__(self, endpoint: str, token: str | None = None, timeout: float = 0.3) -> None:
        self.now = 0.0
        self.source = Source()
        builder = FrameBuilder(
            Producer(server="s", model="m", dp_rank=0, dp_size=1), 1, [MoeLayer(0, 2, 2)], [], None
        )
        self.transport = HttpTransport(endpoint, token, timeout)
        self.sender = FrameSender(self.source, builder, self.transport, 0.05, lambda: self.now)

    def tick(self, tokens: int | None = None, marked: bool = False) -> None:
        if tokens is not None:
            self.source.ready.append(snapshot(tokens, marked))
        self.sender.tick()


OpenBench = Callable[..., Bench]


@pytest.fixture
def open_bench() -> Iterator[OpenBench]:
    benches: list[Bench] = []

    def opened(endpoint: str, token: str | None = None, timeout: float = 0.3) -> Bench:
        benches.append(Bench(endpoint, token, timeout))
        return benches[-1]

    yield opened
    for bench in benches:
        bench.transport.close()


def test_sends_each_snapshot_once_with_rising_seq(service: Service, open_bench: OpenBench) -> None:
    bench = open_bench(service.endpoint, token="s3cret")
    for tokens in (1, 2, 3):
        bench.tick(tokens)
        bench.tick()
    assert [(frame.seq, frame.tokens) for frame in service.frames] == [(1, 1), (2, 2), (3, 3)]
    assert service.headers[0]["Content-Type"] == CONTENT_TYPE
    assert service.headers[0]["Authorization"] == "Bearer s3cret"


def test_an_idle_producer_repeats_its_last_totals_as_a_heartbeat(
    service: Service, open_bench: OpenBench
) -> None:
    bench = open_bench(service.endpoint)
    bench.tick(7)
    for _ in range(12):
        bench.now += 1
        bench.tick()
    assert [(frame.seq, frame.tokens) for frame in service.frames] == [(1, 7), (2, 7), (3, 7)]


def test_an_absent_service_costs_no_counts_and_one_line_a_minute(
    caplog: pytest.LogCaptureFixture, open_bench: OpenBench
) -> None:
    port = free_port()
    bench = open_bench(f"http://127.0.0.1:{port}")
    with caplog.at_level(logging.INFO, "vllm.moescope"):
        for tokens in range(1, 300):
            bench.now += 0.2
            bench.tick(tokens)
    assert len(caplog.records) == 1
    assert "can't be reached" in caplog.records[0].message
    assert "counts are kept" in caplog.records[0].message


def test_after_an_outage_the_newest_totals_arrive_and_failures_are_counted(
    service: Service, open_bench: OpenBench
) -> None:
    bench = open_bench(service.endpoint)
    service.answer = lambda: (503, b"")
    for tokens in range(1, 50):
        bench.now += 1
        bench.tick(tokens)
    service.answer = lambda: (200, b"{}")
    bench.now += 60
    bench.tick(50)
    (frame,) = service.frames
    assert frame.tokens == 50
    assert frame.drops["sends_failed"] == frame.seq - 1 > 0
    assert frame.drops["snapshots_superseded"] == 49
    assert set(frame.drops) <= DROPS


@pytest.mark.parametrize("stops", [False, True])
def test_a_marked_snapshot_is_sent_after_an_outage_too(
    service: Service, open_bench: OpenBench, stops: bool
) -> None:
    """Counts of the former weights would become those of the new ones without it."""
    bench = open_bench(service.endpoint)
    service.answer = lambda: (503, b"")
    for tokens, marked in ((1, False), (2, True), (3, False), (4, True), (5, False), (6, False)):
        bench.now += 1
        bench.tick(tokens, marked)
    service.answer = lambda: (200, b"{}")
    bench.now += 60
    if stops:
        bench.sender._last_tick()
    else:
        for _ in range(4):
            bench.tick()
    assert [frame.tokens for frame in service.frames] == [2, 4, 6]
    assert [frame.ended for frame in service.frames] == [False, False, stops]
    assert service.frames[-1].drops["snapshots_superseded"] == 3


def test_marked_snapshots_that_wait_are_bounded_and_the_newest_stay(
    service: Service, open_bench: OpenBench
) -> None:
    bench = open_bench(service.endpoint)
    service.answer = lambda: (503, b"")
    for tokens in range(20):
        bench.tick(tokens, marked=True)
    service.answer = lambda: (200, b"{}")
    bench.now += 60
    for _ in range(20):
        bench.tick()
    assert [frame.tokens for frame in service.frames] == list(range(20 - MAX_MARKED, 20))
    assert service.frames[-1].drops["snapshots_superseded"] == 20 - MAX_MARKED
    bench.now += 60
    bench.tick()
    assert not bench.sender._pending


def test_retries_back_off_with_jitter(service: Service, open_bench: OpenBench) -> None:
    service.answer = lambda: (503, b"")
    bench = open_bench(service.endpoint)
    bench.tick(1)
    attempts = []
    for _ in range(8000):
        bench.now += 0.05
        before = len(service.headers)
        bench.tick()
        if len(service.headers) > before:
            attempts.append(bench.now)
    gaps = np.diff(attempts)
    assert gaps[0] <= 2 * FIRST + 0.06  # after the second failure
    assert gaps.max() <= LONGEST + 0.06
    at_most = gaps[2:]  # with jitter from 0 to the longest; without it all would be the longest
    assert 24 < len(at_most) < 160
    assert at_most.min() < LONGEST / 2 < at_most.max()


def test_a_refusal_says_why_and_is_not_hammered(
    service: Service, caplog: pytest.LogCaptureFixture, open_bench: OpenBench
) -> None:
    problem = json.dumps(
        {"title": "no", "detail": "the frame has wire version 1, this service reads version 2"}
    )
    service.answer = lambda: (415, problem.encode())
    bench = open_bench(service.endpoint)
    for tokens in range(1, 100):
        bench.now += 0.1
        bench.tick(tokens)
    assert len(service.headers) == 1
    assert "answered 415: the frame has wire version 1, this service reads version 2" in caplog.text


def test_the_thread_sends_and_stop_flushes_what_is_left(service: Service, open_bench: OpenBench) -> None:
    bench = open_bench(service.endpoint)
    bench.source.left_at_flush = snapshot(9)
    bench.sender.start()
    bench.sender.stop(timeout=60)
    assert [(frame.tokens, frame.ended) for frame in service.frames] == [(9, True)]
    assert not any(thread.name == "moescope-sender" for thread in threading.enumerate())


def test_stop_waits_a_moment_for_copies_that_have_not_arrived(
    service: Service, open_bench: OpenBench
) -> None:
    bench = open_bench(service.endpoint)
    bench.source.left_at_flush = snapshot(9)
    bench.source.ready.append(snapshot(5))
    bench.source.late = 3
    bench.sender.start()
    bench.sender.stop()
    assert service.frames[-1].tokens == 9


def test_stop_does_not_wait_for_a_service_that_hangs(open_bench: OpenBench) -> None:
    with silent_server() as port:
        bench = open_bench(f"http://127.0.0.1:{port}", timeout=30)
        bench.source.left_at_flush = snapshot(1)
        bench.sender.start()
        started = time.monotonic()
        bench.sender.stop(timeout=0.2)
        assert time.monotonic() - started < 15


def test_the_thread_survives_a_source_that_fails(
    service: Service, caplog: pytest.LogCaptureFixture, open_bench: OpenBench
) -> None:
    bench = open_bench(service.endpoint)
    broken = threading.Event()

    def fail() -> Snapshot | None:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("device lost")
        return snapshot(5) if not service.frames else None

    bench.source.collect = fail  # type: ignore[method-assign]
    bench.sender.start()
    deadline = time.monotonic() + 60
    while not service.frames and time.monotonic() < deadline:
        time.sleep(0.01)
    bench.sender.stop()
    assert [(frame.tokens, frame.ended) for frame in service.frames] == [(5, False), (5, True)]
    assert "device lost" in caplog.text
