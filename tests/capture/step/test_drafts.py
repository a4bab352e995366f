"""Draft tokens by what became of them: read later, in order, and never more than what was computed."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.sampling_params import RepetitionDetectionParams

from moescope.capture.seam.outcomes import Sampled, StepOutcome
from moescope.capture.step import drafts as module
from moescope.capture.step.drafts import BREATH, DraftTally
from moescope.capture.step.live_requests import Drafts
from tests.capture.seam.sampling import Event, of_v1, of_v1_async, of_v2, scheduled


class Steps:
    """A tally, and the steps that it hears of."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.tally = DraftTally(self.reasons.append)

    def run(self, sampled: dict[str, list[int]], drafts: dict[str, int] | None = None, **more: Any) -> None:
        """A step of these requests, sampled by runner V1."""
        tokens = {name: 1 + (drafts or {}).get(name, 0) for name in sampled}
        self.tally.begin_step(scheduled(tokens, drafts, **more))
        self.tally.sampled(of_v1(sampled))


def test_accepted_and_rejected() -> None:
    steps = Steps()
    steps.run({"a": [1], "b": [1]}, new={"a": {"prompt": 3}, "b": {"prompt": 3}})
    steps.run({"a": [2, 3, 4], "b": [5]}, {"a": 3, "b": 3})
    assert steps.tally.read() == Drafts(2, 4)
    steps.run({"a": [6, 7, 8, 9]}, {"a": 3})
    assert steps.tally.read() == Drafts(5, 4)
    assert steps.reasons == []


@pytest.mark.parametrize(
    ("ends", "kept"),
    [
        ({"max_tokens": 3}, 1),  # one token before, then two of the four that the step samples
        ({"max_tokens": 2}, 0),
        ({"stops": [12]}, 2),
        ({"eos": 11}, 1),
        ({"max_tokens": 5}, 3),
        ({}, 3),
    ],
)
def test_what_is_accepted_behind_the_end_is_in_vain(ends: dict[str, Any], kept: int) -> None:
    steps = Steps()
    steps.run({"a": [9]}, new={"a": {"prompt": 3, **ends}})
    steps.run({"a": [10, 11, 12, 13]}, {"a": 3})
    assert steps.tally.read() == Drafts(kept, 3 - kept)


def test_a_step_that_was_begun_before_the_end_was_known_is_in_vain() -> None:
    """Asynchronous scheduling: all its rows, the first of which is no draft."""
    steps = Steps()
    steps.run({"a": [9]}, new={"a": {"prompt": 3, "max_tokens": 2}})
    steps.run({"a": [10, 11]}, {"a": 1})
    steps.run({"a": [12, 13]}, {"a": 1})
    assert steps.tally.read() == Drafts(0, 1 + 2)


@pytest.mark.parametrize("make", [of_v1_async, of_v2])
def test_outcomes_count_in_order_once_they_have_arrived(make: Any) -> None:
    steps, event = Steps(), Event(happened=False)
    steps.tally.begin_step(scheduled({"a": 3}, {"a": 2}))
    steps.tally.sampled(make({"a": [1]}, 3, event=event))
    steps.run({"a": [2, 3, 4]}, {"a": 2})
    assert steps.tally.read() == Drafts()
    event.happened = True
    assert steps.tally.read() == Drafts(2, 2)


def test_a_preempted_request_goes_on_with_the_tokens_that_the_scheduler_has() -> None:
    steps = Steps()
    steps.run({"a": [1]}, new={"a": {"prompt": 3, "max_tokens": 4}})
    steps.run({"a": [2, 3]}, {"a": 1})  # vLLM throws these two away as it preempts
    steps.run({"a": [2]}, resumed={"a": 1})
    steps.run({"a": [3, 4]}, {"a": 1})
    assert steps.tally.read() == Drafts(2, 0)


def test_a_chunk_of_a_prompt_accepts_and_rejects_nothing() -> None:
    steps = Steps()
    steps.run({"a": []}, {"a": 2}, new={"a": {"prompt": 9}})
    assert steps.tally.read() == Drafts()


def test_a_step_that_is_never_sampled_is_said_once() -> None:
    steps = Steps()
    for _ in range(3):
        steps.tally.begin_step(scheduled({"a": 2}, {"a": 1}))
    steps.run({"a": [1, 2]}, {"a": 1})
    assert steps.tally.read() == Drafts(1, 0)
    assert steps.reasons == ["which drafts were accepted isn't known: a step was not sampled"]


def test_an_output_that_is_not_known_is_said() -> None:
    steps = Steps()
    steps.tally.begin_step(scheduled({"a": 2}, {"a": 1}))
    steps.tally.sampled(object())
    assert steps.tally.read() == Drafts()
    assert steps.reasons == [
        "which drafts were accepted isn't known: what was sampled is not in vLLM's object"
    ]


