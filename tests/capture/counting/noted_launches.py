"""The strategy of one kernel a step whose launches are noted, not run."""

from __future__ import annotations

from typing import Any

import torch

from moescope.capture.counting.reference import CountBuffers
from moescope.capture.seam.rows import Layout, RowSpan
from moescope.capture.wire import MoeLayer

IDS_BYTES = 4 * 2 * 4
"""Of one layer's ids in `Bench.call`."""
SPAN = RowSpan(Layout.SINGLE_DP, 0, 4, 0)
Entries = dict[int, tuple[int, ...]]


class NotedTables:
    """In place of `PointerTables`: a table is the word "graph" or "now", and the entries of a launch."""

    def __init__(self, layers: object, device: object, microbatches: int) -> None:
        self.uploads = 0
        self.has_fresh = False

    def for_graph(self, entries: Entries) -> tuple[str, Entries]:
        self.has_fresh = True
        return "graph", entries

    def for_now(self, entries: Entries) -> tuple[str, Entries]:
        return "now", entries

    def upload(self) -> None:
        self.uploads += 1
        self.has_fresh = False


class Bench:
    """A strategy for three layers; more or less memory for kept ids, and a number of layers, with `make`.

    Attributes:
        capturing: whether a CUDA graph is captured.
        breakable: whether the capture is one that vLLM may interrupt; it goes on while a part runs eagerly.
        launches: where each launch's table is, and which layers of the table have rows of this worker.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.missed = module.MissedLaunchError
        self.capturing = False
        self.breakable = False
        self.launches: list[tuple[str, list[int]]] = []
        self.make()

    def make(self, layers: int = 3, kept_ids_bytes: int = 1 << 20, microbatches: int = 1) -> None:
        made = [MoeLayer(index, 8, 2) for index in range(layers)]
        self.buffers = CountBuffers(made, torch.device("cpu"), microbatches=microbatches)
        self.strategy = self._module.KernelPerStep(self.buffers, kept_ids_bytes)

    def call(self, *ordinals: int, ids: torch.Tensor | None = None, span: RowSpan = SPAN) -> None:
        for ordinal in ordinals:
            mine = torch.zeros(4, 2, dtype=torch.int32) if ids is None else ids
            self.strategy.record(ordinal, mine, span, self.buffers.flat)

    def held(self) -> int:
        """Bytes of the ids that are referenced."""
        passes = self.strategy._passes
        kept = [layer.ids for part in passes for layer in part.kept.values() if layer.ids is not None]
        return sum(ids.numel() * ids.element_size() for ids in kept)
