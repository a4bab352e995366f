"""Each answer that rests on a layer whose rows don't add up to the tokens says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moescope.capture import wire
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer

WHY = "its rows don't add up to the tokens of DP rank 0: 700 of 800"
START = 1_700_000_100.0


@pytest.fixture
def broken(service: Service) -> Service:
    """Layer 0 is whole; layer 1 has lost 100 of 800 tokens, half of them by the first of two frames."""
    for seq in (1, 2):
        service.clock.now = START + 30 * seq
        counts = {
            0: [250 * seq, 250 * seq, 150 * seq, 150 * seq],
            1: [250 * seq, 200 * seq, 150 * seq, 100 * seq],
        }
        tokens = 400 * seq
        made = frame(
            counts,
            rows=[tokens, tokens - 50 * seq],
            tokens=tokens,
            who=producer(ep_size=2),
            seq=seq,
            after_s=30 * seq,
            placement=halves(4, 2),
            decode={layer: [value // 2 for value in values] for layer, values in counts.items()},
            decode_rows=wire.pack_counts(np.array([tokens // 2, tokens // 2 - 50 * seq])),
            decode_tokens=tokens // 2,
        )
        assert service.push(made).status_code == 200
    service.clock.now += 1
    return service


def _layers(service: Service, path: str, **params: Any) -> dict[int, dict[str, Any]]:
    return {layer["layer"]: layer for layer in service.get(path, **params)["layers"]}


def test_ranks(broken: Service) -> None:
    [rank] = broken.get("/v1/ranks")["deployments"][0]["dp_ranks"]
    [stage] = rank["stages"]
    assert stage["state"] == "broken"
    assert stage["mismatches"] == [
        {"layer": 1, "law": "rows", "expected": 800, "got": 700},
        {"layer": 1, "law": "decode_rows", "expected": 400, "got": 300},
    ]
    assert rank["producers"][0]["mismatches"] == []


def test_the_metric(broken: Service) -> None:
    text = broken.client.get("/metrics").text
    told = [line for line in text.splitlines() if line.startswith("moescope_conservation_mismatched_layers{")]
    assert [line.rpartition(" ")[2] for line in told] == ["1.0"]


def test_histogram(broken: Service) -> None:
    answer = broken.get("/v1/histogram", start=START - 1, step=31)
    assert [layer["not_conserved"] for layer in answer["layers"]] == [None, WHY]
    assert answer["layers"][1]["slots"] == 1400
    assert any(layer["not_conserved"] for part in answer["series"] for layer in part["layers"])


def test_histogram_of_a_phase(broken: Service) -> None:
    assert _layers(broken, "/v1/histogram", phase="prefill")[1]["not_conserved"] is None
    assert "300 of 400" in _layers(broken, "/v1/histogram", phase="decode")[1]["not_conserved"]


def test_balance(broken: Service) -> None:
    answer = broken.get("/v1/balance")
    whole, lost = answer["layers"]
    for axis in ("over_ep_ranks", "over_experts"):
        assert whole[axis]["measures"] is not None
        assert (lost[axis]["measures"], lost[axis]["reason"]) == (None, WHY)
    assert answer["summary"]["over_ep_ranks"]["layers"] == 1


def test_view(broken: Service) -> None:
    whole, lost = broken.get("/v1/view", parts="flows")["layers"]
    assert (whole["reason"], lost["reason"], lost["ep_reason"]) == (None, WHY, WHY)


def test_trend(broken: Service) -> None:
    answer = broken.get("/v1/trend", step=10, points=4)
    assert answer["not_conserved"] == [1]
    assert set(answer["worst_layer"]) <= {None, 0}


def test_compare(broken: Service) -> None:
    layers = _layers(broken, "/v1/compare", start=START + 31, base_start=START, base_end=START + 31)
    assert layers[0]["divergence"] == 0
    assert layers[1]["divergence"] is None
    assert "add up" in layers[1]["reason"]


def test_stragglers(broken: Service) -> None:
    layers = _layers(broken, "/v1/stragglers")
    assert layers[0]["windowed_straggler_share"] is not None
    assert (layers[1]["windowed_straggler_share"], layers[1]["not_conserved"]) == (None, WHY)


def test_advice(broken: Service) -> None:
    answer = broken.get("/v1/advice", start=START, min_tokens=1)
    assert any("add up" in str(item) for item in _texts(answer)), answer


def test_drift_and_baselines(broken: Service) -> None:
    pinned = broken.client.post("/v1/baselines", json={"name": "base", "server": "prod", "model": "tiny"})
    assert pinned.status_code == 201, pinned.text
    layers = _layers(broken, "/v1/drift", baseline="base")
    assert layers[0]["divergence"] == 0
    assert (layers[1]["divergence"], layers[1]["reason"]) == (None, WHY)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []
