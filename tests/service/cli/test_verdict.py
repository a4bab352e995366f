"""``moescope`` without a command, and ``moescope verdict``."""

from __future__ import annotations

import json

import pytest

from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.traffic import push_fleet


def test_nobody_has_reported(service: Service) -> None:
    done = run("verdict", "--url", service.url)
    assert done.returncode == 0
    assert done.stdout.startswith("No deployment has reported yet: start vLLM with moescope")


def test_json_is_the_answer_and_the_code_is_the_severity(service: Service) -> None:
    push_fleet(service, 7, every=10.0, rank_imbalance=2.0)
    done = run("verdict", "--url", service.url, "--json")
    assert done.returncode == 3
    answer = json.loads(done.stdout)
    assert answer["verdicts"] == service.get("/v1/verdict")["verdicts"]
    text = run("--url", service.url, columns=40).stdout
    assert answer["verdicts"][0]["words"] in text.splitlines()[1]
    assert f"Proof: {service.url}/#/overview?server=simulated&model=simulated%2Fmoe&from=" in text


def test_all_deployments_the_gravest_first(service: Service) -> None:
    push_fleet(service, 7, every=10.0, server="even")
    service.clock.now -= 70
    push_fleet(service, 7, every=10.0, server="uneven", rank_imbalance=2.0)
    lines = [line for line in run("--url", service.url).stdout.splitlines() if line and line[0] != " "]
    assert lines == ["WARNING: simulated/moe on uneven", "OK: simulated/moe on even"]
    assert run("verdict", "--url", service.url, "--server", "even").returncode == 0
    assert run("verdict", "--url", service.url, "--server", "other").returncode == 7


def test_a_window_that_ends_later_than_now_is_the_last_minute(service: Service) -> None:
    push_fleet(service, 7, every=10.0)
    [now] = service.get("/v1/verdict")["verdicts"]
    [later] = service.get("/v1/verdict", end=str(service.clock.now + 3600))["verdicts"]
    assert (later["kind"], later["confidence"]) == (now["kind"], now["confidence"])
    assert now["kind"] == "balanced"


def test_the_flag_belongs_behind_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("--url", "http://gpu-7:9890", "ranks")
    assert done.returncode == 2
    assert "moescope ranks --url http://gpu-7:9890" in done.stderr
    monkeypatch.setenv("MOESCOPE_URL", "bad")
    assert "MOESCOPE_URL: bad is not an http address" in run().stderr
