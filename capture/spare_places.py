"""Where kept ids lie in the memory of a CUDA graph."""

from __future__ import annotations

from collections import deque
from typing import Final

import torch

SMALL: Final = 1 << 20
"""Bytes; torch's allocator takes what is larger from other memory, where nothing of a router's size moves."""


class SparePlaces:
    """Blocks for the ids of a captured pass, which the allocator gets one by one, as it needs them.

    Ids that are kept take memory that the next layer would use again, so that everything small in that layer
    moves on to another place, and so in every layer. vLLM's expert kernels then take half a microsecond more
    a layer, most likely since they read those tensors (the order of tokens by expert, say) from cold memory.

    So the first ids of a pass set aside a block for each layer to come. A layer's ids hold the next one's
    block, and free it when vLLM lets go of them, at the end of the layer: whatever is small before that can't
    take it, and the next layer's ids fit into it exactly. All else then falls to where it was before. If the
    allocator decides otherwise, nothing is lost but that.
    """

    def __init__(self) -> None:
        self._held: deque[torch.Tensor] = deque()

    def __len__(self) -> int:
        return len(self._held)

    def set_aside(self, topk_ids: torch.Tensor, layers: int) -> None:
        """The first ids of a pass are there, and so many layers may follow."""
        size = topk_ids.untyped_storage().nbytes()
        if not 0 < size <= SMALL:
            return
        blocks = [torch.empty(size, dtype=torch.uint8, device=topk_ids.device) for _ in range(layers)]
        # In this order: a free block beside free memory would become part of it.
        self._held = deque(sorted(blocks, key=torch.Tensor.data_ptr))

    def hand_over(self, topk_ids: torch.Tensor) -> None:
        """The next layer's block is free as soon as these ids are dropped; an alias of them may be kept."""
        if self._held:
            topk_ids._moescope_next_place = self._held.popleft()  # type: ignore[attr-defined]

    def clear(self) -> None:
        """The pass is over."""
        self._held.clear()
