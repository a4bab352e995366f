"""A worker whose model shards its MoE rows over TP by itself."""

from __future__ import annotations

from typing import Any

from devkit.sharded_moe import install
from moescope.capture.worker import RoutingWorker


class ShardingWorker(RoutingWorker):  # type: ignore[misc]
    """Replaces the blocks before vLLM makes the model."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        install()
        super().load_model(*args, **kwargs)
