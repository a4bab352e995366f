"""A placement as JSON that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moescope.service.advice.advise import UnanswerableError
from moescope.service.advice.placements import PlacementArrays
from moescope.service.advice.whole import Whole


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
    """The expert map that vllm-ascend loads (``expert_map_path``); layers are ordinals among MoE layers.

    :func:`check_ascend` tells whether vllm-ascend would read it as it is meant.
    """
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


def check_ascend(whole: Whole) -> None:
    """Check that vllm-ascend would read the map of a placement as it is meant.

    It takes layers by their ordinal among the MoE layers that a worker builds, each device's experts as a set
    of as many as device 0 has, and the physical expert ``rank * (experts on device 0) + place``
    (``vllm_ascend/eplb/core/eplb_utils.py``: ``expert_file_to_tensor``, ``generate_log2phy_map``).

    Raises:
        UnanswerableError: it would not; says why and what to do.
    """
    reason = _why_not_ascend(whole)
    if reason is not None:
        raise UnanswerableError(
            "not-for-vllm-ascend", f"vllm-ascend could not read this as it is meant: {reason}"
        )


def _why_not_ascend(whole: Whole) -> str | None:
    placement = whole.placement
    if placement.ranks == 1:
        return "it takes a map only where there is more than one EP rank. Give ranks."
    if whole.stages > 1 and not whole.one_stage:
        return (
            "it numbers the MoE layers from 0 in each pipeline stage, and this deployment has "
            f"{whole.stages}. Give pp_rank for the map of one stage."
        )
    unplaced = [(f"layer {layer}", reason) for layer, reason in whole.left_out.items()]
    if None in whole.window.absent:
        unplaced.append(("layers of which it isn't known which", whole.window.absent[None]))
    if unplaced:
        name, reason = unplaced[0]
        more = f" and {len(unplaced) - 1} more" if len(unplaced) > 1 else ""
        return f"it numbers the layers in order, and {name}{more} can't be placed ({reason})."
    doubles = placement.doubles()
    if doubles:
        first = doubles[0]
        return (
            f"it takes a device's experts as a set, and EP rank {first.rank} has {first.copies} copies of "
            f"expert {first.expert} in layer {whole.layers[first.row]}. Ask for fewer redundant experts, or "
            "for policy=moescope."
        )
    held = np.array([np.bincount(row, minlength=placement.ranks) for row in placement.rank])
    if (held != held[0, 0]).any():
        sizes = sorted(set(held.reshape(-1).tolist()))
        return (
            f"its devices must hold equally many experts, and here they hold {' or '.join(map(str, sizes))}. "
            "Give strategy=eplb with redundant experts that fit."
        )
    return None
