"""A deployment that never counted is there, with the reason, and without a number that looks like a count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from moescope.capture.delivery.transport import HttpTransport
from moescope.capture.off.report import OffReport
from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer

REASON = "SettingsError: MOESCOPE_INTERVAL: 'soon' is no number of seconds from 0.05 to 3600"


Report = Callable[..., OffReport]


@pytest.fixture
def report(service: Service) -> Iterator[Report]:
    """Makes the report of a worker, as it ships, which has told once."""
    transports = []

    def make(dp_rank: int = 0, dp_size: int = 1, **sizes: int) -> OffReport:
        who: dict[str, str | int] = {"server": "prod", "model": "tiny", "dp_rank": dp_rank}
        transports.append(HttpTransport(service.url, None))
        made = OffReport({**who, "dp_size": dp_size, **sizes}, REASON, transports[-1])
        made.send()
        return made

    yield make
    for transport in transports:
        transport.close()


def rank_of(service: Service, dp_rank: int) -> dict[str, Any]:
    (deployment,) = service.get("/v1/ranks")["deployments"]
    (found,) = [rank for rank in deployment["dp_ranks"] if rank["dp_rank"] == dp_rank]
    return dict(found)


def samples(service: Service, family: str) -> dict[str, str]:
    lines = service.client.get("/metrics").text.splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if line.startswith(f"{family}{{"))  # type: ignore[misc]


def test_ranks_name_the_worker_the_state_and_the_reason(service: Service, report: Report) -> None:
    report()
    rank = rank_of(service, 0)
    assert [rank[name] for name in ("tokens", "steps", "idle_steps", "phases")] == [None] * 4
    assert rank["tokens_reason"] == f"capture is disabled: {REASON}"
    (worker,) = rank["producers"]
    assert (worker["state"], worker["state_reason"]) == ("disabled", REASON)


def test_a_metric_says_it_and_no_counter_says_zero(service: Service, report: Report) -> None:
    report()
    states = samples(service, "moescope_producers")
    assert [value for name, value in states.items() if 'state="disabled"' in name] == ["1.0"]
    for family in ("moescope_tokens_total", "moescope_steps_total", "moescope_idle_steps_total"):
        assert not samples(service, family)
    assert not samples(service, "moescope_phase_tokens_total")


def test_it_is_never_said_that_nobody_has_reported(service: Service, report: Report) -> None:
    report()
    for path in ("/v1/balance", "/v1/histogram", "/v1/view?start=-5m", "/v1/drift", "/v1/stragglers"):
        assert service.client.get(path).status_code == 200, path
    said = run("ranks", "--url", service.url, columns=200).stdout
    assert "No producer has reported" not in said
    assert "capture is off: SettingsError: MOESCOPE_INTERVAL" in " ".join(said.split())


def test_it_is_not_silent_as_long_as_it_repeats_it(service: Service, report: Report) -> None:
    made = report()
    for _ in range(4):
        service.clock.now += 10
        assert rank_of(service, 0)["producers"][0]["state"] == "disabled"
        made.send()
    service.clock.now += 60
    (worker,) = rank_of(service, 0)["producers"]
    assert (worker["state"], worker["state_reason"]) == ("stale", REASON)


@pytest.mark.parametrize("first", [0, 1])
def test_beside_a_rank_that_counts(service: Service, report: Report, first: int) -> None:
    who = producer(dp_rank=0, dp_size=2, ep_size=2)
    counts = frame({0: [400, 100, 50, 50]}, who=who, placement=halves(4, 1))
    tells = [lambda: service.push(counts), lambda: report(1, 2, ep_rank=1, ep_size=2)]
    tells[first]()
    tells[1 - first]()
    assert (rank_of(service, 0)["tokens"], rank_of(service, 0)["tokens_reason"]) == (300, None)
    assert rank_of(service, 1)["tokens"] is None
    assert [name for name in samples(service, "moescope_tokens_total") if 'dp_rank="1"' in name] == []


def test_what_a_worker_counted_before_it_began_again_without_capture_stays(
    service: Service, report: Report
) -> None:
    service.push(frame({0: [400, 100, 50, 50]}))
    service.clock.now += 1
    report()
    rank = rank_of(service, 0)
    assert (rank["tokens"], rank["tokens_reason"]) == (300, f"capture is disabled: {REASON}")
    assert rank["producers"][0]["state"] == "disabled"
    said = " ".join(run("ranks", "--url", service.url, columns=200).stdout.split())
    assert f"- DP rank 0: these are what was counted, not all: capture is disabled: {REASON}" in said
