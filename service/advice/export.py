"""A placement as JSON that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moescope.service.advice.placements import PlacementArrays


def placement_map(layers: Sequence[int], placement: PlacementArrays) -> dict[str, Any]:
    """Our own form; ``physical_to_logical_map`` is laid out as vLLM's tensor of that name in its EPLB state.

    Rows are MoE layers in the order of ``layers`` (decoder layer indices), columns physical experts.
    ``physical_to_rank`` has the EP rank of each of them.
    """
    return {
        "num_logical_experts": placement.experts,
        "num_physical_experts": placement.logical.shape[1],
        "num_ranks": placement.ranks,
        "layers": list(layers),
        "physical_to_logical_map": placement.logical.tolist(),
        "physical_to_rank": placement.rank.tolist(),
        "logical_replica_count": placement.copies.tolist(),
    }


def ascend_map(placement: PlacementArrays) -> dict[str, Any]:
    """The expert map that vllm-ascend loads (``expert_map_path``); layers are ordinals among MoE layers."""
    return {
        "moe_layer_count": len(placement.logical),
        "layer_list": [
            {
                "layer_id": number,
                "device_count": placement.ranks,
                "device_list": [
                    {"device_id": device, "device_expert": logical[rank == device].tolist()}
                    for device in range(placement.ranks)
                ],
            }
            for number, (logical, rank) in enumerate(zip(placement.logical, placement.rank, strict=True))
        ],
    }
