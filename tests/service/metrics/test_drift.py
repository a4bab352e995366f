"""Drift in /metrics: refreshed beside the scrapes, removed together with its baseline."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from moescope.service.drift.watch import REFRESH_S
from tests.service.conftest import Service
from tests.service.traffic import Two, push_fleet

Series = dict[tuple[str, str, str], float]


def _drift(service: Service, phase: str = "all") -> Series:
    """(family, layer, baseline) to value."""
    families = text_string_to_metric_families(service.client.get("/metrics").text)
    return {
        (family.name, sample.labels.get("layer", ""), sample.labels["baseline"]): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("phase") == phase and "baseline" in sample.labels
    }


def _refreshed(service: Service, done: Callable[[Series], bool]) -> Series:
    """Scrape until the thread that the first scrape started has finished."""
    service.clock.now += REFRESH_S
    return _waited(service, done)


def _waited(service: Service, done: Callable[[Series], bool]) -> Series:
    deadline = time.monotonic() + 60
    while not done(found := _drift(service)):
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


def test_drift_is_in_the_metrics(service: Service) -> None:
    traffic = Two(service)
    traffic.run(0, 30)
    service.client.post("/v1/baselines", json={"name": "chat"})
    first = _drift(service)
    assert {key[2] for key in first} == {"previous_hour", "chat"}
    assert first["moescope_layer_drift_bits", "3", "chat"] < 0.001
    traffic.run(1, 5)
    moved = _refreshed(service, lambda found: found["moescope_layer_drift_bits", "3", "chat"] > 0.001)
    answer = service.get("/v1/drift", baseline="chat", start=service.clock.now - REFRESH_S - 240)
    assert moved["moescope_layer_drift_bits", "3", "chat"] > 0.1
    assert moved["moescope_worst_layer_drift_bits", "", "chat"] > 0.1
    assert moved["moescope_new_hot_experts", "", "chat"] == sum(
        moved["moescope_layer_new_hot_experts", layer, "chat"] for layer in "345"
    )
    assert answer["summary"]["worst"] > 0.1
    # The frames of this fleet, put together by hand, tell no phases.
    assert _drift(service, "decode") == _drift(service, "prefill") == {}
    service.client.delete("/v1/baselines/chat")
    # A change of baselines is seen at the next scrapes, whatever the time.
    gone = _waited(service, lambda found: {key[2] for key in found} == {"previous_hour"})
    assert gone["moescope_worst_layer_drift_bits", "", "previous_hour"] > 0.1


def test_phases_are_apart(service: Service) -> None:
    push_fleet(service, skew=0.5, habits={"decode_shift": 0.8})
    service.client.post("/v1/baselines", json={"name": "chat"})
    for phase in ("all", "prefill", "decode"):
        found = _drift(service, phase)
        assert found["moescope_layer_drift_bits", "3", "chat"] < 0.001, phase


def test_idle_has_no_drift(service: Service) -> None:
    push_fleet(service, rounds=2)
    assert _drift(service) == {}  # no hour before
    service.clock.now += 4000
    assert _refreshed(service, lambda found: not found) == {}
