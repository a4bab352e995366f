"""One vLLM engine on the GPU with a spy on its steps: `python -m tests.gpu.vllm_child SPEC RESULT`.

SPEC is a JSON file: ``llm`` (arguments of `vllm.LLM`), ``capture``, ``requests`` (see `make_requests`). The
result is JSON too: texts as token ids, what the scheduler scheduled, how each step ran, the last frame that
came over HTTP, and vLLM's own routed experts, if asked for.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from devkit.fake_placement import pretend_ep_ranks
from devkit.frame_sink import FrameSink
from moescope.capture.wire.traces import TracePart
from tests.step_loads import placed_counts, step_loads


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


def make_requests(
    long: int, short: int, longest: int, vocabulary: int, seed: int = 0
) -> list[tuple[list[int], int]]:
    """Prompts, each with a number of tokens to generate.

    First `long` prompts of up to `longest` tokens, whose prefill fills steps; then `short` ones, which
    join the decode of others as soon as there is room, so that small steps mix both.
    """
    rng = random.Random(seed)
    lengths = [rng.choice([1, rng.randint(2, 40), rng.randint(2, longest)]) for _ in range(long)]
    lengths += [rng.randint(2, 20) for _ in range(short)]
    return [
        ([rng.randrange(1, vocabulary) for _ in range(length)], rng.choice([1, 7, 40, 64]))
        for length in lengths
    ]


def main(spec_path: str, result_path: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    sink = FrameSink()
    os.environ.update(MOESCOPE_ENDPOINT=sink.url, MOESCOPE_INTERVAL="0.2", MOESCOPE_SERVER="gpu")
    import torch
    from vllm import LLM, SamplingParams

    spy = Spy()
    spy.install()
    if spec.get("ep_ranks"):
        pretend_ep_ranks(spec["ep_ranks"])
    worker = {"worker_cls": "moescope.capture.worker.RoutingWorker"} if spec["capture"] else {}
    llm = LLM(load_format="dummy", skip_tokenizer_init=True, seed=0, **worker, **spec["llm"])
    memory = torch.cuda.memory_reserved()
    requests = make_requests(**spec["requests"])
    parameters = [
        SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        for _, tokens in requests
    ]
    spy.start()
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt, _ in requests], parameters, use_tqdm=False
    )
    generated = [list(output.outputs[0].token_ids) for output in outputs]
    computed = sum(len(prompt) + len(ids) - 1 for (prompt, _), ids in zip(requests, generated, strict=True))
    separate = not spy.scheduled  # the engine runs in a process of its own
    total = computed if separate else spy.scheduled
    result: dict[str, Any] = {
        "generated": generated,
        "computed": computed,
        "scheduled": None if separate else spy.scheduled,
        "preempted": spy.preempted,
        "steps": list(spy.steps),
        "layouts": list(spy.layouts),
        "phases": list(spy.phases),
        "memory_reserved": memory,
    }
    if spec["capture"]:
        frame = sink.wait_for(total)
        flat = np.frombuffer(frame.counts, dtype="<i8")
        ends = np.cumsum([layer.num_experts for layer in frame.layers])[:-1]
        result["frame"] = {
            "tokens": frame.tokens,
            "state": [frame.state, frame.state_reason],
            "strategy": frame.strategy,
            "layers": [[layer.layer, layer.num_experts, layer.top_k] for layer in frame.layers],
            "uncovered": [[layer.layer, layer.reason] for layer in frame.uncovered],
            "rows": np.frombuffer(frame.rows, dtype="<i8").tolist(),
            "counts": [part.tolist() for part in np.split(flat, ends)],
            "drops": frame.drops,
            "steps": [frame.steps, frame.decode_steps, frame.mixed_steps],
            "decode_tokens": frame.decode_tokens,
            "decode_rows": np.frombuffer(frame.decode_rows, dtype="<i8").tolist(),
            "decode_counts": [
                part.tolist() for part in np.split(np.frombuffer(frame.decode_counts, dtype="<i8"), ends)
            ],
        }
        if spec.get("ep_ranks"):
            result["loads"] = {step: load.tolist() for step, load in step_loads(sink.frames).items()}
            result["placed"] = placed_counts(frame)
    if float(os.environ.get("MOESCOPE_TRACE_RATE", "0")):
        result["traced"] = _traced(llm, sink, outputs, requests)
        last = sink.frames[-1]
        result["drafts"] = [last.accepted_drafts, last.rejected_drafts]
        result["unavailable"] = last.unavailable
    if spec["llm"].get("enable_return_routed_experts"):
        of_requests = [_routed(output) for output in outputs]
        routed = np.concatenate(of_requests)
        decoded = np.concatenate(
            [rows[len(prompt) :] for rows, (prompt, _) in zip(of_requests, requests, strict=True)]
        )
        experts = spec["experts"]
        result["routed_rows"] = len(routed)
        result["routed"] = [
            np.bincount(routed[:, layer].ravel(), minlength=experts).tolist()
            for layer in range(routed.shape[1])
        ]
        result["routed_decode"] = [
            np.bincount(decoded[:, layer].ravel(), minlength=experts).tolist()
            for layer in range(routed.shape[1])
        ]
    Path(result_path).write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # vLLM's own shutdown is not what is tested here


def _traced(llm: Any, sink: FrameSink, outputs: list[Any], requests: list[Any]) -> dict[str, Any]:
    """The traces of the requests. vLLM ends them with the step after the last one."""
    from vllm import SamplingParams

    layers = sink.frames[-1].layers
    llm.generate([{"prompt_token_ids": [1]}], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
    parts: dict[str, list[TracePart]] = {}
    for part in sink.wait_for_traces(len(outputs)):
        parts.setdefault(part.client_ids[0], []).append(part)
    counts = [np.zeros(layer.num_experts, np.int64) for layer in layers]
    like_vllm, once, steps_rise, rejected = [], [], [], 0
    for output, (prompt, _) in zip(outputs, requests, strict=True):
        mine = parts.pop(output.request_id, [])
        if not mine:
            continue
        rejected += mine[0].rejected_drafts
        ids = [np.concatenate([part.ids_of(i) for part in mine]) for i in range(len(layers))]
        for found, chosen in zip(counts, ids, strict=True):
            found += np.bincount(chosen.ravel(), minlength=len(found))
        computed = len(prompt) + len(output.outputs[0].token_ids) - 1
        runs = [(run.first, run.count) for part in mine for run in part.runs]
        joined = all(after[0] == sum(before) for before, after in pairwise(runs))
        once.append(joined and sum(count for _, count in runs) == computed)
        steps = np.concatenate([np.frombuffer(part.steps, "<i8") for part in mine])
        steps_rise.append(len(steps) == len(ids[0]) and bool((np.diff(steps) >= 0).all()))
        if getattr(output.outputs[0], "routed_experts", None) is not None:
            theirs = _routed(output)[:, [layer.layer for layer in layers]]  # they have the dense layers too
            like_vllm.append(bool(np.array_equal(np.stack(ids, axis=1), theirs)))
    deadline = time.monotonic() + 60
    while sink.frames[-1].traces.get("delivered") != len(once) and time.monotonic() < deadline:
        time.sleep(0.1)
    return {
        "requests": len(outputs),
        "traces": len(once),
        "unknown": len(parts),
        "counts": [found.tolist() for found in counts],
        "computed_once": once,
        "steps_rise": steps_rise,
        "like_vllm": like_vllm,
        "rejected": rejected,
        "accounts": sink.frames[-1].traces,
    }


def _routed(output: Any) -> np.ndarray:
    """int [tokens, layers, top_k]: vLLM's routed experts of a request's computed tokens."""
    parts = [getattr(output, "prompt_routed_experts", None), output.outputs[0].routed_experts]
    return np.concatenate([part for part in parts if part is not None]).astype(np.int64)


if __name__ == "__main__":
    main(*sys.argv[1:])
