"""A table on the device that tells the counting kernels where vLLM's maps of experts are.

The kernels read the maps through addresses, as vLLM's own kernel does. A CUDA graph that has a launch reads
the table in each replay, so it also follows maps that vLLM puts elsewhere.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import torch

from moescope.capture.seam.expert_maps import ExpertMaps
from moescope.capture.seam.replica_rule import ReplicaRule, replicas

NO_MAPS: Final = 0
"""What the kernels take for a rule where the EP ranks come from a table of a fixed placement."""


class MapField(IntEnum):
    """The columns of the table, int64 each; its rows are the covered layers, by ordinal."""

    PHYSICAL = 0
    """Where the layer's physical experts are: int64 [E, S]."""
    COPIES = 1
    """Where its numbers of copies are: int64 [E]."""
    STRIDE = 2
    """From the physical experts of one logical expert to those of the next, in elements."""
    PER_RANK = 3
    """Physical experts on each EP rank."""


class DeviceMaps:
    """vLLM's maps as the counting kernels take them; the thread that enqueues the steps calls `follow`.

    Attributes:
        table: int64 [L, len(MapField)] on the device.
    """

    def __init__(self, maps: ExpertMaps, device: torch.device) -> None:
        self._maps = maps
        self.table = torch.tensor(_table(maps), dtype=torch.int64, device=device)

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.table)

    @property
    def num_bytes(self) -> int:
        """Device memory held; the maps are vLLM's."""
        return self.table.numel() * self.table.element_size()

    @property
    def rule(self) -> ReplicaRule:
        """Which copy a slot goes to."""
        return self._maps.rule

    def follow(self) -> None:
        """Read the maps from where they are now; nothing to do but a look at addresses in most steps.

        Raises:
            LookupError: vLLM has replaced them by something that moescope doesn't know.
        """
        if self._maps.replaced():
            self._maps.follow()
            table = torch.tensor(_table(self._maps), dtype=torch.int64, pin_memory=self.table.is_cuda)
            self.table.copy_(table, non_blocking=True)

    def ranks_of(
        self, ordinal: int, experts: torch.Tensor, rows: torch.Tensor, ep_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `LoadRing.ranks_of`."""
        physical_of, copies = self._maps.layers[ordinal]
        replica = replicas(self.rule, rows, experts.shape[1], copies[experts])
        ranks = physical_of[experts, replica].div(self._maps.per_rank, rounding_mode="floor")
        placed = (ranks >= 0) & (ranks < ep_size)
        return ranks.clamp(0, ep_size - 1), placed


def _table(maps: ExpertMaps) -> list[list[int]]:
    return [
        [physical.data_ptr(), copies.data_ptr(), physical.stride(0), maps.per_rank]
        for physical, copies in maps.layers
    ]
