"""Large questions over HTTP: what is refused, what is told to ask again, and that pins are questions too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from moescope.service.live import large
from moescope.service.live.large import LITTLE_BYTES, claim
from moescope.service.live.state import LiveState
from tests.service.conftest import Service
from tests.service.frames import frame

PIN = {"name": "one", "server": "prod", "model": "tiny"}


def claiming(monkeypatch: pytest.MonkeyPatch, nbytes: int, then: Callable[[], object]) -> None:
    """Have every window hold so many bytes of the store."""
    spans = LiveState.spans

    def claimed(*args: Any) -> Any:
        claim(nbytes)
        then()
        return spans(*args)

    monkeypatch.setattr(LiveState, "spans", claimed)


def test_a_question_that_never_fits_is_told_what_to_narrow(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(max_question_mib=20)
    service.push(frame({0: [200, 200]}))
    claiming(monkeypatch, (20 << 20) + 1, lambda: None)
    for answer in (service.client.get("/v1/balance"), service.client.post("/v1/baselines", json=PIN)):
        assert answer.status_code == 400
        assert answer.json()["type"] == "urn:moescope:problem:too-large"
        assert "21 MiB of what the store has, 20 are allowed (max_question_mib)" in answer.json()["detail"]
    monkeypatch.undo()
    assert service.client.get("/v1/balance").status_code == 200


@pytest.mark.parametrize("pins", [False, True])
def test_one_whose_turn_does_not_come_is_told_to_ask_again(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, pins: bool
) -> None:
    monkeypatch.setattr(large, "WAIT_S", 0.1)
    service = start_service()
    service.push(frame({0: [200, 200]}))
    begun, go_on = threading.Event(), threading.Event()

    def held() -> None:
        begun.set()
        assert go_on.wait(60)

    claiming(monkeypatch, LITTLE_BYTES + 1, held)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(httpx.get, f"{service.url}/v1/balance", timeout=60)
        assert begun.wait(60)
        second = service.client.post("/v1/baselines", json=PIN) if pins else service.client.get("/v1/view")
        assert second.status_code == 503
        assert second.json()["type"] == "urn:moescope:problem:busy"
        assert second.headers["retry-after"] == "5"
        go_on.set()
        assert first.result().status_code == 200
    assert service.client.get("/v1/balance").status_code == 200
