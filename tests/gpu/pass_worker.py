"""A worker that notes, for each forward pass, what vLLM's ranks agreed on and what capture numbers it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moescope.capture.worker import RoutingWorker


def tokens_across_dp(agreed: Any) -> Any:
    """The tokens of each DP rank, a tensor or None, of what runner V2's ranks agreed on.

    An older vLLM agrees on the tensor itself, a newer one on a `DPSyncState`, which has it.
    """
    return getattr(agreed, "num_tokens_across_dp", agreed)


class PassWorker(RoutingWorker):  # type: ignore[misc]
    """Writes a line for each forward pass, and one for each row layout met, to files in ``PASS_FOLDER``."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        ranks = self.vllm_config.parallel_config
        self._rank = {
            "dp": ranks.data_parallel_rank,
            "pp": self.rank // ranks.tensor_parallel_size % ranks.pipeline_parallel_size,
            "tp": self.rank % ranks.tensor_parallel_size,
        }
        self._log = (Path(os.environ["PASS_FOLDER"]) / f"passes-{os.getpid()}").open("w", buffering=1)
        self._agreed: dict[str, Any] = {}
        self._layouts: set[str] = set()
        if self.vllm_config.use_v2_model_runner:
            from vllm.v1.worker.gpu import model_runner as runner_v2

            runner_v2.dispatch_cg_and_sync_dp = self._spied(
                runner_v2.dispatch_cg_and_sync_dp,
                lambda result: (
                    tokens_across_dp(result[1]),
                    result[0].cg_mode.value,
                    getattr(result[0], "num_ubatches", 1) > 1,
                ),
            )
        else:
            from vllm.v1.worker import gpu_model_runner

            gpu_model_runner.coordinate_batch_across_dp = self._spied(
                gpu_model_runner.coordinate_batch_across_dp,
                lambda result: (result[1], int(result[2]), bool(result[0])),
            )
        capturer = self._capture.capturer
        locate = capturer._locate

        def spied_locate(*args: Any) -> Any:
            span = locate(*args)
            if span is not None and span.layout.value not in self._layouts:
                self._layouts.add(span.layout.value)
                self._write({"layout": span.layout.value})
            return span

        capturer._locate = spied_locate

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._agreed = {}
        result = super().execute_model(scheduler_output, *args, **kwargs)
        if scheduler_output.total_num_scheduled_tokens:
            self._note(scheduler_output.total_num_scheduled_tokens)
        return result

    def execute_dummy_batch(self, *args: Any, **kwargs: Any) -> Any:
        self._agreed = {}
        result = super().execute_dummy_batch(*args, **kwargs)
        self._note(0)
        return result

    def _spied(
        self, agree: Callable[..., Any], read: Callable[[Any], tuple[Any, int, bool]]
    ) -> Callable[..., Any]:
        """Have noted what vLLM's ranks agree on, when this function returns.

        That is their sizes, the graph's mode, and whether they split the step.
        """

        def spied(*args: Any, **kwargs: Any) -> Any:
            result = agree(*args, **kwargs)
            if not self._agreed:  # later calls in this pass are for a draft model
                across, mode, is_split = read(result)
                across = None if across is None else across.tolist()
                self._agreed = {"across": across, "mode": mode, "split": is_split}
            return result

        return spied

    def _note(self, tokens: int) -> None:
        number = self._capture.capturer.totals.forward_passes - 1
        self._write({"step": number, "tokens": tokens, **self._agreed})

    def _write(self, what: dict[str, Any]) -> None:
        self._log.write(json.dumps(self._rank | what) + "\n")
