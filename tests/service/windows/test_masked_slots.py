"""A layer whose router masks every slot has tokens and no loads: no sample, never NaN."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer

PATHS = (
    "/v1/balance",
    "/v1/balance?start=-60s",
    "/v1/view?parts=counts&parts=owners&parts=flows",
    "/v1/trend",
    "/v1/histogram",
    "/v1/compare?base_start=-60s&base_end=-20s&start=-20s",
    "/v1/drift?start=-20s",
    "/v1/stragglers",
    "/v1/advice?start=-1h",
)


@pytest.fixture
def masking(service: Service) -> Service:
    """Layer 1 masks all its slots, layer 2 none."""
    who = producer(ep_size=2)
    for n in range(1, 20):
        made = frame(
            {1: [0] * 4, 2: [5 * n] * 4},
            who=who,
            seq=n,
            after_s=100 + 5 * n,
            tokens=10 * n,
            rows=[10 * n, 10 * n],
            placement=halves(4, layers=2),
        )
        assert service.push(made).status_code == 200
        service.clock.now += 5
    return service


def finite(answer: Any) -> bool:
    if isinstance(answer, dict | list):
        return all(map(finite, answer.values() if isinstance(answer, dict) else answer))
    return not isinstance(answer, float) or math.isfinite(answer)


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_finite(masking: Service, path: str) -> None:
    response = masking.client.get(path)
    assert response.status_code == 200, response.text
    assert "NaN" not in response.text
    assert finite(response.json())


def test_balance_says_why(masking: Service) -> None:
    first, second = masking.get("/v1/balance")["layers"]
    for axis in ("over_ep_ranks", "over_experts"):
        assert first[axis]["measures"] is None
        assert "chose no expert" in first[axis]["reason"]
        assert second[axis]["measures"]["imbalance_ratio"] == 1.0


def test_drift_and_advice_say_why(masking: Service) -> None:
    drift = masking.get("/v1/drift", start="-20s")["layers"]
    assert "chose no expert" in drift[0]["reason"]
    assert drift[1]["divergence"] == 0.0
    advice = masking.get("/v1/advice", start="-1h")
    assert [item["layer"] for item in advice["left_out"]] == [1]
    assert advice["layers"] == [2]


def test_metrics_have_no_series(masking: Service) -> None:
    shown = masking.client.get("/metrics").text
    assert "NaN" not in shown
    assert 'moescope_layer_dead_experts{layer="2"' in shown
    assert 'moescope_layer_dead_experts{layer="1"' not in shown
