"""Callbacks of routers that count nothing, or in another way, for the benchmarks on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

BLOCK_BYTES: Final = 512
"""The smallest block of torch's allocator."""


def keepers(layers: int) -> list[Callable[[torch.Tensor], None]]:
    """Callbacks that keep the ids of all layers until the last, and do nothing with them."""
    kept: list[torch.Tensor] = []

    def callback(ordinal: int) -> Callable[[torch.Tensor], None]:
        def keep(ids: torch.Tensor) -> None:
            kept.append(ids)
            if ordinal + 1 == layers:
                kept.clear()

        return keep

    return [callback(ordinal) for ordinal in range(layers)]


def holding(callbacks: list[Any], blocks: int) -> list[Any]:
    """These callbacks, with so many blocks of memory held from the first callback of a pass to the last."""
    held: list[torch.Tensor] = []

    def first(ids: torch.Tensor) -> None:
        held[:] = [torch.empty(BLOCK_BYTES, dtype=torch.uint8, device=ids.device) for _ in range(blocks)]
        if callbacks[0] is not None:
            callbacks[0](ids)

    def last(ids: torch.Tensor) -> None:
        if callbacks[-1] is not None:
            callbacks[-1](ids)
        held.clear()

    return [first, *callbacks[1:-1], last]


def torch_hook(router: Any) -> Callable[[torch.Tensor], None]:
    """A callback that counts with a mask and a scatter_add, as peers do it."""
    counts = torch.zeros(router.global_num_experts, dtype=torch.int64, device="cuda")
    valid = torch.full((1,), 1 << 40, dtype=torch.int64, device="cuda")

    def hook(ids: torch.Tensor) -> None:
        mask = torch.arange(ids.shape[0], device=ids.device) < valid
        counts.scatter_add_(0, ids.flatten().long(), mask.unsqueeze(1).expand_as(ids).flatten().long())

    return hook
