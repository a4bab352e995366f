"""The ids that are kept until a launch counts them: of the layers of one pass through the model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from moescope.capture.counting.pointer_tables import TableEntry, table_entry
from moescope.capture.seam.rows import RowSpan


class KeptIds(NamedTuple):
    """A layer that the next launch counts; `ids` is None where none of its rows are this worker's."""

    entry: TableEntry
    dtype: torch.dtype
    slots: int
    ids: torch.Tensor | None


class KeptPass:
    """A pass: of a step's model, or of one of the microbatches that vLLM split the step into.

    Microbatches run in turns, so the passes of several are under way at a time.

    Attributes:
        kept: the layers that no launch has counted yet, by ordinal.
        called: the ordinals of the layers that routed in this pass, in their order.
        held: bytes that the kept ids take.
        while_capturing: whether the calls of this pass become part of a CUDA graph.
    """

    def __init__(self) -> None:
        self.kept: dict[int, KeptIds] = {}
        self.called: dict[int, None] = {}
        self.held = 0
        self.while_capturing = False
        self._addresses: dict[int, StorageWeakRef | None] = {}

    def keep(self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan, capturing: bool) -> None:
        """Keep a layer's ids [n, top_k], of which the rows `span` are this worker's, for the next launch."""
        ids = topk_ids if span.count else None
        entry, slots = table_entry(topk_ids, span), span.count * topk_ids.shape[1]
        self.called[ordinal] = None
        self.while_capturing = capturing
        self.kept[ordinal] = KeptIds(entry, topk_ids.dtype, slots, ids)
        if ids is not None:
            self.held += held_bytes(ids)
            self._addresses[ids.data_ptr()] = None

    def take(self) -> dict[int, KeptIds]:
        """What is kept, which is kept no longer."""
        kept, self.kept = self.kept, {}
        self.held = 0
        return kept

    def let_go(self) -> None:
        """What is kept is about to be counted and let go, in the middle of the pass.

        A later layer may get the memory that this frees. If it gets memory that is not free, routers write to
        one place for several layers.
        """
        for layer in self.kept.values():
            if layer.ids is not None:
                storage = StorageWeakRef(layer.ids.untyped_storage())  # type: ignore[no-untyped-call]
                self._addresses[layer.ids.data_ptr()] = storage

    def end(self) -> None:
        """The pass is over: its ids are counted, or never will be."""
        self.called.clear()
        self._addresses.clear()

    def has_at(self, address: int) -> bool:
        """Whether ids of a layer of this pass are at this address, and their memory is not free again."""
        if not address or address not in self._addresses:
            return False
        launched = self._addresses[address]
        return launched is None or not launched.expired()  # type: ignore[no-untyped-call]


def held_bytes(topk_ids: torch.Tensor) -> int:
    """Memory that a reference to ids [n, top_k] holds: from the first of them to the last."""
    if topk_ids.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(topk_ids.shape, topk_ids.stride(), strict=True))
    return int((last + 1) * topk_ids.element_size())
