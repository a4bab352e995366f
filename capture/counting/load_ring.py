"""Slots by destination EP rank of single steps, in a ring on the device.

Counts of a window hide ranks that are hot in turn: what stragglers cost shows in single steps only. All DP
ranks of a deployment step together. Dummy steps have numbers too, so a number means the same step on all
ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from moescope.capture.counting.device_maps import DeviceMaps
from moescope.capture.step.word import MAX_PLACES
from moescope.capture.wire import Int64Array, MoeLayer, Placement, unpack_ids

RING_BYTES: Final = 4 << 20
"""Device memory that a ring's places take at most; each copy for snapshots takes as much, and pinned too."""
MAX_STEPS: Final = 4096
MIN_PLACES: Final = 16
"""With fewer places most steps would be overwritten before a snapshot takes them: their loads aren't told."""

Int32Array = npt.NDArray[np.int32]


class RingSteps(NamedTuple):
    """Steps that a copy of the ring has.

    Attributes:
        first: how many steps had a place in the ring before the first one of the copy.
        numbers: int64 [n], the steps' numbers.
    """

    first: int
    numbers: Int64Array


class LoadRing:
    """The ring of one worker. The thread that enqueues the steps calls `begin_step`.

    Only steps that compute tokens have a place. A place has room for each microbatch that vLLM may split a
    step into: the ranks wait for each other in each of them. Whether it splits a step is not known
    beforehand; one that isn't split fills the first. While a step runs, the place of the next is zeroed: so
    the loads of `capacity` steps can be read, one less than there are places.

    A ring for sums only has a single place, whose loads nobody reads: its kernels count slots by EP rank.

    Attributes:
        loads: int32 [C, M, L, R], slots of this worker's tokens by place, microbatch, layer and EP rank.
        ep_ranks: int32 [L, E], the EP rank of each logical expert; E is that of the layer with most experts,
            and the entries that other layers don't need are 0. Not read where there are `maps`.
        maps: vLLM's own maps, by which the EP rank of a slot is told where EPLB moves experts; or None.
        numbers: int64 [C], the number of the step that has each place, on the host.
        computed: steps that had a place so far.
        version: of the placement that `ep_ranks` is of; 0 where there are `maps`.

    Raises:
        LookupError: `RING_BYTES` have no room for `MIN_PLACES` places, or for one with `sums_only`.
    """

    def __init__(
        self,
        ep_ranks: Int32Array,
        ep_size: int,
        version: int,
        device: torch.device,
        maps: DeviceMaps | None = None,
        microbatches: int = 1,
        sums_only: bool = False,
    ) -> None:
        layers = len(ep_ranks)
        shape = (microbatches, layers, ep_size)
        places = _places(shape, sums_only)
        self.loads = torch.zeros(places, *shape, dtype=torch.int32, device=device)
        self.ep_ranks = torch.from_numpy(np.ascontiguousarray(ep_ranks, dtype=np.int32)).to(device)
        self.numbers: Int64Array = np.zeros(places, np.int64)
        self.computed = 0
        self.version = version
        self.maps = maps
        self._layer_at = torch.arange(layers, device=device) * ep_size

    @property
    def capacity(self) -> int:
        """Steps whose loads can be read after a step."""
        return len(self.numbers) - 1

    @property
    def num_bytes(self) -> int:
        """Device memory held."""
        maps = 0 if self.maps is None else self.maps.num_bytes
        return 4 * (self.loads.numel() + self.ep_ranks.numel()) + maps

    @property
    def ep_size(self) -> int:
        """R, the number of EP ranks."""
        return int(self.loads.shape[3])

    def begin_step(self, number: int) -> int:
        """The place of the step of this number, which computes tokens."""
        place = self.computed % len(self.numbers)
        self.numbers[place] = number
        self.computed += 1
        return place

    def zero(self) -> None:
        """Empty the place of the step that begins, for strategies whose kernels don't do it a step ahead."""
        self.loads[(self.computed - 1) % len(self.numbers)].zero_()

    def copy_since(self, first: int, target: torch.Tensor) -> RingSteps:
        """Copy the loads of the latest steps, as far as they are there, in order.

        Args:
            first: how many steps, counted from the first that had a place, are not wanted.
            target: int32 [C, M, L, R], where to, from its beginning; the copies are enqueued.
        """
        places, end = len(self.numbers), self.computed
        first = max(first, end - self.capacity)
        at, count = first % places, end - first
        until_wrap = min(count, places - at)
        if until_wrap:
            target[:until_wrap].copy_(self.loads[at : at + until_wrap])
        if count > until_wrap:
            target[until_wrap:count].copy_(self.loads[: count - until_wrap])
        return RingSteps(first, self.numbers[np.arange(first, end) % places])

    def ranks_of(
        self, ordinal: int, experts: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The EP ranks that hold the copies which slots go to, with torch: the reference of the kernels.

        Args:
            ordinal: the layer's.
            experts: int64 [n, top_k], logical experts of the layer, all in range.
            rows: int64 [n], where in the router's tensor the rows are.

        Returns:
            int64 [n, top_k], from 0 to R - 1; and bool [n, top_k], false where the map names no EP rank.
        """
        if self.maps is None:
            found = self.ep_ranks[ordinal][experts].to(torch.int64)
            return found, torch.ones_like(found, dtype=torch.bool)
        return self.maps.ranks_of(ordinal, experts, rows, self.ep_size)

    def add(
        self,
        ordinal: int,
        ranks: torch.Tensor,
        slots: torch.Tensor,
        place: torch.Tensor,
        microbatch: int = 0,
    ) -> None:
        """Add a layer's slots to the loads of a step, with torch: the reference of the kernels.

        Args:
            ordinal: the layer's.
            ranks: int64 [n], the EP ranks of slots (see `ranks_of`).
            slots: bool [n], which of them are slots.
            place: int64 [1], the step's.
            microbatch: the number of the microbatch that routed them.
        """
        microbatches, layers, ep_size = self.loads.shape[1:]
        at = (place * microbatches + microbatch) * (layers * ep_size) + self._layer_at[ordinal] + ranks
        self.loads.view(-1).scatter_add_(0, at, slots.to(torch.int32))


def _places(shape: tuple[int, int, int], sums_only: bool) -> int:
    """How many places a ring has; `shape` is that of one, [M, L, R]."""
    least, places = 1 if sums_only else MIN_PLACES, RING_BYTES // (4 * math.prod(shape))
    if places < least:
        parts, layers, ep_size = shape
        raise LookupError(
            f"loads of {parts} microbatches, {layers} layers and {ep_size} EP ranks take "
            f"{4 * math.prod(shape)} bytes a step, and {least} steps must fit {RING_BYTES}"
        )
    return 1 if sums_only else min(MAX_STEPS, MAX_PLACES, places)


def ring_by_maps(
    maps: DeviceMaps, ep_size: int, device: torch.device, microbatches: int = 1, sums_only: bool = False
) -> LoadRing:
    """A ring whose loads follow vLLM's own maps, from step to step; raises as `LoadRing`."""
    none = np.zeros((maps.num_layers, 1), np.int32)
    return LoadRing(none, ep_size, 0, device, maps, microbatches, sums_only)


def ring_for(
    layers: Sequence[MoeLayer],
    placement: Placement | None,
    ep_size: int,
    device: torch.device,
    microbatches: int = 1,
) -> LoadRing | None:
    """A ring; None with one EP rank, without a placement, and where an expert has several copies.

    Raises:
        LookupError: see `LoadRing`.
    """
    if placement is None or ep_size < 2 or not layers:
        return None
    ep_ranks = np.zeros((len(layers), max(layer.num_experts for layer in layers)), np.int32)
    for ordinal, (layer, index) in enumerate(zip(layers, placement.table_of_layer, strict=True)):
        table = placement.tables[index]
        logical = unpack_ids(table.physical_to_logical)
        if len(logical) != layer.num_experts:
            return None
        ep_ranks[ordinal, logical] = unpack_ids(table.physical_to_ep_rank)
    return LoadRing(ep_ranks, ep_size, placement.version, device, microbatches=microbatches)
