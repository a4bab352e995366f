"""What a question on many deployments makes itself, and what is made beside."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from moescope.service.verdict import desk
from tests.service.conftest import Service
from tests.service.traffic import push_fleet

FLEETS = 5
LATER = "advice is being made, ask again"


def _said(service: Service) -> list[tuple[str, list[str]]]:
    found = service.get("/v1/verdict")["verdicts"]
    return [(item["action"]["words"], item["confidence"]["caveats"]) for item in found]


def test_a_question_on_many_deployments_makes_a_few_advices(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = service.clock.now
    for number in range(FLEETS):
        service.clock.now = begun
        push_fleet(
            service, 7, every=10.0, server=f"fleet-{number}", ranks=8, layers=8, experts=64, hot_rank=2.5
        )
    release, makers, beside = threading.Event(), list[str](), list[int]()
    advise = desk.advise

    def noting(*args: Any) -> Any:
        name = threading.current_thread().name
        makers.append(name)
        if name == "moescope-advice":
            beside.append(sum(thread.name == name for thread in threading.enumerate()))
            assert release.wait(60)
        return advise(*args)

    monkeypatch.setattr(desk, "advise", noting)
    first = _said(service)
    assert sum(name != "moescope-advice" for name in makers) == desk.MOST_FIRSTS // 2
    assert sum(LATER in words for words, _ in first) == FLEETS - desk.MOST_FIRSTS // 2
    assert sum(desk.DRIFT_LATER in caveats for _, caveats in first) == FLEETS - desk.MOST_FIRSTS // 2
    release.set()
    deadline = time.monotonic() + 60
    while any(LATER in words or desk.DRIFT_LATER in caveats for words, caveats in _said(service)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        service.clock.now += desk.KEEP_S
    assert len(makers) >= FLEETS
    assert set(beside) == {1}
