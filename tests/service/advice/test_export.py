"""A placement in the forms that others read."""

from __future__ import annotations

import numpy as np

from moescope.service.advice.export import ascend_map, placement_map
from moescope.service.advice.placements import PlacementArrays, distinct, eplb
from tests.service.advice.ascend import misread

# Two layers of three experts on two ranks: in the second one expert 2 has both of rank 1's places.
PLACEMENT = PlacementArrays(
    logical=np.array([[0, 1, 2, 0], [0, 1, 2, 2]]),
    rank=np.array([[0, 0, 1, 1], [0, 0, 1, 1]]),
    experts=3,
    ranks=2,
)


def test_the_map_has_what_vllm_s_tensor_has() -> None:
    assert placement_map([3, 7], PLACEMENT) == {
        "num_logical_experts": 3,
        "num_physical_experts": 4,
        "num_ranks": 2,
        "layers": [3, 7],
        "physical_to_logical_map": [[0, 1, 2, 0], [0, 1, 2, 2]],
        "physical_to_rank": [[0, 0, 1, 1], [0, 0, 1, 1]],
        "logical_replica_count": [[2, 1, 1], [1, 1, 2]],
    }


def test_vllm_ascend_s_file_numbers_the_moe_layers() -> None:
    made = ascend_map(PLACEMENT)
    assert made["moe_layer_count"] == 2
    assert [layer["layer_id"] for layer in made["layer_list"]] == [0, 1]
    assert made["layer_list"][1] == {
        "layer_id": 1,
        "device_count": 2,
        "device_list": [{"device_id": 0, "device_expert": [0, 1]}, {"device_id": 1, "device_expert": [2, 2]}],
    }


def test_vllm_ascend_finds_every_expert_in_our_placements_and_not_where_there_are_doubles() -> None:
    loads = np.array([[100, 6000, 400, 100, 100, 400, 2600, 100, 100, 6000, 100, 100, 100, 6000, 1400, 700]])
    for redundant in (0, 4, 8, 16, 48):
        assert misread(ascend_map(distinct(loads, redundant, 1, 1, 4)), layers=1, experts=16) == []
    # vLLM's policy puts expert 9 on rank 0 twice, so all further devices are taken to begin one place sooner.
    assert len(misread(ascend_map(eplb(loads, 8, 1, 1, 4)), layers=1, experts=16)) >= 8
    uneven = PlacementArrays(np.array([[0, 1, 2]]), np.array([[0, 1, 1]]), 3, 2)
    assert misread(ascend_map(uneven), layers=1, experts=3) != []
    assert misread(ascend_map(PLACEMENT), layers=3, experts=3) == ["layer 2: not in the file"]
