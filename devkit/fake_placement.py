"""Pretends that experts are placed over several EP ranks, for tests and benchmarks on one GPU.

Capture then does everything that it does with expert parallelism: it adds up loads by EP rank for each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import msgspec

from moescope.capture import session
from moescope.capture.seam import survey
from moescope.capture.seam.coverage import RoutedLayer
from moescope.capture.seam.ranks import read_producer
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.wire import Placement, PlacementTable, Producer, pack_ids


def pretend_ep_ranks(ep_size: int) -> None:
    """Have capture believe, in this process, that experts are placed linearly over so many EP ranks."""

    def producer(vllm_config: Any, settings: CaptureSettings) -> Producer:
        return msgspec.structs.replace(read_producer(vllm_config, settings), ep_size=ep_size)

    def placement(routed: Sequence[RoutedLayer], vllm_config: Any) -> Placement | None:  # noqa: ARG001
        sizes = sorted({layer.spec.num_experts for layer in routed})
        tables = [
            PlacementTable(pack_ids(range(size)), pack_ids([i * ep_size // size for i in range(size)]))
            for size in sizes
        ]
        of_layer = [sizes.index(layer.spec.num_experts) for layer in routed]
        return Placement(version=0, tables=tables, table_of_layer=of_layer)

    mock.patch.object(session, "read_producer", producer).start()  # for as long as this process lives
    mock.patch.object(survey, "read_placement", placement).start()
