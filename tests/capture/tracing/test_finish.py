"""How a traced request ended, as far as what its steps sampled tells it; nothing where it doesn't."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.sampling_params import RepetitionDetectionParams

from moescope.capture.seam.ends import Repetition, RequestEnd
from moescope.capture.seam.outcomes import StepOutcome
from moescope.capture.tracing import witness as module
from moescope.capture.tracing.witness import Witness
from tests.capture.seam.sampling import Event, of_v1, of_v2, scheduled
from tests.capture.traces import Driver

END = RequestEnd(7, frozenset({2}), certain=True, otherwise="abort")
STRINGS = RequestEnd(7, frozenset({2}))  # such as of a request with stop strings


def sampled(**tokens: list[int]) -> StepOutcome:
    """A step in which runner V1 samples these tokens."""
    outcome = StepOutcome(scheduled(dict.fromkeys(tokens, 1)))
    outcome.tell(of_v1(tokens))
    return outcome


@pytest.mark.parametrize(
    ("end", "tokens", "reason"),
    [
        (END, [9, 2], "stop"),
        (END, [9, 9, 9], "length"),
        (END, [9, 9, 2], "stop"),
        (END, [9, 9], "abort"),
        (END, [], "abort"),
        (STRINGS, [9, 2], "stop"),
        (STRINGS, [9, 9, 9], ""),
        (STRINGS, [9, 9], ""),
    ],
)
def test_the_reason_of_the_last_token(end: RequestEnd, tokens: list[int], reason: str) -> None:
    """The prompt of four comes in two chunks; none of the first is sampled."""
    driver = Driver()
    driver.step({"a": (0, 3)}, outcome=sampled(a=[]), end=end)
    for number, token in enumerate(tokens):
        driver.step({"a": (3 + number, 1)}, outcome=sampled(a=[token]))
    driver.step({}, finished=["a"])
    assert driver.closed()["a"].finish_reason == reason


@pytest.mark.parametrize(("cut", "rows"), [(True, 5), (False, 6)])
def test_a_step_that_was_begun_before_the_end_was_known(cut: bool, rows: int) -> None:
    """Its row is none of the request's; it stays where other workers would not know that."""
    driver = Driver(cut=cut)
    driver.step({"a": (0, 4)}, outcome=sampled(a=[9]), end=END)
    driver.step({"a": (4, 1)}, outcome=sampled(a=[2]))
    driver.step({"a": (5, 1)}, outcome=sampled(a=[11]))
    driver.step({}, finished=["a"])
    trace = driver.closed()["a"]
    assert (trace.runs, trace.rejected, trace.finish_reason) == ([(0, rows)], 6 - rows, "stop")


@pytest.mark.parametrize("lost_at", [0, 1, 2])
def test_after_a_step_of_which_nothing_is_known_an_abort_is_not_told(lost_at: int) -> None:
    """The request may have ended in that step."""
    driver = Driver()
    for step in range(3):
        known = sampled(a=[9]) if step != lost_at else None
        driver.step({"a": (step, 1)}, outcome=known, end=END, prompt=1)
    driver.step({}, finished=["a"])
    trace = driver.closed()["a"]
    assert (trace.finish_reason, trace.runs) == ("", [(0, 3)])


def test_a_row_too_many_after_an_end_that_was_not_seen_tells_no_reason() -> None:
    """The step before may have sampled the stop token, and what is sampled behind it is of nobody."""
    driver = Driver()
    driver.step({"a": (0, 4)}, outcome=sampled(a=[9]), end=END)
    driver.step({"a": (4, 1)}, outcome=None)
    driver.step({"a": (5, 1)}, outcome=sampled(a=[11]))
    driver.step({}, finished=["a"])
    assert driver.closed()["a"].finish_reason == ""


def test_a_pattern_whose_tokens_are_not_known_costs_no_rows() -> None:
    pattern = Repetition(RepetitionDetectionParams(max_pattern_size=1, min_pattern_size=1, min_count=2), 4)
    end = RequestEnd(50, repetition=pattern, certain=True, otherwise="abort")
    driver = Driver()
    driver.step({"a": (0, 4), "b": (0, 4)}, outcome=sampled(b=[9]), end=end)
    driver.step({"a": (4, 1), "b": (4, 1)}, outcome=sampled(a=[9], b=[9]))
    driver.step({}, finished=["a", "b"])
    a, b = driver.closed()["a"], driver.closed()["b"]
    assert (a.finish_reason, a.runs) == ("", [(0, 5)])
    assert (b.finish_reason, b.runs) == ("repetition", [(0, 5)])


def test_a_worker_that_is_shut_down_does_not_end_requests() -> None:
    driver = Driver()
    driver.step({"a": (0, 4), "b": (0, 4)}, outcome=sampled(a=[9], b=[2]), end=END)
    driver.tracer.close_all()
    driver.assembly.proceed()
    traces = driver.closed()
    assert (traces["a"].outcome, traces["a"].finish_reason) == ("cut_off", "")
    assert (traces["b"].outcome, traces["b"].finish_reason) == ("cut_off", "stop")


