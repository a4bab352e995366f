"""Maps of logical to physical experts as vLLM's EPLB has them, at random, in modules like vLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from moescope.capture.counting.device_maps import DeviceMaps
from moescope.capture.seam.expert_maps import ExpertMaps
from moescope.capture.seam.replica_rule import ReplicaRule
from moescope.capture.wire import Int64Array

SPARE = 3
"""Columns of the map beyond the most copies, as vLLM has many."""


class RandomMaps:
    """The maps of layers whose experts are where a random arrangement puts them; `move` arranges them anew.

    As in vLLM, one tensor has the maps of all layers, and each layer's state a view of its part. Several
    numbers of experts make several tensors.

    Attributes:
        physical_to_logical: int64 [P] of each layer; each expert is there once at least.
        modules: what `ExpertMaps` reads.
    """

    def __init__(
        self, experts: Sequence[int], num_physical: int, ep_size: int, device: torch.device, seed: int = 0
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self.ep_size, self.per_rank = ep_size, num_physical // ep_size
        assert num_physical % ep_size == 0
        self._num_physical, self._experts = num_physical, list(experts)
        most = num_physical - min(experts) + 1
        slots = most + SPARE
        self._maps = [torch.full((count, slots), -1, device=device) for count in experts]
        self._copies = [torch.zeros(count, dtype=torch.int64, device=device) for count in experts]
        self.physical_to_logical: list[Int64Array] = []
        self.modules: list[Any] = [
            SimpleNamespace(
                eplb_state=SimpleNamespace(logical_to_physical_map=physical, logical_replica_count=copies)
            )
            for physical, copies in zip(self._maps, self._copies, strict=True)
        ]
        self.move()

    def move(self) -> None:
        """Rearrange the experts of all layers, in place."""
        self.physical_to_logical = [self._arrangement(count) for count in self._experts]
        for found, physical, copies in zip(self.physical_to_logical, self._maps, self._copies, strict=True):
            table = np.full(physical.shape, -1)
            count = np.zeros(len(copies), np.int64)
            for place, expert in enumerate(found.tolist()):
                table[expert, count[expert]] = place
                count[expert] += 1
            physical.copy_(torch.from_numpy(table))
            copies.copy_(torch.from_numpy(count))

    def _arrangement(self, experts: int) -> Int64Array:
        more = self._rng.integers(0, experts, self._num_physical - experts)
        return np.asarray(self._rng.permutation(np.concatenate([np.arange(experts), more])))

    def device_maps(self, device: torch.device, rule: ReplicaRule) -> DeviceMaps:
        """These maps as the kernels take them; the rule is given, as there may be no vLLM to ask."""
        maps = ExpertMaps.__new__(ExpertMaps)
        maps._modules, maps._device = self.modules, device
        maps.per_rank, maps.rule, maps._physical = self.per_rank, rule, self._num_physical
        maps._ask_physical = lambda: self._num_physical
        maps.layers = maps._read(device)
        maps._remember()
        return DeviceMaps(maps, device)
