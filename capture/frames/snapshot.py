"""A snapshot of the counts and of the ring of loads, and its way from the device to the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from moescope.capture.counting.load_ring import LoadRing, RingSteps
from moescope.capture.frames.step_history import RingPart
from moescope.capture.seam.eplb import EplbWatch, PlacementMap
from moescope.capture.seam.weights import NO_CHANGE, Weights
from moescope.capture.step.totals import Totals
from moescope.capture.wire import Int64Array


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts and totals of one moment.

    ``flat`` is int64 on the host, laid out as `CountBuffers.flat`; it is the reader's own copy.
    """

    flat: Int64Array
    totals: Totals
    disabled_reason: str | None
    captured_at_ns: int
    placement: PlacementMap | None = None
    """Where EPLB had the experts at that moment, if it was settled; the map is on the host."""
    weights: Weights = NO_CHANGE
    """The weights that were in use then."""
    marked: bool = False
    """Whether it is to be sent itself, and not a later one in its place."""


class _Copy:
    """Room for one tensor: device staging, and host memory, which is pinned if there is a device."""

    def __init__(self, like: torch.Tensor) -> None:
        on_device = like.device.type != "cpu"
        self.staging = torch.empty_like(like) if on_device else None
        self.host = torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=on_device)

    @property
    def first(self) -> torch.Tensor:
        """Where to copy in the steps' stream."""
        return self.host if self.staging is None else self.staging

    def to_host(self, size: int) -> None:
        """Enqueue the copy of the first `size` entries from staging to the host, in the current stream."""
        if self.staging is not None and size:
            self.host[:size].copy_(self.staging[:size], non_blocking=True)


class Transfer:
    """Room for one snapshot on its way to the host: device staging, pinned host memory, an event.

    Args:
        flat: the counts, as `CountBuffers.flat`.
        ring: the loads of single steps, or None.
        eplb: tells where the experts are, if EPLB moves them; or None.

    Attributes:
        event: says when the snapshot is on the host; None without a device.
        totals, disabled_reason, captured_at_ns, weights: see `Snapshot`; whoever enqueues the copy sets them.
        after_step: how many steps had begun when the copy was enqueued.
        torn: whether a step began meanwhile, so that the snapshot may not be of one moment.
        marked: see `Snapshot`.
    """

    def __init__(self, flat: torch.Tensor, ring: LoadRing | None, eplb: EplbWatch | None) -> None:
        self.event = torch.cuda.Event() if flat.device.type != "cpu" else None  # type: ignore[no-untyped-call]
        self.totals = Totals()
        self.disabled_reason: str | None = None
        self.captured_at_ns = 0
        self.weights = Weights()
        self.after_step = 0
        self.torn = self.marked = False
        self._flat, self._ring, self._eplb = flat, ring, eplb
        self._counts = _Copy(flat)
        self._loads = None if ring is None else _Copy(ring.loads)
        self._steps = RingSteps(0, np.zeros(0, np.int64))
        self._placement = None if eplb is None else _Copy(eplb.map)
        self._version: int | None = None

    @property
    def arrived(self) -> bool:
        """Whether the snapshot is on the host; does not wait."""
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]

    def copy(self, ring_read: int) -> None:
        """Copy the counts, the placement, and the ring's steps after the first `ring_read`.

        The copies are enqueued in the current stream, which must be that of the steps.
        """
        self._counts.first.copy_(self._flat)
        if self._ring is not None and self._loads is not None:
            self._steps = self._ring.copy_since(ring_read, self._loads.first)
        if self._eplb is not None and self._placement is not None:
            self._version = self._eplb.version
            if self._version is not None:
                self._placement.first.copy_(self._eplb.map)
            # This may be another thread than the steps': the experts may have moved meanwhile.
            if self._version != self._eplb.version:
                self._version = None

    def to_host(self) -> None:
        """Enqueue the copies from staging to the host, in the current stream."""
        self._counts.to_host(self._flat.numel())
        if self._loads is not None:
            self._loads.to_host(len(self._steps.numbers))
        if self._placement is not None:
            self._placement.to_host(len(self._placement.host))

    def snapshot(self) -> Snapshot:
        """The snapshot that has arrived."""
        return Snapshot(
            flat=self._counts.host.numpy().copy(),
            totals=self.totals,
            disabled_reason=self.disabled_reason,
            captured_at_ns=self.captured_at_ns,
            placement=self._map(),
            weights=self.weights,
            marked=self.marked,
        )

    def ring_part(self) -> RingPart | None:
        """The steps of the ring that have arrived; None without a ring."""
        if self._loads is None:
            return None
        first, numbers = self._steps
        loads = self._loads.host[: len(numbers)].numpy().copy()
        return RingPart(first, numbers, loads, self.totals.forward_passes)

    def _map(self) -> PlacementMap | None:
        if self._placement is None or self._version is None:
            return None
        return PlacementMap(self._version, self._placement.host.numpy().copy())
