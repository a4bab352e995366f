"""The report of a worker that doesn't count: what it says, how often, and that it ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from unittest import mock

import pytest

from devkit.frame_sink import FrameSink
from moescope.capture.delivery.backoff import Backoff
from moescope.capture.delivery.transport import HttpTransport
from moescope.capture.off.report import OffReport, last_word, off_report
from moescope.capture.protocol import MAX_TEXT
from moescope.capture.settings.environment import CaptureSettings
from tests.capture.servers import answering
from tests.waiting import wait_until

WHO: dict[str, str | int] = {"server": "prod", "model": "tiny", "dp_rank": 1, "dp_size": 2, "tp_size": 4}


@contextlib.contextmanager
def reporting(report: OffReport) -> Iterator[OffReport]:
    report.start()
    try:
        yield report
    finally:
        report.close()


def test_a_frame_says_who_it_is_and_why_it_does_not_count() -> None:
    sink = FrameSink()
    with reporting(off_report(WHO, "x" * 2000, CaptureSettings(endpoint=sink.url))):
        wait_until(lambda: sink.frames, "no frame")
    frame = sink.frames[0]  # the sink has checked it as the service does
    assert (frame.state, frame.state_reason) == ("disabled", "x" * MAX_TEXT)
    assert (frame.producer.server, frame.producer.dp_rank, frame.producer.tp_size) == ("prod", 1, 4)
    assert (frame.layers, frame.tokens, frame.steps, frame.counts) == ([], 0, 0, b"")
    assert abs(time.time_ns() - frame.captured_at_ns) < 60e9


def test_it_is_repeated_in_one_epoch_until_it_is_closed() -> None:
    sink = FrameSink()
    with reporting(OffReport(WHO, "why", HttpTransport(sink.url, None), repeat=0.01)):
        wait_until(lambda: len(sink.frames) >= 5, "not repeated")
    frames = list(sink.frames)
    assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
    assert len({frame.epoch for frame in frames}) == 1
    assert [frame.ended for frame in frames] == [False] * (len(frames) - 1) + [True]
    time.sleep(0.1)
    assert len(sink.frames) == len(frames)
    assert not [thread for thread in threading.enumerate() if thread.name == "moescope-off"]


def test_a_service_that_refuses_is_asked_more_rarely() -> None:
    refusal = b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\n{}"
    with answering(refusal) as url:
        transport = HttpTransport(url, None)
        assert OffReport(WHO, "why", transport, backoff=Backoff(1.0, 60.0)).send() >= 60
        transport.close()


def test_it_goes_on_after_any_fault(caplog: pytest.LogCaptureFixture) -> None:
    sink = FrameSink()
    transport = HttpTransport(sink.url, None)
    post, calls = transport.post, 0

    def faulty(body: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("a fault")
        post(body)

    with mock.patch.object(transport, "post", faulty):
        report = OffReport(WHO, "why", transport, repeat=0.01, backoff=Backoff(0.01, 0.01))
        with reporting(report):
            wait_until(lambda: sink.frames, "no frame after the fault")
    assert "the service isn't told that capture is off" in caplog.text


def test_without_a_thread_it_is_said_once() -> None:
    sink = FrameSink()
    report = off_report(WHO, "why", CaptureSettings(endpoint=sink.url))
    with mock.patch.object(report._thread, "start", side_effect=RuntimeError("can't start new thread")):
        report.start()
    assert [frame.state for frame in sink.frames] == ["disabled"]
    report.close()


def test_the_last_word_is_said_before_it_returns_and_waits_for_nobody() -> None:
    sink = FrameSink()
    last_word(WHO, "an unknown layout", CaptureSettings(endpoint=sink.url))
    assert sink.frames[0].state_reason == "an unknown layout"
    last_word(WHO, "an unknown layout", CaptureSettings(endpoint="http://127.0.0.1:9"))


BLOCKED = """
import sys
for name in ("msgspec", "numpy", "torch", "vllm"):
    sys.modules[name] = None
from types import SimpleNamespace
from moescope.capture.off.report import last_word
from moescope.capture.seam.identity import guess_identity
from moescope.capture.settings.environment import CaptureSettings
settings = CaptureSettings.from_environment({"MOESCOPE_ENDPOINT": sys.argv[1], "MOESCOPE_SERVER": "prod"})
last_word(guess_identity(SimpleNamespace(), settings), "ImportError: msgspec", settings)
"""


def test_it_needs_nothing_but_the_standard_library() -> None:
    sink = FrameSink()
    subprocess.run([sys.executable, "-c", BLOCKED, sink.url], check=True, timeout=120)
    assert sink.frames[0].state_reason == "ImportError: msgspec"
    assert sink.frames[0].producer.model == "unknown"
