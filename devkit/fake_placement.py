"""Pretends that experts are placed over several EP ranks, for tests and benchmarks on one GPU.

Capture then does everything that it does with expert parallelism: it adds up loads by EP rank for each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from moescope.capture.seam import model as vllm_seam
from moescope.capture.wire import Placement, PlacementTable, Producer, pack_ids


def pretend_ep_ranks(ep_size: int) -> None:
    """Have capture believe, in this process, that experts are placed linearly over so many EP ranks."""
    read_producer = vllm_seam.read_producer

    def producer(vllm_config: Any, server: str) -> Producer:
        return msgspec.structs.replace(read_producer(vllm_config, server), ep_size=ep_size)

    def placement(routed: Sequence[vllm_seam.RoutedLayer], vllm_config: Any) -> Placement | None:  # noqa: ARG001
        sizes = sorted({layer.spec.num_experts for layer in routed})
        tables = [
            PlacementTable(pack_ids(range(size)), pack_ids([i * ep_size // size for i in range(size)]))
            for size in sizes
        ]
        of_layer = [sizes.index(layer.spec.num_experts) for layer in routed]
        return Placement(version=0, tables=tables, table_of_layer=of_layer)

    vllm_seam.read_producer = producer
    vllm_seam._read_placement = placement