def test_outcomes_that_are_not_read_in_time_are_lost_and_later_requests_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their drafts are lost, and those of their requests, whose ends aren't known."""
    steps = Steps()
    steps.run({"a": [1]}, new={"a": {"prompt": 3, "max_tokens": 50}})
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 3000)
    for _ in range(4):
        steps.run({"a": [1, 2]}, {"a": 1})
    kept = [step for step in steps.tally._waiting if isinstance(step, StepOutcome)]
    assert 0 < len(kept) < 5
    assert steps.tally.begin_step(scheduled({})).settled, "a trace would wait for it"
    assert steps.tally.read() == Drafts(len(kept) - 1, 0, 5 - len(kept))
    steps.run({"a": [3, 4]}, {"a": 1})
    steps.run({"b": [1]}, new={"b": {"prompt": 3}}, finished=["a"])
    steps.run({"b": [1, 2]}, {"b": 1})
    assert steps.tally.read() == Drafts(len(kept), 0, 5 - len(kept) + 1)
    assert steps.reasons == []


def test_steps_that_nobody_ever_reads_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 10_000)
    steps = Steps()
    for _ in range(1000):
        steps.run({"a": [1, 2]}, {"a": 1})
    assert len(steps.tally._waiting) < 30
    assert len(steps.reasons) == 1
    assert steps.tally.begin_step(scheduled({"a": 1})).settled, "a trace would wait for it"


def test_a_reader_gives_the_interpreter_away_between_two_steps() -> None:
    steps, breaths = Steps(), list[float]()
    for _ in range(5):
        steps.run({"a": [1, 2]}, {"a": 1})
    assert steps.tally.read(breaths.append) == Drafts(5, 0)
    assert len(breaths) == 4
    assert all(BREATH[0] <= breath <= BREATH[1] for breath in breaths)


def test_tokens_are_looked_at_only_where_a_request_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a step of hundreds of requests must not take the interpreter for a millisecond."""
    looked: list[int] = []
    row = Sampled.row
    monkeypatch.setattr(Sampled, "row", lambda self, i: looked.append(i) or row(self, i))
    names = [f"r{i}" for i in range(512)]
    steps = Steps()
    ends = {"prompt": 3, "max_tokens": 100, "eos": 2}
    steps.run({name: [9] for name in names}, new=dict.fromkeys(names, ends))
    tokens = {name: [5, 6, 7] for name in names} | {"r7": [5, 2, 6]}
    steps.tally.begin_step(scheduled(dict.fromkeys(names, 4), dict.fromkeys(names, 3)))
    steps.tally.sampled(of_v2(tokens, 4))
    assert steps.tally.read() == Drafts(2 * 511 + 1, 511 + 2)
    assert looked == [7]


def test_nothing_is_asked_of_the_device_while_graphs_are_captured() -> None:
    steps = Steps()
    steps.run({"a": [1, 2]}, {"a": 1})
    steps.tally.pause()
    assert steps.tally.read() == Drafts()
    steps.tally.resume()
    assert steps.tally.read() == Drafts(1, 0)


PATTERN = RepetitionDetectionParams(max_pattern_size=1, min_pattern_size=1, min_count=3)


@pytest.mark.parametrize(("min_tokens", "kept"), [(0, 1), (4, 2)])
def test_a_request_that_ends_by_a_repeated_pattern(min_tokens: int, kept: int) -> None:
    """One 5 before; the second of the four sampled ones is the third 5."""
    steps = Steps()
    steps.run({"a": [5]}, new={"a": {"prompt": 3, "pattern": PATTERN, "min_tokens": min_tokens}})
    steps.run({"a": [5, 5, 5, 5]}, {"a": 3})
    assert steps.tally.read() == Drafts(kept, 3 - kept)
    steps.run({"a": [5, 5]}, {"a": 1})
    assert steps.tally.read() == Drafts(kept, 3 - kept + 2)


def test_where_tokens_of_a_pattern_are_not_known_drafts_are_lost() -> None:
    steps = Steps()
    steps.run({"a": [5]}, new={"a": {"prompt": 3, "pattern": PATTERN}})
    steps.run({"a": [5, 6]}, {"a": 1}, resumed={"a": 4})
    assert steps.tally.read() == Drafts(0, 0, 1)


def test_calls_that_compute_nothing_block_nothing() -> None:
    steps = Steps()
    steps.run({"a": [1]}, new={"a": {"prompt": 3}})
    steps.tally.begin_step(scheduled({}, finished=["a"]))
    steps.run({"b": [1]}, new={"b": {"prompt": 3}})
    steps.run({"b": [1, 2]}, {"b": 1})
    assert steps.tally.read() == Drafts(1, 0)
    assert set(steps.tally._live._places) == {"b"}
