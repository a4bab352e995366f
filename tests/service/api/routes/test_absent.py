"""Answers over all layers name those that the model's config has and that nothing counts."""

from __future__ import annotations

import pytest

from moescope.capture import wire
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer

NAMED = {"layer": 7, "reason": "nothing that routes was found in it (FooBlock)"}
UNNAMED = {"layer": None, "reason": "others are not found"}


@pytest.fixture
def fleet(service: Service) -> Service:
    """Two DP ranks with a layer that is counted, one that can't be, and absent ones."""
    for dp_rank in (0, 1):
        made = frame(
            {0: [300, 100]},
            who=producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2),
            placement=halves(2, 1),
            uncovered=[wire.UncoveredLayer(5, "monolithic kernel")],
            absent=[wire.UncoveredLayer(7, NAMED["reason"])],
            absent_unnamed=UNNAMED["reason"] if dp_rank else "",
        )
        assert service.push(made).json()["result"] == "accepted"
    return service


@pytest.mark.parametrize(
    "path",
    ["/v1/balance", "/v1/histogram", "/v1/view", "/v1/trend", "/v1/stragglers", "/v1/drift", "/v1/advice"],
)
def test_answers_over_all_layers_name_them(fleet: Service, path: str) -> None:
    assert fleet.get(path)["absent"] == [NAMED, UNNAMED]


def test_a_comparison_names_those_of_both_sides(fleet: Service) -> None:
    fleet.push(frame({0: [2, 2]}, who=producer(server="whole")))
    answer = fleet.get("/v1/compare", server="prod", base_server="whole", base_model="tiny")
    assert (answer["side"]["absent"], answer["base"]["absent"]) == ([NAMED, UNNAMED], [])


def test_ranks_name_those_of_each_worker(fleet: Service) -> None:
    first, second = (rank["producers"][0] for rank in fleet.get("/v1/ranks")["deployments"][0]["dp_ranks"])
    assert (first["absent"], second["absent"]) == ([NAMED], [NAMED, UNNAMED])


def test_an_absent_layer_may_be_asked_for_and_has_no_counts(fleet: Service) -> None:
    answer = fleet.get("/v1/histogram", layer=7)
    assert (answer["layers"], answer["absent"]) == ([], [NAMED, UNNAMED])
    assert fleet.get("/v1/stragglers", layer=7)["layers"] == []


def test_advice_counts_it_among_the_layers_that_could_not_be_judged(fleet: Service) -> None:
    left_out = {entry["layer"]: entry["reason"] for entry in fleet.get("/v1/advice")["left_out"]}
    assert left_out[7] == f"absent: {NAMED['reason']}"


def test_a_model_of_which_nothing_was_found_is_not_empty_in_silence(service: Service) -> None:
    service.push(frame({}, tokens=3, absent_unnamed=UNNAMED["reason"]))
    answer = service.get("/v1/balance")
    assert (answer["layers"], answer["absent"]) == ([], [UNNAMED])
