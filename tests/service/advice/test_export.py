"""A placement in the forms that others read."""

from __future__ import annotations

import numpy as np

from moescope.service.advice.export import ascend_map, placement_map
from moescope.service.advice.placements import PlacementArrays

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
