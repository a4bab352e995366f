"""vLLM's own maps from logical to physical experts, where its routers read them on the device.

EPLB has one map tensor for all MoE layers of a model, and each layer a view of its part. A rearrangement is
committed in place, between two passes and in the order of the steps' stream (vLLM 0.20 to 0.33: `copy_` in
`_commit_eplb_maps` and `_commit_eplb_maps_for_layer`). So whoever reads these addresses within a pass sees
the placement that the pass is routed by, in CUDA graphs too. `replaced` says if vLLM has put others there.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        num_physical: physical experts of a layer on all EP ranks, which hold equally many, in their order.
        ep_size: R, the number of EP ranks.
        device: the worker's.

    Attributes:
        layers: the layers' maps, by ordinal.
        per_rank: physical experts of a layer on each EP rank.
        rule: which copy a slot goes to.

    Raises:
        LookupError: they are not as moescope knows them.
    """

    def __init__(self, modules: Sequence[Any], num_physical: int, ep_size: int, device: torch.device) -> None:
        if num_physical % ep_size:
            raise LookupError(f"{num_physical} physical experts on {ep_size} EP ranks")
        self._modules = list(modules)
        self.per_rank = num_physical // ep_size
        self.layers = self._read(device)
        redundant = any(len(layer.copies) != num_physical for layer in self.layers)
        self.rule = find_rule(device) if redundant else ReplicaRule.ONE_COPY
        self._device = device
        self._addresses = self._where()

    def replaced(self) -> bool:
        """Whether vLLM has put other tensors in the place of those in `layers`; reads no value on the device.

        Any layer's tensors are views of the same two, so the first and the last layer tell.
        """
        return self._where() != self._addresses

    def follow(self) -> None:
        """Take what vLLM has put in their place.

        Raises:
            LookupError: it is not as moescope knows it.
        """
        self.layers = self._read(self._device)
        self._addresses = self._where()

    def _where(self) -> list[int]:
        ends = (self._modules[0], self._modules[-1])
        return [tensor.data_ptr() for module in ends for tensor in _map_of(module)]

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


def _map_of(module: Any) -> LayerMap:
    """The map of a layer, from the state that its router reads in each pass.

    Raises:
        LookupError: the layer has none.
    """
    state = getattr(module, "eplb_state", None)
    if state is None:  # a `FusedMoE` whose router holds it
        state = getattr(getattr(module, "router", None), "eplb_state", None)
    physical = getattr(state, "logical_to_physical_map", None)
    copies = getattr(state, "logical_replica_count", None)
    if physical is None or copies is None:
        raise LookupError(f"{type(module).__name__} has no map of EPLB")
    return LayerMap(physical, copies)
