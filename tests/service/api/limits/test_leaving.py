"""A computation whose client left ends at its next step, and its turn is free."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, encode_part
from moescope.service.api.limits import turns as turns_module
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.wanted import wanted_until
from moescope.service.windows.stack import Stacker
from tests.service.conftest import Service
from tests.service.frames import frame, producer
from tests.service.trace_parts import part

RANKS = 16
TOKENS = 40_000  # five reads
ASKED = {"coactivation": "/v1/coactivation?layer=0", "balance": "/v1/balance"}


class Steps:
    """Holds up the steps of a computation until it is opened, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self.begun, self.open = threading.Semaphore(0), threading.Event()
        self._lock = threading.Lock()

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def held(*args: Any, **named: Any) -> Any:
            with self._lock:
                self.count += 1
            self.begun.release()
            assert self.open.wait(60)
            return step(*args, **named)

        return held


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(WorkerTrace, "read", steps.around(WorkerTrace.read))
    monkeypatch.setattr(Stacker, "add", steps.around(Stacker.add))
    return steps


@pytest.fixture
def lefts(monkeypatch: pytest.MonkeyPatch) -> list[threading.Event]:
    """The flag of each query that is under way, or was."""
    made: list[threading.Event] = []

    def noted(left: threading.Event) -> Any:
        made.append(left)
        return wanted_until(left)

    monkeypatch.setattr(turns_module, "wanted_until", noted)
    return made


@pytest.fixture
def service(start_service: Callable[..., Service], store_setting: str) -> Service:
    service = start_service(store=store_setting, max_queries=2)
    for rank in range(RANKS):
        pushed = service.push(frame({0: [4, 4]}, who=producer(dp_rank=rank, dp_size=RANKS)))
        assert pushed.status_code == 200
    layers, ids = [MoeLayer(0, 2, 1)], np.zeros((TOKENS, 1), np.uint8)
    body = encode_part(part(1, experts=[ids], layers=layers, tokens=TOKENS))
    sent = service.client.post("/v1/traces", content=body, headers={"content-type": TRACE_CONTENT_TYPE})
    assert sent.status_code == 200
    return service


@pytest.mark.parametrize("kind", ASKED)
def test_queries_whose_clients_leave_end_and_hold_up_nobody(
    service: Service, steps: Steps, lefts: list[threading.Event], kind: str
) -> None:
    parts = urlsplit(service.url)
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=60))
            client.sendall(f"GET {ASKED[kind]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        for _ in range(2):
            assert steps.begun.acquire(timeout=60)
    running = lefts[:]
    assert len(running) == 2
    for left in running:
        assert left.wait(60), "the service hears that a client left while its query is computed"
    steps.open.set()
    # In the order of turns it comes after all that those clients asked.
    counts = [steps.count]
    for _ in range(2):
        assert httpx.get(f"{service.url}/v1/ranks", timeout=60).status_code == 200
        counts.append(steps.count)
    assert counts[1] - (counts[2] - counts[1]) == 2, "of the two under way the step that was held up"


@pytest.mark.parametrize(("kind", "whole"), [("coactivation", 5), ("balance", RANKS)])
def test_the_same_queries_have_as_many_steps_when_their_clients_stay(
    service: Service, steps: Steps, kind: str, whole: int
) -> None:
    steps.open.set()
    assert httpx.get(f"{service.url}{ASKED[kind]}", timeout=60).status_code == 200
    assert steps.count >= whole
