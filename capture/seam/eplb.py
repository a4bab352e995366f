"""Where vLLM's expert-parallel load balancer (EPLB) has put the experts, by version of the placement.

EPLB runs after each forward pass, dummy passes included, in step on all EP ranks. Every so many passes it
rearranges the experts: at once, or, asynchronously, layer by layer over later passes. vLLM keeps the map on
the device only; here it is copied with the snapshots of the counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from moescope.capture.seam.expert_maps import ExpertMaps
from moescope.capture.wire import Int64Array, MoeLayer, Placement, PlacementTable, pack_ids

logger = logging.getLogger("vllm.moescope")
T = TypeVar("T")


class PlacementMap(NamedTuple):
    """Where the experts were: ``map``, int64 [MoE layers, P], has the logical expert of each physical one."""

    version: int
    map: Int64Array


class EplbWatch:
    """Follows the placement of one worker's model.

    A placement's version is the number of rearrangements that EPLB had begun. All ranks run EPLB in step, so
    they give a placement the same version.

    Args:
        model_runner: vLLM's. Its EPLB state is read anew each time.
        modules: vLLM's modules of the covered layers.
        lost: called once, with the reason, when the state can no longer be read. No version is told then.

    Raises:
        LookupError: EPLB has no model with these layers.
    """

    def __init__(self, model_runner: Any, modules: Sequence[Any], lost: Callable[[str], None]) -> None:
        self._runner = model_runner
        self._modules = list(modules)
        self._on_loss = lost
        self._is_lost = False
        self._begun = 0
        self._passes = self._passes_since()
        self._moves(), self._version()  # a state that can't be read must show here, and not in a step
        self.rows = self._find()[1]
        """For each covered layer its row in the map: its ordinal among MoE layers, not its decoder index."""

    @property
    def map(self) -> torch.Tensor:
        """int64 [MoE layers, P] on the device."""
        found: torch.Tensor = self._find()[0].physical_to_logical_map
        return found

    def expert_maps(self, ep_size: int, device: torch.device) -> ExpertMaps:
        """The maps that the routers of the covered layers read.

        Raises:
            LookupError: they are not as moescope knows them.
        """
        return ExpertMaps(self._modules, lambda: int(self.map.shape[1]), ep_size, device)

    @property
    def version(self) -> int | None:
        """The version of the placement from the next pass on; None while experts move layer by layer.

        Any thread may ask.
        """
        return self._guarded(self._version, None)

    def look(self) -> None:
        """Notice a rearrangement; called once in each forward pass by the thread that enqueues the steps."""
        self._guarded(self._look, None)

    def moves_after_this_pass(self) -> bool:
        """Whether EPLB rearranges right after the pass under way: later counts have another placement."""
        return self._guarded(self._moves, False)

    def _version(self) -> int | None:
        if self._find()[0].rebalanced:
            return None
        return self._begun + (self._passes_since() < self._passes)

    def _look(self) -> None:
        passes = self._passes_since()
        self._begun, self._passes = self._begun + (passes < self._passes), passes

    def _moves(self) -> bool:
        state = self._runner.eplb_state
        return not state.is_async and self._passes + 1 >= int(state.expert_rearrangement_step_interval)

    def _guarded(self, read: Callable[[], T], otherwise: T) -> T:
        """What is read of the state; once it can't be read, the placement is lost for good, and no more."""
        if self._is_lost:
            return otherwise
        try:
            return read()
        except Exception as error:  # noqa: BLE001 - counts don't need it
            self._is_lost = True
            self._on_loss(_unreadable(error))
            return otherwise

    def _passes_since(self) -> int:
        """Forward passes since the last rearrangement."""
        return int(self._runner.eplb_state.expert_rearrangement_step)

    def _find(self) -> tuple[Any, list[int]]:
        """The state of the model that has our layers, not of a draft model, and their MoE ordinals."""
        for state in self._runner.eplb_state.model_states.values():
            ordinals = {id(module): i for i, module in enumerate(state.model.moe_layers)}
            rows = [ordinals.get(id(module)) for module in self._modules]
            if None not in rows:
                return state, [row for row in rows if row is not None]
        raise LookupError("EPLB has no model with the covered layers")


class MovingPlacement:
    """Turns maps of EPLB into the placements that frames carry.

    Args:
        layers: the covered layers.
        rows: see `EplbWatch.rows`.
        ep_size: EP ranks, which hold equally many physical experts, in their order.

    Attributes:
        placement: the latest; None before the first map, and after one that does not fit the layers.
    """

    def __init__(self, layers: Sequence[MoeLayer], rows: Sequence[int], ep_size: int) -> None:
        self.placement: Placement | None = None
        self._layers = list(layers)
        self._rows = list(rows)
        self._ep_size = ep_size
        self._map: Int64Array | None = None

    def update(self, latest: PlacementMap) -> None:
        """Take a map. If it is equal to the last one, the placement keeps its version."""
        if self._map is not None and np.array_equal(latest.map, self._map):
            return
        self._map = latest.map
        try:
            self.placement = self._build(latest.version, latest.map[self._rows])
        except ValueError as error:
            self.placement = None
            logger.error("moescope: EPLB's placement of experts is not understood: %s", error)

    def _build(self, version: int, maps: Int64Array) -> Placement:
        physical = maps.shape[1]
        if physical % self._ep_size:
            raise ValueError(f"{physical} physical experts on {self._ep_size} EP ranks")
        ep_ranks = pack_ids([expert // (physical // self._ep_size) for expert in range(physical)])
        tables: list[PlacementTable] = []
        table_of_layer: list[int] = []
        for layer, row in zip(self._layers, maps.tolist(), strict=True):
            if set(row) != set(range(layer.num_experts)):
                raise ValueError(f"layer {layer.layer} has other experts than 0 .. {layer.num_experts - 1}")
            table = PlacementTable(pack_ids(row), ep_ranks)
            if table not in tables:
                tables.append(table)
            table_of_layer.append(tables.index(table))
        return Placement(version=version, tables=tables, table_of_layer=table_of_layer)


def watch_eplb(
    model_runner: Any, modules: Sequence[Any], vllm_config: Any, lost: Callable[[str], None]
) -> EplbWatch | None:
    """A watch where EPLB moves experts among a fixed number of EP ranks, else None.

    Args:
        lost: called with the reason if EPLB moves experts and it can't be told where they are.
    """
    parallel = vllm_config.parallel_config
    if not parallel.enable_eplb or not modules:
        return None
    if getattr(parallel, "enable_elastic_ep", False):
        lost("elastic expert parallelism changes the number of EP ranks while it serves")
        return None
    try:
        return EplbWatch(model_runner, modules, lost)
    except Exception as error:  # noqa: BLE001 - counts don't need it
        lost(_unreadable(error))
        return None


def _unreadable(error: Exception) -> str:
    return f"where EPLB puts the experts can't be read: {error!r}"
