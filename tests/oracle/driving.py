"""The service as a black box: its application in this process, asked through its HTTP API."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from moescope.capture import wire
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, TracePart, encode_part
from moescope.service.api.app import create_app
from moescope.service.settings import Settings
from moescope.service.store.open import open_writer
from tests.quick_apps import quick_apps

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Samples of /metrics by name and labels."""
_SAMPLE = re.compile(r"^([a-z_:]+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')

quick_apps()


@dataclass
class Clock:
    """Unix time that passes only when told to."""

    now: float

    def __call__(self) -> float:
        return self.now


class Box:
    """A service that answers."""

    def __init__(self, client: httpx.AsyncClient, runner: asyncio.Runner, clock: Clock) -> None:
        self._client, self._runner, self.clock = client, runner, clock

    def push(self, frame: wire.Frame) -> str:
        """Send a frame; what the service did with it."""
        return str(self._post(wire.INGEST_PATH, wire.encode_frame(frame), wire.CONTENT_TYPE)["result"])

    def push_trace(self, part: TracePart) -> None:
        """Send a part of a trace."""
        self._post(wire.TRACES_PATH, encode_part(part), TRACE_CONTENT_TYPE)

    def _post(self, path: str, body: bytes, kind: str) -> dict[str, Any]:
        return self._answer(self._client.post(path, content=body, headers={"content-type": kind})).json()

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """The answer to a question; parameters that are None are not asked."""
        asked = {name: value for name, value in params.items() if value is not None}
        answer: dict[str, Any] = self._answer(self._client.get(path, params=asked)).json()
        return answer

    def metrics(self, server: str) -> Series:
        """The samples of one deployment, without its names."""
        text = self._answer(self._client.get("/metrics")).text
        own = {("server", server), ("model", "model")}
        found = {}
        for name, labels, value in _SAMPLE.findall(text):
            named = set(_LABEL.findall(labels))
            if ("server", server) in named:
                found[(name, frozenset(named - own))] = float(value)
        return found

    def _answer(self, request: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            answer: httpx.Response = await request
            return answer

        response = self._runner.run(ask())
        if response.status_code != 200:
            raise AssertionError(f"{response.request.url}: {response.status_code} {response.text}")
        return response


@contextmanager
def running_box(begin: float, store: Path | None = None) -> Iterator[Box]:
    """A service without a minimum of tokens, that shows every series it has; with a store it keeps traces."""
    clock = Clock(begin)
    settings = Settings(
        port=0,
        min_tokens=1,
        metrics_level="layer_expert",
        log_level="error",
        store=None if store is None else str(store),
    )
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        writer = stack.enter_context(open_writer(settings, clock))
        app = create_app(settings, clock, writer)
        lifespan = app.router.lifespan_context(app)
        runner.run(_entered(lifespan))
        stack.callback(lambda: runner.run(lifespan.__aexit__(None, None, None)))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")
        stack.callback(lambda: runner.run(client.aclose()))
        yield Box(client, runner, clock)


async def _entered(lifespan: Any) -> None:
    await lifespan.__aenter__()