@pytest.mark.parametrize("again", [True, False])
def test_what_was_sampled_of_a_preempted_request_may_be_forgotten(again: bool) -> None:
    """vLLM lets go of a stop token that was under way while it preempted the request (both runners)."""
    driver = Driver()
    driver.step({"a": (0, 4)}, outcome=sampled(a=[2]), end=END)
    more: dict[str, Any] = {"again": ["a"], "end": END} if again else {"resumed": ["a"]}
    driver.step({"a": (0, 4)}, outcome=sampled(a=[9]), **more)
    driver.step({"a": (4, 1)}, outcome=sampled(a=[9]))
    driver.step({"a": (5, 1)}, outcome=sampled(a=[9]))
    driver.step({}, finished=["a"])
    trace = driver.closed()["a"]
    assert (trace.runs, trace.preemptions, trace.finish_reason) == ([(0, 4), (0, 6)], 1, "length")


@pytest.mark.parametrize("cut", [True, False])
def test_what_was_sampled_of_keys_that_did_not_load_is_forgotten(cut: bool) -> None:
    """With kv_load_failure_policy=recompute vLLM goes back, and doesn't say that the request resumes."""
    driver = Driver(cut=cut)
    driver.step({"a": (2, 2)}, outcome=sampled(a=[2]), end=END)
    driver.step({"a": (0, 4)}, outcome=sampled(a=[9]))
    driver.step({"a": (4, 1)}, outcome=sampled(a=[9]))
    driver.step({"a": (5, 1)}, outcome=sampled(a=[9]))
    driver.step({}, finished=["a"])
    trace = driver.closed()["a"]
    assert (trace.runs, trace.rejected, trace.finish_reason) == ([(2, 2), (0, 6)], 0, "length")


def test_a_request_that_gets_more_input_goes_on() -> None:
    """Its prompt is longer then, and it was not preempted; rows under way are of the input before."""
    driver, event = Driver(), Event(happened=False)
    late = StepOutcome(scheduled({"a": 4}))
    late.tell(of_v2({"a": [2]}, 1, event=event))
    driver.step({"a": (0, 4)}, outcome=late, end=END)
    longer = RequestEnd(11, frozenset({2}), certain=True, otherwise="abort")
    driver.step({"a": (4, 5)}, outcome=sampled(a=[9]), again=["a"], prompt=9, end=longer)
    driver.step({"a": (9, 1)}, outcome=sampled(a=[9]))
    driver.step({}, finished=["a"])
    assert not driver.closed()
    event.happened = True
    driver.assembly.proceed()
    trace = driver.closed()["a"]
    assert (trace.runs, trace.prompt_tokens, trace.preemptions) == ([(0, 10)], 9, 0)
    assert trace.finish_reason == "length"


def test_accepted_drafts_are_counted_up_to_the_end() -> None:
    driver = Driver(drafting=True)
    driver.step({"a": (0, 4)}, outcome=sampled(a=[9]), end=RequestEnd(20, frozenset({2}), certain=True))
    driver.step({"a": (4, 4)}, drafts={"a": 3}, outcome=sampled(a=[10, 11]))
    driver.step({"a": (6, 4)}, drafts={"a": 3}, outcome=sampled(a=[12, 2, 14, 15]))
    driver.step({}, finished=["a"])
    trace = driver.closed()["a"]
    assert trace.runs == [(0, 8)]
    assert (trace.accepted, trace.rejected, trace.finish_reason) == (2, 4, "stop")


class TestWitness:
    """It keeps what a step samples until the step's rows are on the host."""

    def test_it_is_told_what_the_runner_returns(self) -> None:
        witness = Witness(Driver().assembly)
        witness.begin_step(scheduled({"a": 1}))
        outcome = witness.outcome
        assert outcome is not None
        assert not outcome.settled
        witness.sampled(of_v1({"a": [5]}))
        read = outcome.read()
        assert read is not None
        assert read.row(0) == [5]

    @pytest.mark.parametrize("ending", ["forsaken", "unknown output"])
    def test_rows_do_not_wait_for_what_never_comes(self, ending: str) -> None:
        witness = Witness(Driver().assembly)
        witness.begin_step(scheduled({"a": 1}))
        outcome = witness.outcome
        assert outcome is not None
        if ending == "forsaken":
            witness.forsake()
        else:
            witness.sampled(None)
        assert outcome.settled
        assert outcome.read() is None
        witness.sampled(of_v1({"a": [5]}))
        witness.forsake()

    def test_it_keeps_no_more_than_a_bounded_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_WAITING", 3)
        driver = Driver()
        witness = Witness(driver.assembly)
        kept = 0
        for position in range(8):
            witness.forsake()
            witness.begin_step(scheduled({"a": 1}))
            kept += witness.outcome is not None
            driver.step({"a": (position, 1)}, outcome=witness.outcome, proceed=False, end=END, prompt=1)
            witness.sampled(of_v1({"a": [9]}))
        assert kept == 3
        driver.step({}, finished=["a"])
        assert driver.closed()["a"].runs == [(0, 8)]
        assert driver.closed()["a"].finish_reason == ""
