"""What a step sampled, from each runner's output, without a wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moescope.capture.seam.ends import RequestEnd, request_end
from moescope.capture.seam.outcomes import StepOutcome, positions_of, why_no_outcomes
from tests.capture.seam.sampling import Event, of_v1, of_v1_async, of_v2, scheduled

TOKENS = {"a": [5, 6, 7], "b": [], "c": [8]}


@pytest.mark.parametrize("output", [of_v1(TOKENS), of_v1_async(TOKENS, 4), of_v2(TOKENS, 4)])
def test_each_runners_tokens(output: Any) -> None:
    outcome = StepOutcome(scheduled({"a": 3, "b": 5, "c": 1}, {"a": 2}))
    assert not outcome.settled
    assert not outcome.told
    outcome.tell(output)
    assert outcome.settled
    sampled = outcome.read()
    assert sampled is not None
    assert {name: list(row) for name, row in sampled.of(TOKENS).items()} == TOKENS


def test_a_chunk_of_a_prompt_samples_nothing_in_runner_v1() -> None:
    outcome = StepOutcome(scheduled({"a": 8, "b": 1}))
    outcome.tell(of_v1_async({"a": [3], "b": [4]}, 1, invalid=[0]))
    sampled = outcome.read()
    assert sampled is not None
    assert sampled.counts.tolist() == [0, 1]


def test_what_the_scheduler_cuts_later_is_not_cut_here() -> None:
    """Without another process the scheduler cuts the very lists that the runner returned."""
    outcome, output = StepOutcome(scheduled({"a": 3}, {"a": 2})), of_v1({"a": [5, 6, 7]})
    outcome.tell(output)
    del output.sampled_token_ids[0][1:]
    sampled = outcome.read()
    assert sampled is not None
    assert sampled.counts.tolist() == [3]


@pytest.mark.parametrize("make", [of_v1_async, of_v2])
def test_nothing_waits_for_the_copy(make: Any) -> None:
    event = Event(happened=False)
    outcome = StepOutcome(scheduled({"a": 1}))
    outcome.tell(make({"a": [1]}, 1, event=event))
    assert outcome.told
    assert not outcome.settled
    event.happened = True
    assert outcome.settled


def test_an_output_without_tokens_is_said() -> None:
    outcome = StepOutcome(scheduled({"a": 1}))
    with pytest.raises(LookupError, match="what was sampled is not in vLLM's ModelRunnerOutput"):
        outcome.tell(of_v1({}))
    assert outcome.lost
    assert outcome.read() is None


def test_where_a_request_ends() -> None:
    [new] = scheduled(
        {"a": 4}, new={"a": {"prompt": 4, "max_tokens": 6, "stops": [9], "eos": 2}}
    ).scheduled_new_reqs
    end = request_end(new)
    assert end == RequestEnd(10, frozenset({2, 9}), certain=True)
    assert end.last_of([1, 3], 4) is None
    assert end.last_of([1, 2, 9], 4) == 1
    assert end.last_of([1, 3, 4], 8) == 1
    assert RequestEnd().last_of([2, 9], 1 << 20) is None


@pytest.mark.parametrize("layout", ["v1", "older v1", "v2"])
def test_positions_are_the_runners_own(layout: str) -> None:
    own = torch.arange(4)
    runner = {
        "v1": SimpleNamespace(positions=own),
        "older v1": SimpleNamespace(positions=SimpleNamespace(gpu=own, cpu=torch.zeros(4))),
        "v2": SimpleNamespace(input_buffers=SimpleNamespace(positions=own), positions=None),
    }[layout]
    assert positions_of(runner) is own


@pytest.mark.parametrize("found", [None, torch.zeros(3, 4, dtype=torch.int64), np.zeros(4)])
def test_a_runner_without_such_positions_is_said(found: Any) -> None:
    with pytest.raises(LookupError, match="no positions of the rows"):
        positions_of(SimpleNamespace(positions=found))


def test_earlier_pipeline_stages_are_not_told() -> None:
    def config(speculative: Any, stages: int) -> Any:
        parallel = SimpleNamespace(pipeline_parallel_size=stages)
        return SimpleNamespace(speculative_config=speculative, parallel_config=parallel)

    assert why_no_outcomes(config(None, 2)) is None
    assert why_no_outcomes(config(SimpleNamespace(), 1)) is None
    assert "pipeline" in str(why_no_outcomes(config(SimpleNamespace(), 2)))
