"""/v1/baselines and /v1/drift over a real connection, with and without a store."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from moescope.service.drift.baseline import MAX_BASELINES
from tests.service.api.schema_check import check
from tests.service.conftest import Service
from tests.service.frames import frame, producer
from tests.service.traffic import Two, push_fleet


def _problem(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    detail: str = response.json()["detail"]
    return detail


def test_stationary_routing_does_not_drift(service: Service) -> None:
    push_fleet(service, rounds=60, every=60.0, skew=0.5)
    answer = service.get("/v1/drift")
    assert answer["baseline"] == "previous_hour"
    summary = answer["summary"]
    assert summary["layers"] == 3
    assert summary["median"] < 3 * summary["noise"]
    assert (summary["new_dead"], summary["new_hot"]) == (0, 0)
    assert answer["window"]["used_start"]["latest"] == service.clock.now - 300
    assert answer["baseline_end"] == service.clock.now - 300


def test_another_kind_of_traffic_drifts_from_the_hour_and_from_the_baseline(service: Service) -> None:
    traffic = Two(service)
    traffic.run(0, 30)
    pinned = service.client.post("/v1/baselines", json={"name": "chat", "note": "before the release"})
    assert pinned.status_code == 201, pinned.text
    assert (pinned.json()["layers"], pinned.json()["note"]) == ([3, 4, 5], "before the release")
    same = service.get("/v1/drift", baseline="chat")["summary"]
    assert same["worst"] < 3 * same["noise"]
    traffic.run(1, 5)
    for baseline in ("chat", "previous_hour"):
        moved = service.get("/v1/drift", baseline=baseline)
        assert moved["summary"]["median"] > 0.1
        assert all(layer["divergence"] > 20 * layer["noise"] for layer in moved["layers"])
        assert moved["summary"]["new_hot"] > 0
    # What the API says of one layer is what /v1/compare says of the same windows.
    hour = service.get(
        "/v1/compare", start="-5m", base_start=service.clock.now - 3900, base_end=service.clock.now - 300
    )
    assert [item["divergence"] for item in hour["layers"]] == pytest.approx(
        [item["divergence"] for item in moved["layers"]]
    )


def test_the_phases_of_a_baseline_are_those_of_its_window(service: Service) -> None:
    push_fleet(service, skew=0.5, habits={"decode_shift": 0.8})
    assert service.client.post("/v1/baselines", json={}).json()["by_phase"] is True
    for phase in ("prefill", "decode"):
        same = service.get("/v1/drift", baseline="default", phase=phase, start="-1h")
        assert same["tokens"] == service.get("/v1/histogram", phase=phase)["tokens"]
        assert [layer["divergence"] for layer in same["layers"]] == pytest.approx([0, 0, 0], abs=1e-12)
        assert [layer["base_tokens"] for layer in same["layers"]] == [same["tokens"]] * 3
    half = service.get("/v1/drift", baseline="default", phase="decode", start="-2m")
    assert 0 < half["summary"]["worst"] < 3 * half["summary"]["noise"]


def test_without_phases_a_question_for_one_says_so(service: Service) -> None:
    push_fleet(service, phases=False)
    assert service.client.post("/v1/baselines", json={}).json()["by_phase"] is False
    detail = _problem(service.client.get("/v1/drift?baseline=default&phase=decode"), 400)
    assert "leave phase out" in detail
    hour = service.get("/v1/drift", phase="decode")
    assert hour["tokens"] is None
    assert "phases of" in hour["layers"][0]["reason"]


def test_a_baseline_can_be_listed_read_and_removed(service: Service) -> None:
    push_fleet(service)
    service.client.post("/v1/baselines", json={"name": "one", "start": "-2m"})
    service.client.post("/v1/baselines", json={"name": "two"})
    service.client.post("/v1/baselines", json={"name": "two", "note": "again"})
    listed = service.get("/v1/baselines")["baselines"]
    assert [(item["name"], item["note"]) for item in listed] == [("one", ""), ("two", "again")]
    found = service.get("/v1/baselines/two")
    histogram = service.get("/v1/histogram")["layers"]
    assert [layer["counts"] for layer in found["histogram"]] == [layer["counts"] for layer in histogram]
    assert [layer["tokens"] for layer in found["histogram"]] == [layer["tokens"] for layer in histogram]
    assert service.client.delete("/v1/baselines/two").status_code == 204
    assert "there are: one" in _problem(service.client.get("/v1/baselines/two"), 404)
    assert "there are: one" in _problem(service.client.delete("/v1/baselines/two"), 404)
    assert "there are: one" in _problem(service.client.get("/v1/drift?baseline=two"), 404)
    assert service.get("/v1/baselines", model="other") == {"baselines": []}


def test_baselines_outlive_the_service_and_a_damaged_one_does_not_stop_it(
    start_service: Callable[..., Service], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = start_service(store=tmp_path, min_tokens=1)
    push_fleet(service)
    for name in ("kept", "removed", "damaged"):
        assert service.client.post("/v1/baselines", json={"name": name}).status_code == 201
    service.client.delete("/v1/baselines/removed")
    before = service.get("/v1/baselines/kept")
    start_service.end_all()  # type: ignore[attr-defined]
    with sqlite3.connect(tmp_path / "moescope.sqlite") as connection:
        connection.execute(
            "UPDATE document SET content = substr(content, 1, 100) WHERE name LIKE '%damaged%'"
        )
    connection.close()
    service = start_service(store=tmp_path, min_tokens=1)
    assert [item["name"] for item in service.get("/v1/baselines")["baselines"]] == ["kept"]
    assert service.get("/v1/baselines/kept") == before
    assert "damaged" in caplog.text


def test_pinning_and_removing_need_the_token_reading_does_not(start_service: Callable[..., Service]) -> None:
    service = start_service(token="secret", open_read=True)
    bearer = {"authorization": "Bearer secret"}
    assert service.push(frame({0: [500, 500]}), **bearer).status_code == 200
    assert "MOESCOPE_TOKEN" in _problem(service.client.post("/v1/baselines", json={}), 401)
    wrong = {"authorization": "Bearer wrong"}
    assert "MOESCOPE_TOKEN" in _problem(service.client.post("/v1/baselines", json={}, headers=wrong), 401)
    assert service.client.post("/v1/baselines", json={}, headers=bearer).status_code == 201
    assert "MOESCOPE_TOKEN" in _problem(service.client.delete("/v1/baselines/default"), 401)
    assert service.get("/v1/baselines/default")["tokens"] == 500
    assert service.client.delete("/v1/baselines/default", headers=bearer).status_code == 204


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"name": "previous_hour"}, 400, "another name"),
        ({"name": "Not Good"}, 422, "name"),
        ({"start": "yesterday"}, 400, "-5m"),
        ({"start": "now"}, 400, "make it longer"),
        ({"model": "other"}, 404, "model=simulated/moe"),
        ({"names": "x"}, 422, "names"),
        ([], 422, "body"),
    ],
)
def test_problems_of_pinning_say_what_to_do(service: Service, body: Any, status: int, words: str) -> None:
    push_fleet(service, rounds=2)
    assert words in _problem(service.client.post("/v1/baselines", json=body), status)


def test_there_is_an_end_to_baselines(service: Service) -> None:
    push_fleet(service, rounds=2)
    for number in range(MAX_BASELINES):
        assert service.client.post("/v1/baselines", json={"name": f"b{number}"}).status_code == 201
    assert "remove one" in _problem(service.client.post("/v1/baselines", json={"name": "more"}), 409)
    assert service.client.post("/v1/baselines", json={"name": "b0"}).status_code == 201


def test_two_deployments_may_have_baselines_of_one_name(service: Service) -> None:
    for server in ("a", "b"):
        service.push(frame({0: [500, 500]}, who=producer(server=server)))
        assert service.client.post("/v1/baselines", json={"server": server}).status_code == 201
    assert "server=a model=tiny, server=b" in _problem(service.client.get("/v1/baselines/default"), 400)
    assert service.get("/v1/baselines/default", server="b")["server"] == "b"


def test_the_openapi_document_is_true(service: Service) -> None:
    push_fleet(service, uncovered=(4,))
    service.client.post("/v1/baselines", json={})
    document = service.get("/openapi.json")
    for path, real in (
        ("/v1/drift", "/v1/drift"),
        ("/v1/baselines", "/v1/baselines"),
        ("/v1/baselines/{name}", "/v1/baselines/default"),
    ):
        response = service.client.get(real)
        assert response.status_code == 200, response.text
        check(document, path, response)
