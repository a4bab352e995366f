"""Queries take turns, and those whose clients gave up are never computed."""

from __future__ import annotations

import inspect
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from moescope.service.api.app import create_app
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from tests.service.conftest import Service
from tests.service.frames import frame

ASK = b"GET /v1/balance HTTP/1.1\r\nHost: x\r\n\r\n"


class Gate:
    """Holds up every query where it reads the state, until it is opened."""

    def __init__(self) -> None:
        self.runs = self.at_once = self.most_at_once = 0
        self.begins, self.open = threading.Semaphore(0), threading.Event()
        self._lock = threading.Lock()

    def around(self, spans: Callable[..., Any]) -> Callable[..., Any]:
        def held(*args: Any) -> Any:
            with self._lock:
                self.runs += 1
                self.at_once += 1
                self.most_at_once = max(self.at_once, self.most_at_once)
            self.begins.release()
            assert self.open.wait(60)
            with self._lock:
                self.at_once -= 1
            return spans(*args)

        return held


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(LiveState, "spans", gate.around(LiveState.spans))
    yield gate
    gate.open.set()


def test_few_queries_are_computed_at_a_time_and_all_are_answered(
    start_service: Callable[..., Service], gate: Gate
) -> None:
    service = start_service(max_queries=2)
    service.push(frame({0: [1, 1]}))
    with ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(httpx.get, f"{service.url}/v1/{kind}", timeout=60)
            for kind in ("balance", "histogram", "view", "stragglers") * 2
        ]
        for _ in range(2):
            assert gate.begins.acquire(timeout=60)
        assert not gate.begins.acquire(timeout=0.3)
        # Others are not held up by queries that wait.
        assert service.client.get("/readyz").status_code == 200
        assert service.push(frame({0: [2, 2]}, seq=2)).status_code == 200
        gate.open.set()
        assert [job.result().status_code for job in asked] == [200] * 8
    assert gate.most_at_once == 2


def test_queries_of_clients_who_gave_up_while_they_waited_are_not_computed(
    start_service: Callable[..., Service], gate: Gate
) -> None:
    service = start_service(max_queries=2)
    service.push(frame({0: [1, 1]}))
    parts = urlsplit(service.url)
    with ExitStack() as stack, ThreadPoolExecutor(1) as threads:
        for _ in range(22):
            client = stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=60))
            client.sendall(ASK)
        for _ in range(2):
            assert gate.begins.acquire(timeout=60)
        stack.close()  # all 22 give up
        patient = threads.submit(httpx.get, f"{service.url}/v1/balance", timeout=60)
        deadline = time.monotonic() + 60
        while connections(parts.port) > 2:  # the service's own client's, and the patient one's
            assert time.monotonic() < deadline, "the service did not see who went"
            time.sleep(0.01)
        gate.open.set()
        assert patient.result().status_code == 200
    assert gate.runs == 3, "the two whose turn it was, and the patient one"


def connections(port: int | None) -> int:
    """Connections to this port that its server has not closed."""
    found = psutil.net_connections("tcp")
    return sum(item.laddr.port == port and item.status != psutil.CONN_LISTEN for item in found if item.laddr)


def test_every_query_of_the_state_takes_a_turn() -> None:
    without = {
        route.path
        for route in create_app(Settings()).routes
        if type(route) is CheckedRoute and not inspect.iscoroutinefunction(route.endpoint)
    }
    # What a baseline is was computed when it was pinned, and the schema is of no state. A trace takes a turn
    # for each of its blocks.
    assert without == {"/v1/baselines", "/v1/baselines/{name}", "/openapi.json"}
