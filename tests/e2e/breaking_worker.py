"""A worker that breaks capture when a test asks for it: a file in ``BREAK_FOLDER`` names what to break."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from moescope.capture.step.word import Phase
from moescope.capture.worker import RoutingWorker
from tests.e2e.broken_layers import BYPASSED_LAYER, DROPPED_LAYER


class BreakingWorker(RoutingWorker):  # type: ignore[misc]
    """Counts as `RoutingWorker` does, without the routing calls that a file in ``BREAK_FOLDER`` names."""

    _broken = frozenset[str]()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        capturer = self._capture.capturer
        layers = [layer.layer for layer in capturer.buffers.layers]
        record, tp_rank = capturer._record_eager, capturer.ranks.tp_rank

        def listen(ordinal: int, topk_ids: torch.Tensor, flat: torch.Tensor, traced: bool) -> None:
            layer, step = layers[ordinal], capturer._step
            dropped = "drop" in self._broken and layer == DROPPED_LAYER and tp_rank == 1
            decode = step is not None and step.phase is Phase.DECODE
            bypassed = "bypass" in self._broken and layer == BYPASSED_LAYER and decode
            if not dropped and not bypassed:
                record(ordinal, topk_ids, flat, traced)

        capturer._record_eager = listen

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._broken = frozenset(path.name for path in Path(os.environ["BREAK_FOLDER"]).iterdir())
        return super().execute_model(scheduler_output, *args, **kwargs)
