"""The order of a step's batch: as vLLM's runners have it, in time, harmless when it can't be told."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.worker.gpu import model_runner

from moescope.capture.step.batch import BatchRequests, BatchWatch


def output(tokens: dict[str, int], new: dict[str, int], **others: Any) -> SimpleNamespace:
    """A scheduler's output: tokens of each request, and the prompts' lengths of the new ones."""
    cached = [name for name in tokens if name not in new]
    fields = {
        "scheduled_new_reqs": [
            SimpleNamespace(
                req_id=name,
                prompt_token_ids=[1] * length,
                prompt_embeds=None,
                num_computed_tokens=0,
                sampling_params=None,
            )
            for name, length in new.items()
        ],
        "scheduled_cached_reqs": SimpleNamespace(
            req_ids=cached, num_computed_tokens=[10] * len(cached), resumed_req_ids=set()
        ),
        "finished_req_ids": set(),
        "num_scheduled_tokens": tokens,
        "scheduled_spec_decode_tokens": {},
    }
    return SimpleNamespace(**(fields | others))


class Listening:
    """A watch and what it told."""

    def __init__(self, v2: bool = False, runner_type: str = "generate") -> None:
        self.told: list[BatchRequests] = []
        self.reasons: list[str] = []
        config = SimpleNamespace(
            use_v2_model_runner=v2, model_config=SimpleNamespace(runner_type=runner_type)
        )
        self.watch = BatchWatch(config, self.told.append, self._failed)

    def _failed(self, reason: str) -> None:
        self.reasons.append(reason)

    @property
    def failures(self) -> int:
        return len(self.reasons)


def runner_v1() -> SimpleNamespace:
    return SimpleNamespace(input_batch=SimpleNamespace(logitsprocs=LogitsProcessors(), req_ids=[]))


def lays_out(runner: SimpleNamespace, order: list[str]) -> None:
    """What `GPUModelRunner._update_states` does at its end."""
    runner.input_batch.req_ids = order
    for processor in runner.input_batch.logitsprocs.all:
        processor.update_state(None)


def told(listening: Listening) -> list[tuple[list[str], list[int]]]:
    return [(list(names), tokens.tolist()) for names, tokens in listening.told]


def test_runner_v1_tells_when_it_has_laid_out_its_batch() -> None:
    listening, runner = Listening(), runner_v1()
    listening.watch.step_begins(output({"a": 3, "b": 7}, {"a": 5, "b": 7}), runner)
    assert listening.told == []
    lays_out(runner, ["b", "a"])
    assert told(listening) == [(["b", "a"], [7, 3])]
    listening.watch.step_ends()
    lays_out(runner, ["b", "a"])  # outside of a step
    assert len(listening.told) == 1
    listening.watch.step_begins(output({"a": 1, "b": 1}, {}), runner)
    lays_out(runner, ["a", "b"])
    assert told(listening)[1:] == [(["a", "b"], [1, 1])]
    listening.watch.close()
    assert list(runner.input_batch.logitsprocs.all) == []


def test_runner_v1s_batch_is_read_in_steps_whose_order_is_wanted_only() -> None:
    """It has a thousand requests at times, and the listener is called in every step."""
    listening, runner = Listening(), runner_v1()
    listening.watch.step_begins(output({"a": 1}, {"a": 1}), runner)
    lays_out(runner, ["a"])
    listening.watch.step_ends()
    del runner.input_batch.req_ids  # to read them would end the watch
    for processor in runner.input_batch.logitsprocs.all:
        processor.update_state(None)
    listening.watch.step_ends()
    listening.watch.step_begins(output({"a": 1, "b": 1}, {}), runner)
    lays_out(runner, ["b", "a"])
    assert told(listening) == [(["a"], [1]), (["b", "a"], [1, 1])]
    assert listening.failures == 0


def test_the_listener_changes_no_logits() -> None:
    listening, runner = Listening(), runner_v1()
    listening.watch.step_begins(output({"a": 1}, {"a": 1}), runner)
    [processor] = runner.input_batch.logitsprocs.all
    logits = np.ones(3)
    assert processor.is_argmax_invariant()
    assert processor.apply(logits) is logits


def test_a_step_without_tokens_has_no_order() -> None:
    listening, runner = Listening(), runner_v1()
    listening.watch.step_begins(output({}, {}, finished_req_ids={"a"}), None)  # doesn't look at the runner
    lays_out(runner, [])
    assert (listening.told, listening.failures) == ([], 0)


def test_runner_v2_orders_as_told() -> None:
    """Against the order that vLLM's runner V2 gives to random steps, with and without draft tokens."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    rng = random.Random(3)
    for step in range(50):
        names = [f"r{n}" for n in range(rng.randint(1, 12))]
        rng.shuffle(names)
        tokens = {name: rng.choice([1, 3, 3, 40, 2]) for name in names}
        drafts = {name: [0] * (count - 1) for name, count in tokens.items() if count > 1} if step % 2 else {}
        scheduled = output(
            tokens, dict.fromkeys(names, 5), scheduled_spec_decode_tokens=drafts,
            total_num_scheduled_tokens=sum(tokens.values()),
        )  # fmt: skip
        zeros = np.zeros(len(names), np.int32)
        runner = SimpleNamespace(
            decode_query_len=rng.choice([1, 3]),
            req_states=SimpleNamespace(
                req_id_to_index={name: i for i, name in enumerate(names)},
                prefill_len=SimpleNamespace(np=zeros),
                num_computed_prefill_tokens=zeros,
            ),
            use_pp=False, adaptive_verification=None, pcp_manager=None,
        )  # fmt: skip
        state, _ = GPUModelRunner.gather_batch_req_state(runner, scheduled, False)
        listening = Listening(v2=True)
        listening.watch.step_begins(scheduled, runner)
        [batch] = listening.told
        assert batch.request_ids == state.req_ids
        assert batch.num_tokens.tolist() == state.num_scheduled_tokens.tolist()


