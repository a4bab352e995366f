"""A steady step asks few parts of a session: what all of them tell is as if each had been asked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import ModelConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from benchmarks.host_share import one_rank
from moescope.capture import step_path
from moescope.capture.seam.requests import changes_requests
from moescope.capture.seam.rows import StepRows
from moescope.capture.session import CaptureSession
from moescope.capture.settings.environment import CaptureSettings
from tests.capture.scheduler import Scheduling, full_attention, model_config
from tests.capture.seam.runners import in_layers, runner

LAYERS, EXPERTS, STEPS = 2, 8, 160


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelConfig]:
    with one_rank():
        yield model_config(Path(tmp_path_factory.mktemp("model")))


class Side:
    """A session, and what it is of vLLM's runner that it reads.

    Args:
        asks: whether each part is asked in each step.
    """

    def __init__(self, scheduling: Scheduling, asks: bool, v2: bool, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(v2)))
        settings = {"MOESCOPE_ENDPOINT": "http://127.0.0.1:9", "MOESCOPE_TRACE_OPT_IN": "1"}
        layers = in_layers(*(runner(layer, experts=EXPERTS) for layer in range(LAYERS)))
        self.session = CaptureSession(
            layers, scheduling.config, torch.device("cpu"), CaptureSettings.read(settings)[0]
        )
        self.session._serving = True  # without its threads: the test takes their turns
        self.session.capturer._step_rows = lambda: StepRows(None, None)  # no vLLM runs the model
        self._asks, self._patch, self._v2 = asks, patch, v2
        batch = SimpleNamespace(logitsprocs=SimpleNamespace(argmax_invariant=[]), req_ids=[])
        self._runner = SimpleNamespace(
            kv_cache_config=scheduling.cache, decode_query_len=1, input_batch=batch
        )

    @property
    def is_quiet(self) -> bool:
        """Whether no request was traced in the last step."""
        traces = self.session._traces
        return traces is not None and traces.is_quiet

    def step(
        self, output: SchedulerOutput, order: list[str], ids: torch.Tensor, sampled: ModelRunnerOutput
    ) -> Any:
        """Run one; returns what is known of it."""
        session = self.session
        if self._asks:
            session._phases.steady = None
        self._patch.setattr(
            step_path, "changes_requests", (lambda _: True) if self._asks else changes_requests
        )
        session.step_begins(output, self._runner)
        batch = self._runner.input_batch
        batch.req_ids = order
        if order and not self._v2:
            for processor in batch.logitsprocs.argmax_invariant:
                processor.update_state(None)
        if order:
            for layer in range(LAYERS):
                session.capturer.record(layer, ids[layer])
        word = int(session.capturer.buffers.step_word)
        session.step_ends()
        if order and (self._asks or session.hears_sampled):
            session.step_sampled(sampled)
        return word, session.capturer.totals, session.capturer.disabled_reason

    def traces(self) -> Any:
        """What the assembly makes of all until now."""
        traces: Any = self.session._traces
        assembly = traces._assembly
        assembly.proceed()
        assert not assembly.events
        origins = assembly._origins
        live = {name: (one.writer, one.length) for name, one in origins._live.items()}
        closed = []
        while assembly.closed:
            trace = assembly.closed.popleft()
            rows = [chunk.tolist() for chunk in trace.chunks]
            closed.append((trace.request_id, trace.taken_over, trace.finish_reason, trace.steps, rows))
        return (
            closed,
            assembly.dropped,
            assembly.captured,
            origins._writer.tolist(),
            origins._place.tolist(),
            live,
        )


@pytest.mark.parametrize("v2", [False, True], ids=["V1", "V2"])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_not_asked_in_a_steady_step_says_the_same(
    model: ModelConfig, seed: int, v2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    scheduling = Scheduling(model, [full_attention(4)], rng.choice([40, 60, 100]), v2=v2)
    quick, asking = (Side(scheduling, asks, v2, monkeypatch) for asks in (False, True))
    quiet = closed = 0
    for number in range(STEPS):
        disturb(scheduling, rng, number)
        output = scheduling.schedule()
        names = list(output.num_scheduled_tokens)
        order = rng.sample(names, len(names)) if not v2 else names
        ids = torch.randint(0, EXPERTS, (LAYERS, output.total_num_scheduled_tokens, 2))
        known = [side.step(output, order, ids, sampled_of(scheduling, names)) for side in (quick, asking)]
        assert known[0] == known[1]
        assert known[0][2] is None
        quiet += not changes_requests(output) and quick.is_quiet
        if rng.random() < 0.1 or number == STEPS - 1:
            told = quick.traces()
            assert told == asking.traces()
            closed += len(told[0])
        scheduling.finish(output)
    assert torch.equal(quick.session.capturer.buffers.flat, asking.session.capturer.buffers.flat)
    totals = quick.session.capturer.totals
    assert min(totals.decode_steps, totals.mixed_steps, quiet) > 3, (totals, quiet)
    assert closed > 0
    for side in (quick, asking):
        side.session.close()


def disturb(scheduling: Scheduling, rng: random.Random, number: int) -> None:
    """Perhaps a new request, which may ask for its trace, an abort, a preemption, a reset of the cache."""
    running = scheduling.scheduler.running
    if rng.random() < 0.12 or number == 0:
        extra = {"moescope_trace": 1} if rng.random() < 0.5 else None
        prompt = list(range(1, rng.randint(2, 60)))
        params = SamplingParams(max_tokens=rng.randint(1, 40), ignore_eos=True, extra_args=extra)
        name = f"cmpl-{number}-0-1a2b3c4d"
        scheduling.scheduler.add_request(Request(name, prompt, params, None, block_hasher=scheduling._hasher))
    if running and rng.random() < 0.03:
        scheduling.abort(rng.choice(running).request_id)
    if running and rng.random() < 0.05:
        scheduling.preempt(rng.choice(running).request_id)
    if rng.random() < 0.02 and scheduling.may_reset:
        scheduling.reset()


def sampled_of(scheduling: Scheduling, names: list[str]) -> ModelRunnerOutput:
    """A token for each request whose prompt is computed."""
    requests = [scheduling.scheduler.requests[name] for name in names]
    return ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: place for place, name in enumerate(names)},
        sampled_token_ids=[[7] if one.num_computed_tokens >= one.num_tokens else [] for one in requests],
    )
