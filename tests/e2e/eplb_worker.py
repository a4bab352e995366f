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
    """Writes to a file in ``EPLB_FOLDER`` what vLLM did, for the tests to compare with frames.

    These are each map of experts; the slots by map, layer and expert; for each step the slots by layer and
    EP rank, from the physical experts that vLLM's routers gave out; and the same from the loads that EPLB
    itself noted in the step, where it noted some.
    """

    _maps: list[list[list[int]]] | None = None

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._note_map()
        self._tokens = scheduler_output.total_num_scheduled_tokens
        number = self._capture.capturer.totals.forward_passes
        self._loads = [[0] * self._ep_size for _ in self._modules]
        result = super().execute_model(scheduler_output, *args, **kwargs)
        if self._tokens:
            self._steps[number] = self._loads
            [state] = self.model_runner.eplb_state.model_states.values()
            noted = state.expert_load_pass.view(len(self._modules), self._ep_size, -1).sum(2)
            self._passes[number] = noted.tolist()
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
            self._steps: dict[int, list[list[int]]] = {}
            self._passes: dict[int, list[list[int]]] = {}
            self._modules = list(state.model.moe_layers)
            self._ep_size = self._modules[0].moe_config.ep_size
            self._per_rank = state.physical_to_logical_map.shape[1] // self._ep_size
            for ordinal, layer in enumerate(self._modules):
                self._listen(layer)
                self._follow(ordinal, layer.router)
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

    def _follow(self, ordinal: int, router: Any) -> None:
        """Take what the layer's router makes of logical experts: the physical ones that compute."""
        map_to_physical = router._apply_eplb_mapping

        def follow(topk_ids: torch.Tensor) -> torch.Tensor:
            physical: torch.Tensor = map_to_physical(topk_ids)
            for expert in physical[: self._tokens].flatten().tolist():
                self._loads[ordinal][expert // self._per_rank] += 1
            return physical

        router._apply_eplb_mapping = follow

    def _write(self) -> None:
        path = Path(os.environ["EPLB_FOLDER"]) / str(self.parallel_config.data_parallel_rank)
        slots = [[*key, count] for key, count in self._slots.items()]
        notes = {"maps": self._maps, "slots": slots, "steps": self._steps, "passes": self._passes}
        path.with_suffix(".new").write_text(json.dumps(notes))
        path.with_suffix(".new").rename(path)
