"""moescope drift and moescope baseline, as their users run them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.service.cli.test_cli import _run
from tests.service.conftest import Service
from tests.service.traffic import Two


def test_pin_then_drift_then_remove(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(min_tokens=1)
    at = ("--url", service.url)
    assert "baseline pin NAME" in _run("baseline", "list", *at).stdout
    traffic = Two(service)
    traffic.run(0, 10)
    pinned = _run("baseline", "pin", "chat", *at, "--note", "as it was")
    assert pinned.returncode == 0, pinned.stderr
    assert "tokens of simulated/moe on simulated" in pinned.stdout
    assert "as it was" in _run("baseline", "list", *at).stdout
    same = _run("drift", *at, "--baseline", "chat")
    assert "No drift beyond sampling" in " ".join(same.stdout.split()), same.stdout + same.stderr
    traffic.run(1, 5)
    moved = " ".join(_run("drift", *at, "--baseline", "chat").stdout.split())
    assert "Drifted: median" in moved
    assert "newly hot" in moved
    answer = json.loads(_run("drift", *at, "--baseline", "chat", "--json").stdout)
    assert answer["summary"]["median"] > 0.1
    assert _run("baseline", "remove", "chat", *at).stdout == "chat is removed\n"
    gone = _run("drift", *at, "--baseline", "chat")
    assert gone.returncode == 2
    assert "there are: none" in gone.stderr


def test_the_token_comes_from_the_environment(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(token="secret")
    assert "MOESCOPE_TOKEN" in _run("baseline", "pin", "x", "--url", service.url).stderr
    monkeypatch.setenv("MOESCOPE_TOKEN", "secret")
    assert "--worker-cls" in _run("baseline", "pin", "x", "--url", service.url).stderr
