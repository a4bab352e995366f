"""`moescope requests`, as its users run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service.cli.running import Done, run
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer
from tests.service.planted import USUAL, only, planted, send, send_usual


@pytest.fixture
def service(start_service: Callable[..., Service], tmp_path: Path) -> Service:
    """A service with usual requests and one that takes few experts, all on EP rank 0."""
    made = start_service(store=tmp_path / "store", min_tokens=1)
    send_usual(made)
    send(made, planted(100, only(4, 5, 6), name="[odd]"))
    who = producer(ep_size=2)
    assert made.push(frame({1: [2] * 16, 3: [2] * 16}, who=who, placement=halves(16, 2))).status_code == 200
    return made


def requests(service: Service, *arguments: str) -> Done:
    done = run("requests", *arguments, "--url", service.url, columns=160)
    assert done.returncode == 0, done.stderr
    return done


def ids(done: Done) -> list[str]:
    """The first cells of the table's rows."""
    return [line.split()[0] for line in done.stdout.splitlines() if "prod" in line]


def test_unusual(service: Service) -> None:
    done = requests(service, "unusual", "--limit", "4")
    assert ids(done)[0] == "[odd]"
    assert len(ids(done)) == 4
    assert f"{USUAL + 1} requests were compared" in done.stdout
    assert set(next(line for line in done.stdout.splitlines() if "[odd]" in line).split()) & {"1:4", "3:4"}
    by_layer = requests(service, "unusual", "--layer", "3", "--by", "divergence_bits", "--limit", "1")
    assert ids(by_layer) == ["[odd]"]
    assert "1:4" not in by_layer.stdout
    assert "No traced request matches." in requests(service, "unusual", "--min-tokens", "1000").stdout
    assert "No traced request matches." in requests(service, "unusual", "--lora", "sql").stdout
    assert f"{USUAL + 1} requests were compared" in requests(service, "unusual", "--base").stdout


def test_concentrated(service: Service) -> None:
    done = requests(service, "concentrated", "--limit", "1")
    assert ids(done) == ["[odd]"]
    assert "100.0%" in done.stdout
    assert "2.00x" in done.stdout


def test_similar_and_answers_for_programs(service: Service) -> None:
    done = requests(service, "similar", "x7", "--limit", "3", "--json")
    answer = json.loads(done.stdout)
    assert answer == service.get("/v1/requests/similar", like="x7", limit=3)
    shown = requests(service, "similar", "x7", "--limit", "3")
    assert ids(shown) == [item["request"]["names"][-1] for item in answer["requests"]]


def test_mistakes_are_explained(service: Service) -> None:
    unknown = run("requests", "similar", "nobody", "--url", service.url)
    assert (unknown.returncode, unknown.stdout) == (7, "")
    assert "'nobody': it wasn't sampled" in unknown.stderr
    layer = run("requests", "unusual", "--layer", "2", "--url", service.url)
    assert (layer.returncode, "known are [1, 3]" in layer.stderr) == (7, True)
