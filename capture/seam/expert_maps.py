"""vLLM's own maps from logical to physical experts, where its routers read them on the device.

EPLB has one map tensor for all MoE layers of a model, and each layer a view of its part. A rearrangement is
committed in place, between two passes and in the order of the steps' stream (vLLM 0.20 to 0.33: `copy_` in
`_commit_eplb_maps` and `_commit_eplb_maps_for_layer`). So whoever reads these addresses within a pass sees
the placement that the pass is routed by, in CUDA graphs too. `replaced` says if vLLM has put others there, of
another place, stride or shape, in any layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from moescope.capture.seam.replica_rule import ReplicaRule, find_rule


class LayerMap(NamedTuple):
    """The map of one layer, as its router reads it.

    Attributes:
        physical: int64 [E, S], the physical experts that are copies of each logical one, then -1.
        copies: int64 [E], how many copies each logical expert has.
    """

    physical: torch.Tensor
    copies: torch.Tensor


class ExpertMaps:
    """The maps of the covered layers.

    Args:
        modules: vLLM's modules of the covered layers.
        num_physical: tells how many physical experts a layer has on all EP ranks, which hold equally many,
            in their order; asked again where maps were replaced.
        ep_size: R, the number of EP ranks.
        device: the worker's.

    Attributes:
        layers: the layers' maps, by ordinal.
        per_rank: physical experts of a layer on each EP rank.
        rule: which copy a slot goes to.

    Raises:
        LookupError: they are not as moescope knows them.
    """

    def __init__(
        self, modules: Sequence[Any], num_physical: Callable[[], int], ep_size: int, device: torch.device
    ) -> None:
        self._modules = list(modules)
        self._device = device
        self._ask_physical = num_physical
        self._physical = num_physical()
        if self._physical % ep_size:
            raise LookupError(f"{self._physical} physical experts on {ep_size} EP ranks")
        self.per_rank = self._physical // ep_size
        self.layers = self._read(device)
        redundant = any(len(layer.copies) != self._physical for layer in self.layers)
        self.rule = find_rule(device) if redundant else ReplicaRule.ONE_COPY
        self._turn = 0
        self._remember()

    def replaced(self) -> bool:
        """Whether vLLM has put other tensors in the place of those in `layers`; reads no value on the device.

        For each step. Other tensor objects show at once, in any layer: then all layers are looked at. A state
        that was replaced as a whole, and a tensor that was changed in place, show in the turn of the layer:
        one layer has it in each call.
        """
        if self._moved(self._turn):
            return True
        self._turn = (self._turn + 1) % len(self._modules)
        for state, physical, copies in self._held:
            if state.logical_to_physical_map is not physical or state.logical_replica_count is not copies:
                break
        else:
            return False
        if any(map(self._moved, range(len(self._modules)))):
            return True
        self._remember()  # other objects of the same tensors
        return False

    def follow(self) -> None:
        """Take what vLLM has put in their place; where that raises, `layers` are those before.

        The numbers of experts stay: on them rest `per_rank`, whether experts have copies, and so `rule`.

        Raises:
            LookupError: it is not as moescope knows it, or has other numbers of physical or logical experts.
        """
        layers, physical = self._read(self._device), self._ask_physical()
        if physical != self._physical:
            raise LookupError(f"there are {physical} physical experts, and were {self._physical}")
        for ordinal, (new, old) in enumerate(zip(layers, self.layers, strict=True)):
            if len(new.copies) != len(old.copies):
                raise LookupError(
                    f"the map of covered layer {ordinal} has {len(new.copies)} logical experts, and had "
                    f"{len(old.copies)}"
                )
        self.layers = layers
        self._remember()

    def _moved(self, ordinal: int) -> bool:
        return _place_of(_map_of(self._modules[ordinal])) != self._places[ordinal]

    def _remember(self) -> None:
        """Note where the tensors are, and which objects they are, to see later that they were replaced."""
        self._turn = 0
        states = [_state_of(module) for module in self._modules]
        self._held: list[tuple[Any, Any, Any]] = [
            (s, s.logical_to_physical_map, s.logical_replica_count) for s in states
        ]
        self._places: list[tuple[Any, ...]] = [_place_of(_map_of(module)) for module in self._modules]

    def _read(self, device: torch.device) -> list[LayerMap]:
        layers = [_map_of(module) for module in self._modules]
        for physical, copies in layers:
            known = (
                (physical.dtype, copies.dtype, physical.dim(), copies.dim())
                == (torch.int64, torch.int64, 2, 1)
                and len(physical) == len(copies)
                and physical.stride(1) == copies.stride(0) == 1
                and physical.device == copies.device
                and physical.device.type == device.type
            )
            if not known:
                raise LookupError(
                    f"EPLB's maps are {physical.dtype} {tuple(physical.shape)} on {physical.device} and "
                    f"{copies.dtype} {tuple(copies.shape)}, which moescope doesn't know"
                )
        return layers


def _place_of(layer: LayerMap) -> tuple[Any, ...]:
    """All that kernels go by to read a layer's map."""
    physical, copies = layer
    return physical.data_ptr(), copies.data_ptr(), physical.stride(), physical.shape, copies.shape


def _state_of(module: Any) -> Any:
    """The state that a layer's router reads in each pass; None without one."""
    state = getattr(module, "eplb_state", None)
    if state is None:  # a `FusedMoE` whose router holds it
        state = getattr(getattr(module, "router", None), "eplb_state", None)
    return state


def _map_of(module: Any) -> LayerMap:
    """The map of a layer.

    Raises:
        LookupError: the layer has none.
    """
    state = _state_of(module)
    physical = getattr(state, "logical_to_physical_map", None)
    copies = getattr(state, "logical_replica_count", None)
    if physical is None or copies is None:
        raise LookupError(f"{type(module).__name__} has no map of EPLB")
    return LayerMap(physical, copies)
