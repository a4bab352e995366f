"""What was planted in a simulated fleet is what the service says of it, at all doors in the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from moescope.service.verdict.model import Kind
from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.traffic import push_fleet
from tests.service.verdict.planted import PLANTED, Planted, named

EXIT_CODES = {"ok": 0, "info": 0, "warning": 3, "critical": 4}


def test_every_kind_is_planted() -> None:
    assert {item.kind for item in PLANTED} == set(get_args(Kind))


@pytest.mark.parametrize("planted", PLANTED, ids=named)
def test_api_and_command_line_say_what_was_planted(
    start_service: Callable[..., Service], planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(store="none")
    push_fleet(service, planted.rounds, every=10.0, **planted.fields)
    service.clock.now += planted.silent_s
    answer = service.get("/v1/verdict")
    [verdict] = answer["verdicts"]
    assert (verdict["kind"], verdict["severity"]) == (planted.kind, planted.severity), verdict["words"]
    assert answer["severity"] == planted.severity
    for part in planted.words:
        assert part in verdict["words"]
    monkeypatch.setenv("MOESCOPE_URL", service.url)
    done = run(columns=4000)
    assert done.returncode == EXIT_CODES[planted.severity], done.output
    assert verdict["words"] in done.stdout
    assert verdict["action"]["words"] in done.stdout
    assert verdict["confidence"]["words"] in done.stdout
