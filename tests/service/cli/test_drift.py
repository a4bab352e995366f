"""moescope drift and moescope baseline, as their users run them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.frames import frame
from tests.service.traffic import Two


def test_pin_then_drift_then_remove(start_service: Callable[..., Service]) -> None:
    service = start_service(min_tokens=1)
    at = ("--url", service.url)
    assert "baseline pin NAME" in run("baseline", "list", *at).stdout
    traffic = Two(service)
    traffic.run(0, 10)
    pinned = run("baseline", "pin", "chat", *at, "--note", "as it was")
    assert pinned.returncode == 0, pinned.stderr
    assert "tokens of simulated/moe on simulated" in pinned.stdout
    assert "as it was" in run("baseline", "list", *at).stdout
    same = run("drift", *at, "--baseline", "chat")
    assert "No drift beyond sampling" in " ".join(same.stdout.split()), same.stdout + same.stderr
    traffic.run(1, 5)
    moved = " ".join(run("drift", *at, "--baseline", "chat").stdout.split())
    assert "Drifted: " in moved
    assert "newly hot" in moved
    answer = json.loads(run("drift", *at, "--baseline", "chat", "--json").stdout)
    assert answer["summary"]["median"] > 0.1
    assert run("baseline", "remove", "chat", *at).stdout == "chat is removed\n"
    gone = run("drift", *at, "--baseline", "chat")
    assert gone.returncode == 7
    assert "there are: none" in gone.stderr


def test_a_small_move_beyond_sampling_is_not_called_drift(service: Service) -> None:
    """As the verdict has it: drift is from 20 % of the slots on."""
    at = ("--url", service.url)
    assert service.push(frame({0: [100_000, 100_000]})).status_code == 200
    assert run("baseline", "pin", "even", *at).returncode == 0
    service.clock.now += 60
    assert service.push(frame({0: [206_000, 194_000]}, seq=2)).status_code == 200
    answer = json.loads(run("drift", *at, "--baseline", "even", "--json").stdout)
    summary = answer["summary"]
    assert summary["median"] > 3 * summary["noise"]
    assert summary["moved"] < 0.2
    assert summary["found"] == "little"
    assert "Little drift, though beyond sampling: 1.5% of" in run("drift", *at, "--baseline", "even").stdout


def test_the_token_comes_from_the_environment(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(token="secret")
    assert "MOESCOPE_TOKEN" in run("baseline", "pin", "x", "--url", service.url).stderr
    monkeypatch.setenv("MOESCOPE_TOKEN", "secret")
    assert "MOESCOPE=1" in run("baseline", "pin", "x", "--url", service.url).stderr


def test_notes_of_baselines_stand_as_they_are(service: Service) -> None:
    assert service.push(frame({0: [200, 200]})).status_code == 200
    note = "before [v2] and [/not]"
    assert run("baseline", "pin", "one", "--url", service.url, "--note", note).returncode == 0
    listed = run("baseline", "list", "--url", service.url)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "[v2]" in listed.stdout
