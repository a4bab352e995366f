"""A worker that notes, after each forward pass, where vLLM's EPLB has the experts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from moescope.capture.worker import RoutingWorker


class EplbWorker(RoutingWorker):  # type: ignore[misc]
    """Writes to a file in ``PASS_FOLDER`` where EPLB has the experts, and the loads that it notes.

    A line for each change of the map says whether it is settled; a line for each step has the slots by layer
    and EP rank that vLLM's own mapping kernel has counted in it.
    """

    _noted: list[Any] | None = None
    _log: Any = None

    def compile_or_warm_up_model(self, *args: Any, **kwargs: Any) -> Any:
        result = super().compile_or_warm_up_model(*args, **kwargs)
        parallel = self.vllm_config.parallel_config
        self._ranks = {"dp": parallel.data_parallel_rank, "tp": self.rank % parallel.tensor_parallel_size}
        self._log = (Path(os.environ["PASS_FOLDER"]) / f"passes-{os.getpid()}").open("w", buffering=1)
        self._note()
        return result

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        number = self._capture.capturer.totals.forward_passes
        result = super().execute_model(scheduler_output, *args, **kwargs)
        tokens = scheduler_output.total_num_scheduled_tokens
        if self._log is not None and tokens:
            [state] = self.model_runner.eplb_state.model_states.values()
            noted = state.expert_load_pass.view(len(state.expert_load_pass), 2, -1).sum(2)
            step = {"step": number, "tokens": tokens, "loads": noted.tolist()}
            self._log.write(json.dumps(self._ranks | step) + "\n")
        return result

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        result = super().sample_tokens(*args, **kwargs)  # EPLB runs at its end
        self._note()
        return result

    def execute_dummy_batch(self, *args: Any, **kwargs: Any) -> Any:
        result = super().execute_dummy_batch(*args, **kwargs)
        self._note()
        return result

    def _note(self) -> None:
        if self._log is None:  # runner V2 warms up with whole steps
            return
        [state] = self.model_runner.eplb_state.model_states.values()
        latest = [bool(state.rebalanced), state.physical_to_logical_map.tolist()]
        if latest != self._noted:
            self._noted = latest
            self._log.write(json.dumps(self._ranks | {"moving": latest[0], "map": latest[1]}) + "\n")
