"""How vllm-ascend reads the file that its ``expert_map_path`` names, written from what its code does.

``vllm_ascend/eplb/core/eplb_utils.py``: a layer is taken by the ordinal that a worker gives to its MoE
layers. For each device it makes a map from expert to place. A physical expert is the device times the
number of experts that device 0 has in its map, plus the place. The weights are loaded to the places of the
map, and physical experts are shared out evenly over devices.
"""

from __future__ import annotations

from typing import Any


def misread(file: dict[str, Any], *, layers: int, experts: int) -> list[str]:
    """What a worker with so many MoE layers of so many experts would get wrong, a sentence each."""
    wrong = []
    for ordinal in range(layers):
        if ordinal >= file["moe_layer_count"]:
            wrong.append(f"layer {ordinal}: not in the file")
            continue
        devices = [device["device_expert"] for device in file["layer_list"][ordinal]["device_list"]]
        maps = [{expert: place for place, expert in enumerate(held)} for held in devices]
        valid_count = len(maps[0])
        physical = sum(map(len, devices))
        each = physical // len(devices)
        weights: dict[int, int] = {}
        for rank, (held, known) in enumerate(zip(devices, maps, strict=True)):
            if len(held) != each:
                wrong.append(f"layer {ordinal}: device {rank} has {len(held)} experts, not {each}")
            weights |= {rank * each + place: expert for expert, place in known.items()}
        for expert in range(experts):
            copies = [
                known[expert] + rank * valid_count for rank, known in enumerate(maps) if expert in known
            ]
            wrong += [f"layer {ordinal}: expert {expert} has no copy"] * (not copies)
            wrong += [
                f"layer {ordinal}: physical expert {copy} is taken for {expert}, and has {weights.get(copy)}"
                for copy in copies
                if weights.get(copy) != expert
            ]
    return wrong
