"""Tables on the device that tell the counting kernel where each layer's ids are.

The addresses in a CUDA graph never change, so each captured launch has a table of its own, which is uploaded
once, before the first step that is counted. A launch outside of graphs has new addresses each time: all such
launches share one table on the device, which is uploaded before each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final

import numpy as np
import torch

from moescope.capture.counting.pinned_ring import PinnedRing
from moescope.capture.seam.rows import RowSpan
from moescope.capture.wire import Int64Array, MoeLayer

TABLES_PER_CHUNK: Final = 256
"""For captured launches, at least: vLLM captures about 50 sizes, each twice."""
SPARE_TABLES: Final = 64
"""With fewer left, or fewer than a graph may need, the next launch outside of graphs makes another chunk.

A graph has one launch or few for each microbatch, and never more than layers; vLLM runs each size before it
captures it.
"""


class Field(IntEnum):
    """The columns of a table, int64 each; its rows are the covered layers, by ordinal."""

    ADDRESS = 0
    """Where this worker's first row of ids is."""
    ROWS = 1
    """How many rows are this worker's, padding included; 0 for a layer that this launch does not count."""
    FIRST_TOKEN = 2
    """The index, among the tokens of the DP rank's step, of the one in the first row."""
    TOP_K = 3
    ROW_STRIDE = 4
    COLUMN_STRIDE = 5
    """Strides of the ids, in elements."""
    COUNTS_START = 6
    """Where the layer's counts start in `CountBuffers.flat`."""
    NUM_EXPERTS = 7
    FIRST_ROW = 8
    """Where in the router's tensor this worker's first row is: some of vLLM's rules go by that."""
    MICROBATCH = 9
    """The number of the microbatch whose ids they are."""


TableEntry = tuple[int, int, int, int, int, int, int, int]
"""What a launch says of a layer: the values of `ENTRY_COLUMNS`, in their order."""
ENTRY_COLUMNS: Final = (
    Field.ADDRESS,
    Field.ROWS,
    Field.FIRST_TOKEN,
    Field.TOP_K,
    Field.ROW_STRIDE,
    Field.COLUMN_STRIDE,
    Field.FIRST_ROW,
    Field.MICROBATCH,
)


class _Chunk:
    """Room for many captured launches' tables, pinned on the host and on the device: [T, L, len(Field)]."""

    def __init__(self, num_layers: int, device: torch.device, most_of_graph: int) -> None:
        self.spare = max(SPARE_TABLES, most_of_graph)
        self.size = TABLES_PER_CHUNK - SPARE_TABLES + self.spare
        shape = (self.size, num_layers, len(Field))
        self.host = torch.zeros(shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.device = torch.zeros(shape, dtype=torch.int64, device=device)
        self.used = 0
        self.uploaded = 0

    def upload(self) -> None:
        if self.uploaded < self.used:
            fresh = slice(self.uploaded, self.used)
            self.device[fresh].copy_(self.host[fresh], non_blocking=True)
            self.uploaded = self.used


class PointerTables:
    """Makes the tables; calls come from one thread at a time.

    With M microbatches and L layers a chunk has ``192 + max(64, M L)`` tables of ``80 L`` bytes, on the
    device and pinned as well: 3.2 MiB with 61 layers and the 8 microbatches that may be covered. There is one
    chunk, and at most one more for each 193 captured launches.

    Args:
        layers: the covered layers.
        microbatches: how many of them a step may have.

    Attributes:
        has_fresh: whether `upload` has anything to do.
    """

    def __init__(self, layers: Sequence[MoeLayer], device: torch.device, microbatches: int = 1) -> None:
        self._num_layers = len(layers)
        self._device = device
        self._blank = blank_table(layers)
        self._most_of_graph = microbatches * len(layers)
        self._chunks = [self._new_chunk()]
        self.has_fresh = False
        self._now = torch.zeros(self._num_layers, len(Field), dtype=torch.int64, device=device)
        self._uploads = PinnedRing(self._now)

    @property
    def num_bytes(self) -> int:
        """Device memory held."""
        tensors = [self._now, *(chunk.device for chunk in self._chunks)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def for_graph(self, entries: Mapping[int, TableEntry]) -> torch.Tensor:
        """A table for a launch that is being captured; its contents reach the device with `upload`.

        Args:
            entries: of the layers that the launch counts, by ordinal.

        Raises:
            RuntimeError: too many launches were captured without one outside of a graph in between.
        """
        chunk = self._chunks[-1]
        if chunk.used == chunk.size:
            raise RuntimeError(f"no room for another captured launch after {self._captured()}")
        table = chunk.used
        chunk.host[table].numpy()[:] = filled_table(self._blank, entries)
        chunk.used += 1
        self.has_fresh = True
        return chunk.device[table]

    def upload(self) -> None:
        """Bring new tables of graphs to the device, in the current stream."""
        for chunk in self._chunks:
            chunk.upload()
        self.has_fresh = False

    def for_now(self, entries: Mapping[int, TableEntry]) -> torch.Tensor:
        """A table for a launch that follows at once in the current stream; `entries` as in `for_graph`."""
        self._uploads.buffer()[:] = filled_table(self._blank, entries)
        self._uploads.upload(self._num_layers)
        if self._chunks[-1].used > self._chunks[-1].size - self._chunks[-1].spare:
            # Not while a graph is captured, when allocations would belong to the graph.
            self._chunks.append(self._new_chunk())
        return self._now

    def _new_chunk(self) -> _Chunk:
        return _Chunk(self._num_layers, self._device, self._most_of_graph)

    def _captured(self) -> int:
        return sum(chunk.used for chunk in self._chunks)


def table_entry(topk_ids: torch.Tensor, span: RowSpan) -> TableEntry:
    """The entry of a layer with ids [n, top_k], of which the rows `span` are this worker's."""
    row_stride, column_stride = topk_ids.stride()
    address = topk_ids.data_ptr() + span.start * row_stride * topk_ids.element_size()
    return (
        address,
        span.count,
        span.first_token,
        topk_ids.shape[1],
        row_stride,
        column_stride,
        span.start,
        span.microbatch,
    )


def blank_table(layers: Sequence[MoeLayer]) -> Int64Array:
    """A table in which no layer has rows, int64 [L, len(Field)]: it says where each layer's counts are."""
    table = np.zeros((len(layers), len(Field)), np.int64)
    start = 0
    for ordinal, layer in enumerate(layers):
        table[ordinal, Field.COUNTS_START] = start
        table[ordinal, Field.NUM_EXPERTS] = layer.num_experts
        start += layer.num_experts
    return table


def filled_table(blank: Int64Array, entries: Mapping[int, TableEntry]) -> Int64Array:
    """A copy of a blank table in which these layers, by ordinal, have rows."""
    table = blank.copy()
    table[np.array(list(entries))[:, None], ENTRY_COLUMNS] = list(entries.values())
    return table
