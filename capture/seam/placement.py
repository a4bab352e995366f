"""Where the experts are, as vLLM places them without EPLB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moescope.capture.seam.coverage import RoutedLayer
from moescope.capture.seam.features import expert_map_function
from moescope.capture.wire import Placement, PlacementTable, pack_ids


def read_placement(routed: Sequence[RoutedLayer], vllm_config: Any) -> Placement | None:
    """Where the experts are; None without expert parallelism, and under EPLB, which moves them."""
    parallel = vllm_config.parallel_config
    if not routed or not parallel.enable_expert_parallel or parallel.enable_eplb:
        return None
    tables: list[PlacementTable] = []
    table_of_layer: list[int] = []
    for layer in routed:
        module = layer.module
        manager = getattr(module, "expert_map_manager", None)
        if manager is not None:
            table = _placement_table(layer.spec.num_experts, manager.ep_size, manager.placement_strategy)
        elif hasattr(module, "expert_placement_strategy"):  # a `FusedMoE` of vLLM 0.20 and 0.21
            table = _placement_table(layer.spec.num_experts, module.ep_size, module.expert_placement_strategy)
        else:  # a module that routes by itself holds a span of experts
            table = _span_table(layer.spec.num_experts, int(module.num_local_experts))
        if table not in tables:
            tables.append(table)
        table_of_layer.append(tables.index(table))
    return Placement(version=0, tables=tables, table_of_layer=table_of_layer)


def _span_table(num_experts: int, num_local: int) -> PlacementTable:
    """Each EP rank holds the next `num_local` experts."""
    logical = range(num_experts)
    return PlacementTable(pack_ids(list(logical)), pack_ids([expert // num_local for expert in logical]))


def _placement_table(num_experts: int, ep_size: int, strategy: str) -> PlacementTable:
    """Ask vLLM's own function, for each EP rank, which logical experts it holds."""
    determine_expert_map = expert_map_function()
    logical: list[int] = []
    ep_ranks: list[int] = []
    for ep_rank in range(ep_size):
        _, expert_map, _ = determine_expert_map(
            ep_size=ep_size,
            ep_rank=ep_rank,
            global_num_experts=num_experts,
            expert_placement_strategy=strategy,
        )
        held = range(num_experts) if expert_map is None else (expert_map >= 0).nonzero().flatten().tolist()
        logical.extend(held)
        ep_ranks.extend([ep_rank] * len(held))
    return PlacementTable(pack_ids(logical), pack_ids(ep_ranks))
