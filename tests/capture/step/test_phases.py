"""Prefill and decode, from the scheduler's outputs to the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.seam.rows import Ranks, StepRows
from moescope.capture.step.batch import order_requests
from moescope.capture.step.phases import PhaseTracker
from moescope.capture.step.totals import Totals
from moescope.capture.step.word import Phase
from moescope.capture.wire import MoeLayer
from tests.capture.step.outputs import output


def test_drafts_behind_the_last_token_of_a_prompt_are_decode() -> None:
    """vLLM pads a prompt of which one token is left, so that the step looks like one of decode."""
    tracker = PhaseTracker()
    step = output(new={"a": (10, 9), "b": (3, 0)}, tokens={"a": 4, "b": 3}, drafts={"a": [-1] * 3, "c": [-1]})
    assert tracker.begin_step(step) == (7, 3)
    batch = order_requests(["b", "a"], step.num_scheduled_tokens)
    assert tracker.of_tokens(batch).tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_request_from_its_prompt_to_its_end() -> None:
    tracker = PhaseTracker()
    assert tracker.begin_step(output(new={"a": (10, 0)}, tokens={"a": 6})) == (6, 0)
    rest_of_the_prompt = output(cached={"a": 6}, tokens={"a": 4})
    assert tracker.begin_step(rest_of_the_prompt) == (4, 0)
    assert tracker.begin_step(output(cached={"a": 10}, tokens={"a": 1})) == (1, 1)
    assert tracker.begin_step(output(cached={"a": 11}, tokens={"a": 3})) == (3, 3)  # with drafts to verify
    assert tracker.begin_step(output(finished={"a"})) == (0, 0)
    assert not tracker._prompts


def test_hits_of_the_prefix_cache_are_computed_before() -> None:
    tracker = PhaseTracker()
    assert tracker.begin_step(output(new={"a": (10, 8)}, tokens={"a": 2})) == (2, 0)
    both = output(new={"b": (10, 10)}, cached={"a": 10}, tokens={"a": 1, "b": 1})
    assert tracker.begin_step(both) == (2, 2)


def test_the_phases_follow_the_order_of_the_batch_and_not_the_schedulers() -> None:
    tracker = PhaseTracker()
    tracker.begin_step(output(new={"a": (2, 0)}, tokens={"a": 2}))
    step = tracker.begin_step(
        output(new={"b": (3, 0), "c": (9, 0)}, cached={"a": 2}, tokens={"a": 1, "b": 3, "c": 2})
    )
    assert (step, step.phase) == ((6, 1), Phase.MIXED)
    tokens = {"a": 1, "b": 3, "c": 2}
    for order, phases in ((["b", "a", "c"], [0, 0, 0, 1, 0, 0]), (["a", "c", "b"], [1, 0, 0, 0, 0, 0])):
        assert tracker.of_tokens(order_requests(order, tokens)).tolist() == phases


REMOTE = {"do_remote_decode": False, "do_remote_prefill": False, "remote_engine_id": "p", "remote_port": 1}
"""What a connector leaves of `kv_transfer_params` once it loads a prompt that another instance computed."""


@pytest.mark.parametrize("computed", [8, 9])
def test_the_last_prompt_token_of_a_decode_instance_is_decode(computed: int) -> None:
    """Only if it alone is left: what else of a prompt is computed again is a prefill."""
    tracker = PhaseTracker(decodes_only=True)
    step = tracker.begin_step(output(new={"a": (10, computed)}, tokens={"a": 10 - computed}))
    assert step == ((1, 1) if computed == 9 else (2, 0))
    assert tracker.begin_step(output(cached={"a": 10}, tokens={"a": 1})) == (1, 1)


def test_a_prompt_that_a_decode_instance_computes_itself_is_prefill_to_its_end() -> None:
    tracker = PhaseTracker(decodes_only=True)
    assert tracker.begin_step(output(new={"a": (10, 0), "b": (1, 0)}, tokens={"a": 9, "b": 1})) == (10, 0)
    # Its last token is left alone for the second step, and was not loaded.
    assert tracker.begin_step(output(cached={"a": 9, "b": 1}, tokens={"a": 1, "b": 1})) == (2, 1)


@pytest.mark.parametrize(
    ("told", "decode"),
    [
        (None, 0),
        ({}, 0),
        ({"do_remote_prefill": True}, 1),
        (REMOTE, 1),
        ({"transfer_id": "x", "do_remote_prefill": False, "remote_bootstrap_addr": "http://p:1"}, 1),
        ({"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None}, 0),
        ({"do_remote_decode": True, "remote_engine_id": "d"}, 0),  # this instance prefills for another one
        ({"do_remote_prefill": False, "remote_engine_id": None}, 0),
        ("nonsense", 0),
    ],
)
def test_elsewhere_a_request_says_where_its_prompt_was_computed(told: Any, decode: int) -> None:
    """A hit of the local prefix cache looks alike, and there the last token is prefill."""
    tracker = PhaseTracker()
    extra = {"a": {"kv_transfer_params": told}} if told is not None else {}
    assert tracker.begin_step(output(new={"a": (10, 9)}, tokens={"a": 1}, extra=extra)) == (1, decode)
    tracker.begin_step(output(finished={"a"}))
    assert not tracker._elsewhere


@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_a_preempted_request_of_a_decode_instance_is_loaded_again(runner: str) -> None:
    tracker = PhaseTracker(decodes_only=True)
    tracker.begin_step(output(new={"a": (4, 3)}, tokens={"a": 1}))
    for computed, decode in ((3, 3), (0, 0)):  # loaded again, or not: then it computes all of it
        if runner == "V1":
            again = output(cached={"a": computed}, tokens={"a": 3}, resumed={"a"})
        else:
            again = output(new={"a": (4, computed)}, tokens={"a": 3})
        assert tracker.begin_step(again) == (3, decode)


def test_requests_that_are_done_are_forgotten() -> None:
    tracker = PhaseTracker()
    for n in range(5):
        done = {f"r{n - 1}"} if n else set()
        tracker.begin_step(output(new={f"r{n}": (4, 0)}, tokens={f"r{n}": 1}, finished=done))
    assert tracker._prompts == {"r4": 4}
    assert tracker._prefilling == {"r4"}


@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_what_a_preempted_request_computes_again_is_prefill(runner: str) -> None:
    tracker = PhaseTracker()
    tracker.begin_step(output(new={"a": (4, 0)}, tokens={"a": 4}))
    tracker.begin_step(output(cached={"a": 4}, tokens={"a": 1}))
    tracker.begin_step(output(new={"b": (1, 0)}, tokens={"b": 1}))  # "a" was preempted
    if runner == "V1":
        again = output(cached={"b": 1, "a": 0}, tokens={"a": 5, "b": 1}, resumed={"a"})
    else:  # a preempted request comes as a new one
        again = output(new={"a": (4, 0)}, cached={"b": 1}, tokens={"a": 5, "b": 1})
    assert tracker.begin_step(again) == (6, 1)
    assert tracker.begin_step(output(cached={"b": 2, "a": 5}, tokens={"a": 1, "b": 1})) == (2, 2)


def test_prompts_that_are_embeddings() -> None:
    step = output(new={"a": (0, 0)}, tokens={"a": 5})
    step.scheduled_new_reqs[0].prompt_token_ids = None
    step.scheduled_new_reqs[0].prompt_embeds = torch.zeros(5, 8)
    tracker = PhaseTracker()
    assert tracker.begin_step(step) == (5, 0)
    assert tracker.begin_step(output(cached={"a": 5}, tokens={"a": 1})) == (1, 1)


class Bench:
    """A capturer over one layer of two experts."""

    def __init__(self) -> None:
        self.buffers = CountBuffers([MoeLayer(0, 2, 1)], torch.device("cpu"), max_tokens=8)
        self.capturer = RoutingCapturer(self.buffers, Ranks(), lambda: StepRows(None, None))

    def step(self, tokens: int, decode: int, phases: list[int] | None = None) -> None:
        self.capturer.begin_step(tokens, decode)
        if phases is not None:
            self.capturer.set_phases(np.array(phases, np.uint8))
        self.capturer.record(0, torch.tensor([[1]] * 8))
        self.capturer.end_step()

    def rows(self) -> tuple[int, int]:
        return int(self.buffers.rows_of(0, Phase.PREFILL)), int(self.buffers.rows_of(0, Phase.DECODE))


def test_steps_of_one_phase_and_of_both() -> None:
    bench = Bench()
    bench.step(5, 0)
    assert bench.rows() == (5, 0)
    bench.step(3, 3)
    assert bench.rows() == (5, 3)
    bench.step(6, 2, [0, 1, 0, 0, 1, 0])
    assert bench.rows() == (9, 5)
    assert bench.buffers.counts_of(0, Phase.DECODE).tolist() == [0, 5]
    assert bench.capturer.totals == Totals(14, 3, 0, 5, 1, 1, phases_known=True)
    assert int(bench.buffers.step_word) == 0


def test_without_the_batchs_order_the_phases_are_not_known_and_nothing_is_lost() -> None:
    bench = Bench()
    bench.step(6, 2)
    bench.step(3, 3)
    assert sum(bench.rows()) == 9
    assert not bench.capturer.totals.phases_known


def test_phases_that_do_not_fit_the_step_are_refused() -> None:
    bench = Bench()
    bench.capturer.begin_step(6, 2)
    for wrong in ([0, 1, 1], [0, 1, 0, 0, 0, 0]):
        with pytest.raises(ValueError, match="of decode, for StepTokens"):
            bench.capturer.set_phases(np.array(wrong, np.uint8))
    bench.capturer.end_step()
    bench.capturer.set_phases(np.array([1, 1], np.uint8))  # outside of a step: ignored
    assert int(bench.buffers.step_word) == 0


def test_more_tokens_than_the_server_said_it_would_batch() -> None:
    bench = Bench()
    bench.capturer.begin_step(9, 1)
    with pytest.raises(ValueError, match="a step of 9 tokens, where 8 are the most"):
        bench.capturer.set_phases(np.array([1] + [0] * 8, np.uint8))
