"""/v1/advice/placement: maps that others load, or the reason why there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moescope.capture import wire
from tests.service.advice.ascend import misread
from tests.service.api.schema_check import check
from tests.service.conftest import Service
from tests.service.frames import frame, producer
from tests.service.traffic import push_fleet

PATH = "/v1/advice/placement"
REPORTED = [100, 6000, 400, 100, 100, 400, 2600, 100, 100, 6000, 100, 100, 100, 6000, 1400, 700]


def _push(service: Service, counts: dict[int, list[int]], ep_size: int = 4, **fields: Any) -> None:
    who = producer(ep_size=ep_size, **fields.pop("who", {}))
    assert service.push(frame(counts, who=who, **fields)).status_code == 200


def _devices(answer: dict[str, Any], layer: int = 0) -> list[list[int]]:
    row, ranks = answer["physical_to_logical_map"][layer], answer["physical_to_rank"][layer]
    return [
        [e for e, at in zip(row, ranks, strict=True) if at == rank] for rank in range(answer["num_ranks"])
    ]


def test_a_placement_map_balances_what_it_was_fitted_on(service: Service) -> None:
    push_fleet(service, skew=0.8)
    found = service.get(PATH, redundant=4)
    assert (found["num_physical_experts"], found["num_ranks"], found["layers"]) == (36, 4, [3, 4, 5])
    assert (found["policy"], found["partial"], found["absent"]) == ("moescope", None, [])
    for layer, row, ranks, copies in zip(
        service.get("/v1/histogram")["layers"],
        found["physical_to_logical_map"],
        found["physical_to_rank"],
        found["logical_replica_count"],
        strict=True,
    ):
        assert sorted(set(row)) == list(range(32))
        loads = [0.0] * 4
        for expert, rank in zip(row, ranks, strict=True):
            loads[rank] += layer["counts"][expert] / copies[expert]
        assert max(loads) / (sum(loads) / 4) < 1.05
    ascend = service.get(PATH, redundant=4, form="vllm-ascend")
    assert [
        [device["device_expert"] for device in layer["device_list"]] for layer in ascend["layer_list"]
    ] == [_devices(found, layer) for layer in range(3)]
    assert [device["device_id"] for device in ascend["layer_list"][2]["device_list"]] == [0, 1, 2, 3]
    assert misread(ascend, layers=3, experts=32) == []
    response = service.client.get(PATH, params={"redundant": 4, "form": "vllm-ascend"})
    check(service.get("/openapi.json"), PATH, response)


def test_no_rank_gets_two_copies_of_an_expert_but_by_vllms_policy(service: Service) -> None:
    _push(service, {3: REPORTED})
    ours = service.get(PATH, redundant=8, start=0)
    assert all(len(set(held)) == 6 for held in _devices(ours))
    assert ours["doubles"] == []
    theirs = service.get(PATH, redundant=8, start=0, policy="vllm")
    assert theirs["policy"] == "vllm"
    assert {"layer": 3, "ep_rank": 0, "expert": 9, "copies": 2} in theirs["doubles"]
    assert _devices(theirs)[0] == [9, 9, 14, 5, 4, 10]
    refused = service.client.get(
        PATH, params={"redundant": 8, "start": 0, "policy": "vllm", "form": "vllm-ascend"}
    )
    assert refused.status_code == 400
    assert "EP rank 0 has 2 copies of expert 9 in layer 3" in refused.json()["detail"]
    assert misread(service.get(PATH, redundant=8, start=0, form="vllm-ascend"), layers=1, experts=16) == []


def test_doubles_that_can_not_be_avoided_are_named(service: Service) -> None:
    _push(service, {3: [40, 20, 10, 10]}, ep_size=2)
    found = service.get(PATH, redundant=6, start=0)
    assert [(item["ep_rank"], item["copies"]) for item in found["doubles"]] == [(0, 2), (1, 2)]
    refused = service.client.get(PATH, params={"redundant": 6, "start": 0, "form": "vllm-ascend"})
    assert (refused.status_code, "fewer redundant experts" in refused.json()["detail"]) == (400, True)


@pytest.mark.parametrize("strategy", ["linear", "round_robin"])
def test_without_eplb_uneven_numbers_of_experts_need_no_redundant_ones(
    service: Service, strategy: str
) -> None:
    _push(service, {3: [4] * 256}, ep_size=3)
    found = service.get(PATH, strategy=strategy, start=0)
    assert [len(held) for held in _devices(found)] == [86, 85, 85]
    assert (found["redundant"], found["policy"], found["doubles"]) == (0, None, [])
    assert found["logical_replica_count"] == [[1] * 256]
    refused = service.client.get(PATH, params={"strategy": strategy, "start": 0, "form": "vllm-ascend"})
    assert (refused.status_code, "85 or 86" in refused.json()["detail"]) == (400, True)
    by_load = service.client.get(PATH, params={"start": 0})
    assert (by_load.status_code, "redundant=2" in by_load.json()["detail"]) == (400, True)
    assert service.get("/v1/advice", start=0)["num_experts"] == 256
    few = service.get(PATH, strategy=strategy, start=0, ranks=300)
    assert sum(not held for held in _devices(few)) == 44


def test_without_eplb_no_load_is_needed(service: Service) -> None:
    _push(service, {3: [0] * 4, 4: [8] * 4, 5: [6, 6, 6, 6, 4, 4]}, ep_size=2)
    found = service.get(PATH, strategy="linear", start=0)
    assert found["layers"] == [3, 4]
    assert [item["layer"] for item in found["left_out"]] == [5]
    assert service.get(PATH, start=0, min_tokens=1)["layers"] == [4]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"uncovered": [wire.UncoveredLayer(4, "monolithic kernel")]}, "layer 4 can't be placed (monolithic"),
        ({"absent": [wire.UncoveredLayer(4, "not found")]}, "layer 4 can't be placed (absent: not found)"),
        ({"absent_unnamed": "some are not found"}, "isn't known which can't be placed (some are not found)"),
        ({"idle": True}, "layer 3 can't be placed (not seen"),
    ],
)
def test_a_layer_that_can_not_be_placed_is_never_left_out_of_vllm_ascends_file(
    service: Service, fields: dict[str, Any], words: str
) -> None:
    # Decoder layers 0 to 2 are dense: they have no ordinal, and nobody names them.
    first = [0] * 4 if fields.get("idle") else [4] * 4
    fields = {name: value for name, value in fields.items() if name != "idle"}
    _push(service, {3: first, 5: [4] * 4, 6: [4] * 4}, ep_size=2, **fields)
    refused = service.client.get(PATH, params={"start": 0, "min_tokens": 1, "form": "vllm-ascend"})
    assert refused.status_code == 400
    assert refused.json()["type"].endswith("not-for-vllm-ascend")
    assert words in refused.json()["detail"]


def test_layers_of_unlike_shape_are_no_file_for_vllm_ascend(service: Service) -> None:
    _push(service, {3: [4] * 4, 4: [4] * 4, 5: [8, 8]}, ep_size=2)
    refused = service.client.get(PATH, params={"start": 0, "min_tokens": 1, "form": "vllm-ascend"})
    assert (refused.status_code, "layer 5 can't be placed" in refused.json()["detail"]) == (400, True)


def _push_stages(service: Service, stages: tuple[int, ...]) -> None:
    for pp_rank in stages:
        who = {"pp_rank": pp_rank, "pp_size": 2}
        hot = np.roll([80, 8, 8, 8], pp_rank).tolist()
        _push(service, {2 * pp_rank: hot, 2 * pp_rank + 1: hot}, ep_size=2, who=who)


def test_each_pipeline_stage_has_a_file_of_its_own(service: Service) -> None:
    _push_stages(service, (0, 1))
    asked = {"start": 0, "min_tokens": 1, "redundant": 2}
    assert service.get(PATH, **asked)["layers"] == [0, 1, 2, 3]
    refused = service.client.get(PATH, params={**asked, "form": "vllm-ascend"})
    assert (refused.status_code, "Give pp_rank" in refused.json()["detail"]) == (400, True)
    for pp_rank in (0, 1):
        file = service.get(PATH, **asked, form="vllm-ascend", pp_rank=pp_rank)
        assert misread(file, layers=2, experts=4) == []
        found = service.get(PATH, **asked, pp_rank=pp_rank)
        assert (found["layers"], found["partial"]) == ([2 * pp_rank, 2 * pp_rank + 1], None)
        assert found["logical_replica_count"][0][pp_rank] == 2


def test_a_stage_that_has_not_reported_is_said(service: Service) -> None:
    _push_stages(service, (0,))
    for path in (PATH, "/v1/advice", "/v1/placement"):
        asked = {} if path == "/v1/placement" else {"start": 0, "min_tokens": 1}
        assert "stages [1]" in service.get(path, **asked)["partial"]
    refused = service.client.get(PATH, params={"start": 0, "pp_rank": 1})
    assert (refused.status_code, "there are [0]" in refused.json()["detail"]) == (400, True)


def test_one_rank_is_no_file_for_vllm_ascend(service: Service) -> None:
    _push(service, {3: [4] * 4}, ep_size=1)
    refused = service.client.get(
        PATH, params={"start": 0, "ranks": 1, "form": "vllm-ascend", "min_tokens": 1}
    )
    assert (refused.status_code, "more than one EP rank" in refused.json()["detail"]) == (400, True)


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("start=now", 400, "nothing to fit on"),
        ("form=yaml", 422, "vllm-ascend"),
        ("policy=best", 422, "moescope"),
        ("pp_rank=7", 400, "stage 7"),
        ("redundant=3", 400, "redundant=0 or 4"),
    ],
)
def test_problems_say_what_to_do(service: Service, query: str, status: int, words: str) -> None:
    push_fleet(service, rounds=2)
    response = service.client.get(f"{PATH}?{query}")
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert words in response.json()["detail"]
