"""What vLLM's scheduler and model runner did in this process, noted independently of moescope."""

from __future__ import annotations

from typing import Any


class Spy:
    """What vLLM's scheduler and runner did, noted independently of moescope."""

    def __init__(self) -> None:
        self.scheduled = 0
        self.preempted = 0
        self.phases: list[tuple[int, int]] = []
        """For each step: its tokens, and how many are of requests whose prompt was computed before."""
        self.steps: list[tuple[str, int, int, int]] = []
        """For each step: mode of the graph, true tokens, padded tokens, requests."""
        self.layouts: list[bool] = []
        """For each step with tokens of both phases, and for each traced step: whether capture was told the
        order of rows that the runner used."""
        self._now: Any = None
        self._told: Any = None
        self._comparing = False
        self._must_know = False
        self._mixed: dict[int, bool] = {}

    def install(self) -> None:
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.worker import gpu_model_runner, gpu_worker
        from vllm.v1.worker.gpu import model_runner as runner_v2

        schedule, execute = Scheduler.schedule, gpu_worker.Worker.execute_model
        context, dispatch = gpu_model_runner.set_forward_context, runner_v2.dispatch_cg_and_sync_dp

        def spied_schedule(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            output = schedule(scheduler, *args, **kwargs)
            self.scheduled += output.total_num_scheduled_tokens
            self.preempted += len(output.preempted_req_ids or ())
            decode = 0
            for request_id, tokens in output.num_scheduled_tokens.items():
                request = scheduler.requests[request_id]  # already counts the step's tokens as computed
                drafts = len(output.scheduled_spec_decode_tokens.get(request_id, ()))
                was_computed = request.num_computed_tokens - tokens >= request.num_prompt_tokens
                decode += tokens if was_computed else drafts
            if output.total_num_scheduled_tokens:
                self.phases.append((output.total_num_scheduled_tokens, decode))
                self._mixed[id(output)] = 0 < decode < output.total_num_scheduled_tokens
            return output

        def spied_execute(worker: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._now = scheduler_output
            self._comparing = scheduler_output.total_num_scheduled_tokens > 0
            self._must_know = self._mixed.pop(id(scheduler_output), False)
            self._listen(getattr(worker, "_capture", None))
            try:
                return execute(worker, scheduler_output, *args, **kwargs)
            finally:
                self._now = None

        def spied_context(*args: Any, **kwargs: Any) -> Any:
            if "cudagraph_runtime_mode" in kwargs:
                self._note(kwargs["cudagraph_runtime_mode"].name, kwargs["num_tokens"])
            return context(*args, **kwargs)

        def spied_dispatch(*args: Any, **kwargs: Any) -> Any:
            result = dispatch(*args, **kwargs)
            self._note(result[0].cg_mode.name, result[0].num_tokens)
            return result

        prepare_v1 = gpu_model_runner.GPUModelRunner._prepare_inputs
        prepare_v2 = runner_v2.GPUModelRunner.prepare_inputs

        def spied_prepare_v1(runner: Any, scheduler_output: Any, tokens: Any, *args: Any) -> Any:
            self._compare(runner.input_batch.req_ids, tokens)
            return prepare_v1(runner, scheduler_output, tokens, *args)

        def spied_prepare_v2(runner: Any, *args: Any, **kwargs: Any) -> Any:
            batch = prepare_v2(runner, *args, **kwargs)
            self._compare(batch.req_ids, batch.num_scheduled_tokens)
            return batch

        gpu_model_runner.GPUModelRunner._prepare_inputs = spied_prepare_v1
        runner_v2.GPUModelRunner.prepare_inputs = spied_prepare_v2
        Scheduler.schedule = spied_schedule
        gpu_worker.Worker.execute_model = spied_execute
        gpu_model_runner.set_forward_context = spied_context
        runner_v2.dispatch_cg_and_sync_dp = spied_dispatch

    def start(self) -> None:
        """Forget what warm-up did."""
        self.scheduled, self.preempted = 0, 0
        self.steps.clear()
        self.layouts.clear()
        self.phases.clear()

    def _listen(self, session: Any) -> None:
        """Listen to what this worker's capture is told of the batch."""
        if session is None or hasattr(session, "_spied"):
            return
        session._spied = ordered = session._watch._on_order

        def listen(batch: Any) -> None:
            self._told = batch
            ordered(batch)

        session._watch._on_order = listen

    def _compare(self, request_ids: Any, num_tokens: Any) -> None:
        if self._comparing:
            told, self._told, self._comparing = self._told, None, False
            if told is None and not self._must_know:
                return
            self.layouts.append(
                told is not None
                and list(told.request_ids) == list(request_ids)
                and told.num_tokens.tolist() == list(num_tokens)
            )

    def _note(self, mode: str, padded: int) -> None:
        if self._now is not None and self._now.total_num_scheduled_tokens:
            requests = self._now.num_scheduled_tokens
            self.steps.append((mode, self._now.total_num_scheduled_tokens, padded, len(requests)))
            self._now = None  # later calls in this step are for a draft model
