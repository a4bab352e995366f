"""A worker that compares the batches that capture was told of with the rows that vLLM's model really got."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from moescope.capture.seam.requests import read_requests
from moescope.capture.step.batch import BatchRequests
from moescope.capture.worker import RoutingWorker


class LayoutWorker(RoutingWorker):  # type: ignore[misc]
    """Writes a line for each step to a file in ``LAYOUT_FOLDER``, one for each forward pass to another."""

    _told: BatchRequests | None = None
    _prompts: dict[str, list[int]] | None = None
    _passes: Any = None
    _across: Any = None

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if self._prompts is None:
            self._prompts = {}
            self._log = (Path(os.environ["LAYOUT_FOLDER"]) / str(os.getpid())).open("w", buffering=1)
            told = self._capture._ordered

            def listen(batch: BatchRequests) -> None:
                self._told = batch
                told(batch)

            self._capture._watch._on_order = listen
        for new in scheduler_output.scheduled_new_reqs:
            self._prompts[new.req_id] = list(new.prompt_token_ids)
        self._told = None
        result = super().execute_model(scheduler_output, *args, **kwargs)
        if scheduler_output.total_num_scheduled_tokens:
            self._note_pass()
            self._log.write(json.dumps(self._compare(scheduler_output)) + "\n")
        return result

    def execute_dummy_batch(self, *args: Any, **kwargs: Any) -> Any:
        result = super().execute_dummy_batch(*args, **kwargs)
        self._note_pass()
        return result

    def _note_pass(self) -> None:
        """The number that capture gives the step, and what vLLM's ranks agreed on: tokens of each."""
        if self._passes is None:
            self._passes = (Path(os.environ["LAYOUT_FOLDER"]) / f"passes-{os.getpid()}").open(
                "w", buffering=1
            )
            capturer = self._capture.capturer
            asked = capturer._step_rows

            def listen() -> Any:
                self._across = asked()
                return self._across

            capturer._step_rows = listen
            return  # of this pass nothing was heard
        number = self._capture.capturer.totals.forward_passes - 1
        ranks = self.vllm_config.parallel_config
        noted = {"rank": ranks.data_parallel_rank, "step": number, "across": self._across.tokens_across_dp}
        self._passes.write(json.dumps(noted) + "\n")

    def _compare(self, scheduler_output: Any) -> dict[str, Any]:
        """What a test looks at; ``wrong`` names the first request whose rows aren't as told."""
        assert self._told is not None
        assert self._prompts is not None
        names, counts = self._told
        requests = read_requests(scheduler_output)
        positions = self.model_runner.positions.numpy()
        input_ids = self.model_runner.input_ids.gpu.numpy()
        wrong, prompt_rows, row = None, 0, 0
        lengths = {new.request_id: new.prompt_tokens for new in requests.new}
        for name, count in zip(names, counts, strict=True):
            prompt, first = self._prompts[name], requests.rows().first_positions[name]
            known = min(int(count), max(0, len(prompt) - first))
            right = (
                lengths.get(name, len(prompt)) == len(prompt)
                and np.array_equal(positions[row : row + count], np.arange(first, first + count))
                and input_ids[row : row + known].tolist() == prompt[first : first + known]
            )
            wrong = wrong or (None if right else name)
            prompt_rows, row = prompt_rows + known, row + int(count)
        return {
            "wrong": wrong,
            "tokens": [row, scheduler_output.total_num_scheduled_tokens],
            "prompt_rows": prompt_rows,
            "as_scheduled": list(names) == list(scheduler_output.num_scheduled_tokens),
        }