def test_a_request_whose_beginning_was_never_seen_is_told_as_any_other() -> None:
    """Such as a request that vLLM began while capture was not serving yet."""
    listening, runner = Listening(), runner_v1()
    for tokens in ({"early": 1}, {"early": 1, "b": 4}):
        listening.watch.step_begins(output(tokens, {"b": 4} if "b" in tokens else {}), runner)
        lays_out(runner, list(tokens))
    assert told(listening) == [(["early"], [1]), (["early", "b"], [1, 4])]
    assert listening.failures == 0


@pytest.mark.parametrize("order", [["a"], ["a", "nobody"]])
def test_an_order_that_is_not_the_steps_costs_that_step_only(
    order: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    listening, runner = Listening(), runner_v1()
    for _ in range(2):
        listening.watch.step_begins(output({"a": 3, "b": 7}, {"a": 5, "b": 7}), runner)
        lays_out(runner, order)
        listening.watch.step_ends()
    assert listening.told == []
    [line] = caplog.messages  # one a minute
    assert "a step's rows are not known" in line
    listening.watch.step_begins(output({"a": 3, "b": 7}, {}), runner)
    lays_out(runner, ["a", "b"])
    assert told(listening) == [(["a", "b"], [3, 7])]
    assert listening.failures == 0


def test_an_unreadable_step_ends_the_watch() -> None:
    listening = Listening()
    listening.watch.step_begins(object(), runner_v1())
    assert listening.failures == 1
    assert "'num_scheduled_tokens'" in listening.reasons[0]
    listening.watch.step_begins(output({"a": 1}, {"a": 1}), runner_v1())
    assert (listening.told, listening.failures) == ([], 1)


def test_an_order_that_vllm_does_not_tell_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pooling = Listening(runner_type="pooling")
    assert pooling.watch.reason == pooling.reasons[0]
    assert "pooling" in pooling.reasons[0]
    monkeypatch.delattr(model_runner, "sort_batch_req_ids")
    v2 = Listening(v2=True)
    assert "no sort_batch_req_ids" in v2.reasons[0]
    v2.watch.step_begins(output({"a": 1}, {"a": 1}), runner_v1())
    v2.watch.close()
    assert (v2.told, v2.failures) == ([], 1)


def test_a_runner_that_cannot_be_read_ends_the_watch() -> None:
    listening, runner = Listening(), runner_v1()
    listening.watch.step_begins(output({"a": 1}, {"a": 1}), runner)
    del runner.input_batch.req_ids
    for processor in runner.input_batch.logitsprocs.all:
        processor.update_state(None)
    assert (listening.told, listening.failures) == ([], 1)
