"""Where vLLM's expert-parallel load balancer (EPLB) has put the experts, by version: part of the seam.

EPLB runs after each forward pass, dummy passes included, in step on all EP ranks. Every so many passes it
rearranges the experts: at once, or, asynchronously, layer by layer over later passes. vLLM keeps the map on
the device only; here it is copied with the snapshots of the counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from moescope.capture.wire import Int64Array, MoeLayer, Placement, PlacementTable, pack_ids


class PlacementMap(NamedTuple):
    """A placement on the device: ``map``, int64 [MoE layers, P], has the logical expert of each physical."""

    version: int
    map: torch.Tensor


class EplbWatch:
    """Follows the placement of one worker's model; all calls come from the thread that enqueues the steps.

    The version is the number of rearrangements that EPLB has begun. All ranks run it in step, so that they
    give one placement the same version. While experts move layer by layer the last settled placement holds.

    Args:
        model_runner: vLLM's; its state is asked anew each time.
        routers: of the covered layers.
    """

    def __init__(self, model_runner: Any, routers: Sequence[Any]) -> None:
        self.version = 0
        self._runner = model_runner
        self._routers = list(routers)
        self._passes: int | None = None

    @property
    def rows(self) -> list[int]:
        """The row of each covered layer in the map; its rows are MoE ordinals, not decoder indices."""
        return self._find()[1]

    def pass_begins(self) -> None:
        """A forward pass is about to run: EPLB is through with the one before."""
        passes = int(self._runner.eplb_state.expert_rearrangement_step)  # since the last rearrangement
        if self._passes is not None and passes < self._passes:
            self.version += 1
        self._passes = passes

    def moves_after_this_pass(self) -> bool:
        """Whether EPLB rearranges at once after the pass under way: a snapshot before that is exact."""
        state = self._runner.eplb_state
        interval = int(state.expert_rearrangement_step_interval)
        return not state.is_async and int(state.expert_rearrangement_step) + 1 >= interval

    def settled(self) -> PlacementMap | None:
        """The placement in force from the next pass on, or None while experts move layer by layer."""
        found = self._find()[0]
        if found.rebalanced:
            return None
        begun = int(self._runner.eplb_state.expert_rearrangement_step) < (self._passes or 0)
        return PlacementMap(self.version + begun, found.physical_to_logical_map)

    def _find(self) -> tuple[Any, list[int]]:
        """The state of the model that has our routers, not of a draft model, and their MoE ordinals."""
        for state in self._runner.eplb_state.model_states.values():
            ordinals = {id(layer.router): i for i, layer in enumerate(state.model.moe_layers)}
            rows = [ordinals.get(id(router)) for router in self._routers]
            if None not in rows:
                return state, [row for row in rows if row is not None]
        raise LookupError("EPLB knows no model with the covered layers")


class MovingPlacement:
    """From maps to what frames carry.

    Args:
        layers: the covered layers.
        rows: see `EplbWatch.rows`.
        ep_size: EP ranks, which hold as many physical experts each, in their order.
    """

    def __init__(self, layers: Sequence[MoeLayer], rows: Sequence[int], ep_size: int) -> None:
        self.placement: Placement | None = None
        self._rows = list(rows)
        self._layers = list(layers)
        self._ep_size = ep_size

    def update(self, version: int, physical_to_logical: Int64Array) -> Placement:
        """Take a map [MoE layers, P] of this version; a version that is known is not looked at again.

        Raises:
            ValueError: it is no placement of the layers' experts on these ranks.
        """
        if self.placement is None or version != self.placement.version:
            self.placement = self._build(version, physical_to_logical[self._rows])
        return self.placement

    def _build(self, version: int, maps: Int64Array) -> Placement:
        physical = maps.shape[1]
        if physical % self._ep_size:
            raise ValueError(f"{physical} physical experts on {self._ep_size} EP ranks")
        ep_ranks = pack_ids([p // (physical // self._ep_size) for p in range(physical)])
        tables: list[PlacementTable] = []
        table_of_layer: list[int] = []
        for layer, row in zip(self._layers, maps.tolist(), strict=True):
            if set(row) != set(range(layer.num_experts)):
                raise ValueError(f"layer {layer.layer}: the map lacks one of {layer.num_experts} experts")
            table = PlacementTable(pack_ids(row), ep_ranks)
            if table not in tables:
                tables.append(table)
            table_of_layer.append(tables.index(table))
        return Placement(version=version, tables=tables, table_of_layer=table_of_layer)
