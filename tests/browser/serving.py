"""A service on a port that stays the same over restarts, and a simulated large fleet that feeds it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import httpx
from fastapi import FastAPI

from devkit.processes import free_port
from moescope.capture import wire
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, TracePart, encode_part
from moescope.service.api.app import create_app
from moescope.service.serving.server import listen, make_server
from moescope.service.settings import Settings
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Plan
from moescope.service.simulation.routing import Habits
from moescope.service.store.open import open_writer
from tests.quick_apps import quick_apps
from tests.service.trace_parts import part

EPOCH = 1_700_000_000

quick_apps()


class Clock:
    """Unix time that passes only when told to."""

    def __init__(self) -> None:
        self.now = float(EPOCH)

    def __call__(self) -> float:
        return self.now


class Serving:
    """Starts and stops a service at one address.

    Args:
        wrap: puts something around the application, such as a proxy.
    """

    def __init__(
        self, clock: Callable[[], float], wrap: Callable[[FastAPI], Any] | None = None, **settings: Any
    ) -> None:
        self.settings = Settings(**{"port": free_port(), "min_tokens": 1, "store": "none", **settings})
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self._clock = clock
        self._wrap = wrap or (lambda app: app)
        self._stop: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve, with nothing in memory but what a store of the settings has."""
        listener = listen(self.settings)
        keeping = ExitStack()
        writer = keeping.enter_context(open_writer(self.settings, self._clock))
        app = create_app(self.settings, self._clock, writer)
        server = make_server(app)
        server.config.app = self._wrap(app)
        server.config.timeout_graceful_shutdown = 1
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def stop() -> None:
            app.state.stopping = True
            server.should_exit = True
            thread.join(60)
            listener.close()
            keeping.close()
            assert not thread.is_alive()

        self._stop = stop
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline, "the service did not start"
            time.sleep(0.005)

    def stop(self) -> None:
        """End; nothing answers at the address any more."""
        self._stop()
        self._stop = lambda: None

    def push(self, *frames: wire.Frame) -> None:
        """Send frames as a capturer does."""
        headers = {"content-type": wire.CONTENT_TYPE}
        with httpx.Client(base_url=self.url, headers=headers, timeout=60) as client:
            for frame in frames:
                assert client.post("/v1/ingest", content=wire.encode_frame(frame)).status_code == 200

    def get(self, path: str, **params: Any) -> Any:
        """A JSON answer."""
        response = httpx.get(f"{self.url}{path}", params=params, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()


LARGE = Plan(
    habits=Habits(skew=0.4, hot=0.2, hot_moves_s=60, dead=2),
    rank_imbalance=1.5,
    steps_per_s=2.0,  # what time it takes to feed goes with the steps
    uncovered=(60,),
)
"""32 ranks of DeepSeek-V3's shape; its last layer can't be seen."""

TRACE = "traced-request"
"""An id of the request that :func:`feed_large` sends a trace of."""


def feed(serving: Serving, clock: Clock, plan: Plan, seconds: int, step: int = 10) -> Fleet:
    """Let a simulated fleet run for a while, a frame of each rank every ``step`` seconds."""
    fleet = Fleet(plan, int(clock.now) * 10**9)
    for _ in range(0, seconds, step):
        clock.now += step
        serving.push(*fleet.advance(step))
    return fleet


def feed_large(serving: Serving, clock: Clock, seconds: int) -> None:
    """Let the fleet of ``LARGE`` run for a while, and send a trace; the service needs a store."""
    feed(serving, clock, LARGE, seconds)
    push_traces(serving, part(1, 30, name=TRACE, who={"server": LARGE.server, "model": LARGE.model}))


def push_traces(serving: Serving, *parts: TracePart) -> None:
    """Send traces as a capturer does."""
    for item in parts:
        answer = httpx.post(
            f"{serving.url}/v1/traces",
            content=encode_part(item),
            headers={"content-type": TRACE_CONTENT_TYPE},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
