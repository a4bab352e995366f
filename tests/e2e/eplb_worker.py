"""A worker that notes, pass by pass, where vLLM's own EPLB has the experts, and what was routed then."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from moescope.capture.worker import RoutingWorker


class EplbWorker(RoutingWorker):  # type: ignore[misc]
    """Writes to a file in ``EPLB_FOLDER`` each map of experts, and the slots by map, layer and expert."""

    _maps: list[list[list[int]]] | None = None

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._note_map()
        self._tokens = scheduler_output.total_num_scheduled_tokens
        result = super().execute_model(scheduler_output, *args, **kwargs)
        self._tokens = 0
        return result

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        result = super().sample_tokens(*args, **kwargs)  # EPLB runs at its end
        self._note_map()
        self._write()
        return result

    def execute_dummy_batch(self, *args: Any, **kwargs: Any) -> Any:
        result = super().execute_dummy_batch(*args, **kwargs)
        self._note_map()
        self._write()
        return result

    def _note_map(self) -> None:
        [state] = self.model_runner.eplb_state.model_states.values()
        if self._maps is None:
            self._maps, self._tokens = [], 0
            self._slots: Counter[tuple[int, int, int]] = Counter()
            for layer in state.model.moe_layers:
                self._listen(layer)
        latest = state.physical_to_logical_map.tolist()
        if not self._maps or self._maps[-1] != latest:
            self._maps.append(latest)

    def _listen(self, layer: Any) -> None:
        """Hear what the layer's router tells capture."""
        index, told = layer.layer_id, layer.router.capture_fn

        def listen(topk_ids: torch.Tensor) -> None:
            for expert in topk_ids[: self._tokens].flatten().tolist():
                self._slots[(len(self._maps or []) - 1, index, expert)] += 1
            told(topk_ids)

        layer.router.set_capture_fn(listen)

    def _write(self) -> None:
        path = Path(os.environ["EPLB_FOLDER"]) / str(self.parallel_config.data_parallel_rank)
        slots = [[*key, count] for key, count in self._slots.items()]
        path.with_suffix(".new").write_text(json.dumps({"maps": self._maps, "slots": slots}))
        path.with_suffix(".new").rename(path)
