"""A real service in a thread, with a clock that tests turn."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from moescope.capture import wire
from moescope.service.api.app import create_app
from moescope.service.serving.server import address_of, listen, make_server
from moescope.service.settings import Settings
from moescope.service.store.open import open_writer
from moescope.service.store.upkeep import MAINTENANCE_S
from tests.quick_apps import quick_apps

# Most tests have a service of their own: its begin and its end were most of their time.
quick_apps()


@dataclass
class Clock:
    """Unix time that passes only when told to."""

    now: float = 1_700_000_100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Service:
    """A running service and a client of it."""

    url: str
    clock: Clock
    client: httpx.Client = field(repr=False)

    def push(self, frame: wire.Frame, **headers: str) -> httpx.Response:
        return self.push_bytes(wire.encode_frame(frame), **headers)

    def push_bytes(self, body: bytes, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(
            "/v1/ingest", content=body, headers={"content-type": wire.CONTENT_TYPE, **named}
        )

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        response = self.client.get(path, params=params)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a ClickHouse (see store/clickhouse/server.py), without a database."""
    folder = tmp_path_factory.mktemp("clickhouse")
    command = [sys.executable, "-m", "tests.service.store.clickhouse.server", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"clickhouse://127.0.0.1:{server.stdout.readline().strip()}"
        server.kill()


@pytest.fixture(params=["sqlite", "clickhouse"])
def store_setting(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The setting of an empty store, of each kind that there is."""
    if request.param == "sqlite":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('clickhouse')}/test_{uuid.uuid4().hex}"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("MOESCOPE_")]:
        monkeypatch.delenv(name)


def open_service(
    clock: Clock, use_clock: Callable[[], float], maintenance_s: float = MAINTENANCE_S, **settings: Any
) -> tuple[Service, Callable[[], None]]:
    """A running service whose store is maintained at such intervals, and what ends it."""
    # A ClickHouse in a process of the tests may wait for a core.
    chosen = Settings(**{"port": 0, "clickhouse_timeout_s": 60, **settings})
    listener = listen(chosen)
    with ExitStack() as stack:
        stack.enter_context(listener)
        writer = stack.enter_context(open_writer(chosen, use_clock, maintenance_s))
        server = make_server(create_app(chosen, use_clock, writer))
        opened = stack.pop_all()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    client = httpx.Client(base_url=address_of(listener), timeout=60)

    def end() -> None:
        client.close()
        server.should_exit = True
        thread.join(60)
        opened.close()
        assert not thread.is_alive()

    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline, "the service did not start"
        time.sleep(0.005)
    return Service(address_of(listener), clock, client), end


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def start_service(clock: Clock) -> Iterator[Callable[..., Service]]:
    """Start services with given settings; they end with the test."""
    ends: list[Callable[[], None]] = []

    def start(use_clock: Callable[[], float] = clock, **settings: Any) -> Service:
        service, end = open_service(clock, use_clock, **settings)
        ends.append(end)
        return service

    def end_all() -> None:
        while ends:
            ends.pop(0)()

    start.end_all = end_all  # type: ignore[attr-defined]
    yield start
    end_all()


@pytest.fixture
def service(start_service: Callable[..., Service]) -> Service:
    """A service with default settings, but no minimum of tokens."""
    return start_service(min_tokens=1)
