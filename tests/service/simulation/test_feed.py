"""Feeding a service: what is counted, and what happens where it is not there."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from moescope.capture.wire import encode_frame
from moescope.service.api.app import create_app
from moescope.service.client.http import ServiceUnavailableError
from moescope.service.client.settings import ClientSettings
from moescope.service.serving.server import listen, make_server
from moescope.service.settings import Settings
from moescope.service.simulation.feed import Pace, Poster, Progress, feed
from moescope.service.simulation.plan import Plan
from moescope.service.simulation.routing import Shape
from tests.service.conftest import Service
from tests.service.frames import frame

PLAN = Plan(ranks=3, shape=Shape(layers=2, experts=8, top_k=2))


def test_a_feed_sends_a_frame_of_each_rank_a_round_until_its_time_is_over(
    start_service: Callable[..., Service],
) -> None:
    service = start_service(use_clock=time.time, min_tokens=1)
    rounds: list[Progress] = []
    with closing(Poster(service.url, ClientSettings())) as poster:
        last = feed(PLAN, poster, Pace(interval_s=0.05, duration_s=0.2), rounds.append)
    assert rounds[-1] == last
    assert [progress.frames for progress in rounds] == [3 * n for n in range(1, len(rounds) + 1)]
    assert (last.failed, last.traces, last.problem) == (0, 0, None)
    assert all(progress.elapsed_s < 0.2 for progress in rounds[:-1])
    assert last.elapsed_s >= 0.2


def test_what_the_service_refuses_is_counted_and_said(start_service: Callable[..., Service]) -> None:
    service = start_service(use_clock=time.time, token="a-token-that-nobody-has")
    with closing(Poster(service.url, ClientSettings())) as poster:
        last = feed(PLAN, poster, Pace(0.05, 0.0), lambda _: None)
    assert (last.frames, last.failed) == (0, 3)
    assert "MOESCOPE_TOKEN" in str(last.problem)


def test_a_poster_connects_anew_to_a_service_that_comes_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with closing(Poster(f"http://127.0.0.1:{port}", ClientSettings())) as poster:
        with pytest.raises(ServiceUnavailableError, match="no service answers at"):
            poster.post(encode_frame(frame({0: [1, 1]})))
        settings = Settings(port=port)
        server = make_server(create_app(settings))
        with listen(settings) as listener:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                poster.post(encode_frame(frame({0: [1, 1]})))
            finally:
                server.should_exit = True
                thread.join()
