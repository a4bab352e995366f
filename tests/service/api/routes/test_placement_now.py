"""/v1/placement: where the copies of each expert are now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moescope.capture import wire
from moescope.service.api.routes import placement_now
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, placement, producer

AT = EPOCH / 1e9


def _push(service: Service, dp_rank: int, seq: int = 1, layers: int = 2, **fields: Any) -> None:
    who = producer(dp_rank=dp_rank, dp_size=2, ep_rank=dp_rank, ep_size=2)
    counts = {3 + i: [10 * seq] * 4 for i in range(layers)}
    assert service.push(frame(counts, who=who, seq=seq, **fields)).status_code == 200


def test_each_expert_has_its_copies_with_rank_and_number(service: Service) -> None:
    service.clock.now = AT + 5
    table = placement([0, 1, 2, 3, 0, 0], [0, 0, 1, 1, 1, 0], layers=2, version=7)
    for dp_rank in (0, 1):
        _push(service, dp_rank, placement=table)
        service.clock.now += 3
    answer = service.get("/v1/placement")
    assert (answer["server"], answer["model"], answer["ep_size"]) == ("prod", "tiny", 2)
    assert answer["tables"] is None
    for number, layer in zip((3, 4), answer["layers"], strict=True):
        assert layer == {
            "layer": number,
            "num_experts": 4,
            "physical_experts": 6,
            "version": 7,
            "since": AT + 5,
            "everywhere_since": AT + 8,
            "copies": [
                [{"ep_rank": rank, "physical": at} for rank, at in held]
                for held in ([(0, 0), (1, 4), (0, 5)], [(0, 1)], [(1, 2)], [(1, 3)])
            ],
            "doubles": [{"ep_rank": 0, "expert": 0, "copies": 2}],
            "table": None,
            "partial": None,
            "reason": None,
        }
    assert [layer["layer"] for layer in service.get("/v1/placement", layer=4)["layers"]] == [4]
    assert service.client.get("/v1/placement", params={"layer": 9}).status_code == 404


def test_layers_placed_alike_share_a_table_in_the_compact_form(service: Service) -> None:
    one = wire.PlacementTable(wire.pack_ids([0, 1, 2, 3]), wire.pack_ids([0, 0, 1, 1]))
    other = wire.PlacementTable(wire.pack_ids([3, 2, 1, 0]), wire.pack_ids([0, 0, 1, 1]))
    made = wire.Placement(version=1, tables=[one, other], table_of_layer=[1, 0, 1])
    _push(service, 0, layers=3, placement=made)
    answer = service.get("/v1/placement", form="tables")
    assert [layer["table"] for layer in answer["layers"]] == [0, 1, 0]
    assert [layer["copies"] for layer in answer["layers"]] == [None] * 3
    assert answer["tables"] == [
        {"physical_to_logical": [3, 2, 1, 0], "physical_to_ep_rank": [0, 0, 1, 1], "doubles": []},
        {"physical_to_logical": [0, 1, 2, 3], "physical_to_ep_rank": [0, 0, 1, 1], "doubles": []},
    ]


def test_a_rearrangement_is_not_everywhere_until_all_workers_told_it(service: Service) -> None:
    service.clock.now = AT + 1
    for dp_rank in (0, 1):
        _push(service, dp_rank, placement=halves(4, 2))
    service.clock.now = AT + 10
    moved = placement([3, 2, 1, 0], [0, 0, 1, 1], layers=2, version=2)
    _push(service, 0, seq=2, placement=moved)
    [layer, _] = service.get("/v1/placement")["layers"]
    assert (layer["version"], layer["since"], layer["everywhere_since"]) == (2, AT + 10, None)
    assert layer["partial"] == "partial: 1 of 2 workers tells version 1"
    service.clock.now = AT + 12
    _push(service, 1, seq=2, placement=moved)
    [layer, _] = service.get("/v1/placement")["layers"]
    assert (layer["version"], layer["since"], layer["everywhere_since"]) == (2, AT + 10, AT + 12)


@pytest.mark.parametrize(
    ("ep_size", "fields", "words"),
    [
        (1, {}, "ep_size is 1"),
        (2, {}, "no worker has told where"),
        (2, {"unavailable": {"placement": "no map in this vLLM"}}, "no map in this vLLM"),
    ],
)
def test_a_placement_that_is_not_known_has_a_reason(
    service: Service, ep_size: int, fields: dict[str, Any], words: str
) -> None:
    made = frame({3: [10, 10]}, who=producer(ep_size=ep_size), **fields)
    assert service.push(made).status_code == 200
    [layer] = service.get("/v1/placement")["layers"]
    assert words in layer.pop("reason")
    unknown = (
        "physical_experts",
        "version",
        "since",
        "everywhere_since",
        "copies",
        "table",
        "doubles",
        "partial",
    )
    assert layer == {"layer": 3, "num_experts": 2} | dict.fromkeys(unknown)


def test_too_many_copies_are_refused_before_they_are_listed(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service()
    _push(service, 0, placement=halves(4, 2))
    monkeypatch.setattr(placement_now, "MAX_COPIES", 7)
    answer = service.client.get("/v1/placement")
    assert (answer.status_code, "ask for form=tables" in answer.json()["detail"]) == (400, True)
    assert len(service.get("/v1/placement", layer=3)["layers"]) == 1
    assert len(service.get("/v1/placement", form="tables")["layers"]) == 2
    monkeypatch.setattr(placement_now, "MAX_NUMBERS", 7)
    assert service.client.get("/v1/placement", params={"form": "tables"}).status_code == 400


def test_a_start_with_fewer_ranks_is_not_shown_where_the_former_one_was(service: Service) -> None:
    service.clock.now = AT + 1
    for dp_rank in (0, 1):
        _push(service, dp_rank, placement=halves(4, 2, version=9))
    service.clock.now = AT + 100
    alone = producer(ep_size=4)
    epoch = EPOCH + 90 * 10**9
    made = frame({3: [10] * 4}, who=alone, epoch=epoch, placement=halves(4, 1, ep_size=4, version=0))
    assert service.push(made).status_code == 200
    answer = service.get("/v1/placement")
    assert answer["ep_size"] == 4
    [layer] = answer["layers"]
    assert (layer["version"], [copies[0]["ep_rank"] for copies in layer["copies"]]) == (0, [0, 1, 2, 3])


def test_each_double_is_named_once_in_the_compact_form(service: Service) -> None:
    _push(service, 0, placement=placement([0, 1, 2, 2, 2, 3, 1, 1], [0, 0, 0, 0, 0, 1, 1, 1], layers=2))
    expected = [{"ep_rank": 0, "expert": 2, "copies": 3}, {"ep_rank": 1, "expert": 1, "copies": 2}]
    assert [layer["doubles"] for layer in service.get("/v1/placement")["layers"]] == [expected] * 2
    answer = service.get("/v1/placement", form="tables")
    assert [layer["doubles"] for layer in answer["layers"]] == [None] * 2
    assert [table["doubles"] for table in answer["tables"]] == [expected]


def test_a_worker_that_tells_no_placement_keeps_it_from_being_everywhere(service: Service) -> None:
    for dp_rank in (0, 1):
        told = {"placement": halves(4, 2)} if dp_rank == 0 else {"unavailable": {"placement": "no map"}}
        _push(service, dp_rank, **told)
    [layer, _] = service.get("/v1/placement")["layers"]
    assert (layer["everywhere_since"], layer["partial"]) == (
        None,
        "partial: 1 of 2 workers tells no placement",
    )


def test_layers_and_workers_of_which_nothing_is_told_are_said(service: Service) -> None:
    who = producer(ep_size=2, dp_size=2, pp_size=2)
    made = frame(
        {3: [10] * 4},
        who=who,
        placement=halves(4, 1),
        uncovered=[wire.UncoveredLayer(4, "monolithic kernel")],
        absent=[wire.UncoveredLayer(5, "not found")],
        absent_unnamed="others are not found",
    )
    assert service.push(made).status_code == 200
    answer = service.get("/v1/placement")
    assert [layer["layer"] for layer in answer["layers"]] == [3]
    assert answer["uncovered"] == [{"layer": 4, "reason": "monolithic kernel"}]
    assert [item["layer"] for item in answer["absent"]] == [5, None]
    assert "DP ranks [1] never reported" in answer["partial"]
    assert "pipeline stages [1]" in answer["partial"]
    asked = service.get("/v1/placement", layer=4)
    assert (asked["layers"], [item["layer"] for item in asked["uncovered"]]) == ([], [4])
