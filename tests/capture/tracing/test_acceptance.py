"""Where tokens are drafted, a trace has each token of its request once, at its true position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from vllm.sampling_params import RepetitionDetectionParams

from moescope.capture.seam.ends import Repetition, RequestEnd
from moescope.capture.seam.outcomes import StepOutcome
from moescope.capture.seam.rows import Layout, RowSpan
from moescope.capture.tracing.buffer import Trace
from tests.capture.seam.sampling import Event, of_v1, of_v2, scheduled
from tests.capture.traces import Driver, side_by_side


def sampled(**tokens: list[int]) -> StepOutcome:
    """A step in which runner V1 samples these tokens."""
    outcome = StepOutcome(scheduled(dict.fromkeys(tokens, 1)))
    outcome.tell(of_v1(tokens))
    return outcome


def rows_of(trace: Trace) -> np.ndarray:
    return np.concatenate(trace.chunks)


def test_rejected_drafts_are_left_out_and_true_positions_are_the_models() -> None:
    """Asynchronous scheduling: the scheduler takes the drafts of the step before for accepted."""
    driver = Driver(drafting=True)
    prompt = driver.step({"b": (0, 2), "a": (0, 4)}, outcome=sampled(b=[1], a=[1]))
    drafted = driver.step(
        {"a": (4, 4), "b": (2, 4)}, drafts={"a": 3, "b": 3}, outcome=sampled(a=[2, 3], b=[2, 3, 4, 5])
    )
    after = driver.step({"a": (6, 1), "b": (6, 1)}, outcome=sampled(a=[4], b=[6]), ahead=2)
    driver.step({}, finished=["a", "b"])
    a, b = driver.closed()["a"], driver.closed()["b"]
    assert (a.runs, a.rejected) == ([(0, 7)], 2)
    assert (b.runs, b.rejected) == ([(0, 7)], 0)
    expected = [(prompt, slice(2, 6)), (drafted, slice(0, 2)), (after, slice(0, 1))]
    np.testing.assert_array_equal(rows_of(a), np.concatenate([side_by_side(*part) for part in expected]))
    expected = [(prompt, slice(0, 2)), (drafted, slice(4, 8)), (after, slice(1, 2))]
    np.testing.assert_array_equal(rows_of(b), np.concatenate([side_by_side(*part) for part in expected]))
    assert a.steps == [(0, 4), (1, 2), (2, 1)]


def test_rows_wait_for_what_their_step_sampled() -> None:
    driver, event = Driver(drafting=True), Event(happened=False)
    outcome = StepOutcome(scheduled({"a": 4}))
    driver.step({"a": (0, 4)}, outcome=outcome)
    driver.step({}, finished=["a"])
    assert not driver.closed()
    outcome.tell(of_v2({"a": [1]}, 1, event=event))
    driver.assembly.proceed()
    assert not driver.closed()
    event.happened = True
    driver.assembly.proceed()
    assert driver.closed()["a"].runs == [(0, 4)]


@pytest.mark.parametrize(
    ("end", "rows"),
    [
        (RequestEnd(7), 6),
        (RequestEnd(6), 5),
        (RequestEnd(None, frozenset({12})), 7),
        (RequestEnd(8, frozenset({10})), 5),
        (RequestEnd(), 8),
    ],
)
def test_the_last_token_and_what_is_behind_it_have_no_row(end: RequestEnd, rows: int) -> None:
    """As without drafts; a step that was begun before the end was known adds nothing."""
    driver = Driver(drafting=True)
    driver.step({"a": (0, 4)}, outcome=sampled(a=[9]), end=end)
    driver.step({"a": (4, 4)}, drafts={"a": 3}, outcome=sampled(a=[10, 11, 12, 13]))
    if end != RequestEnd():
        driver.step({"a": (8, 2)}, drafts={"a": 1}, outcome=sampled(a=[14, 15]))
    driver.step({}, finished=["a"])
    trace = driver.closed()["a"]
    assert trace.runs == [(0, rows)]
    assert trace.rejected == 8 - rows + (2 if end != RequestEnd() else 0)


PATTERN = RepetitionDetectionParams(max_pattern_size=1, min_pattern_size=1, min_count=3)


@pytest.mark.parametrize("known", [True, False])
def test_a_request_that_ends_by_a_repeated_pattern(known: bool) -> None:
    """The second of the four sampled tokens is its last one, if the one before is known; else no trace."""
    driver, end = Driver(drafting=True), RequestEnd(100, frozenset({2}), Repetition(PATTERN, 4))
    driver.step({"a": (0, 4)}, outcome=sampled(a=[5] if known else []), end=end)
    driver.step({"a": (4, 4)}, drafts={"a": 3}, outcome=sampled(a=[5, 5, 5, 5]))
    driver.step({}, finished=["a"])
    if known:
        trace = driver.closed()["a"]
        assert (trace.runs, trace.rejected) == ([(0, 6)], 2)
    else:
        driver.assert_accounts(captured=1, closed=0, open_=0, outcome_unknown=1)


def test_the_shard_of_a_worker_is_cut_too() -> None:
    """The worker has rows 2..4 of the step's four, of which the last two are rejected."""
    driver = Driver(sharded=True, drafting=True)
    driver.step(
        {"a": (4, 4)}, drafts={"a": 3}, outcome=sampled(a=[1, 2]), span=RowSpan(Layout.TP_SHARD, 0, 3, 1)
    )
    driver.step({}, finished=["a"])
    trace = driver.closed()["a"]
    assert trace.runs == [(5, 1)]


def test_preempted_requests_start_over() -> None:
    driver = Driver(drafting=True)
    driver.step({"a": (0, 4)}, outcome=sampled(a=[9]))
    driver.step({"a": (4, 3)}, drafts={"a": 2}, outcome=sampled(a=[10]))
    driver.step({"a": (0, 6)}, resumed=["a"], outcome=sampled(a=[11]))
    driver.step({"a": (6, 3)}, drafts={"a": 2}, outcome=sampled(a=[12, 13]))
    driver.step({}, finished=["a"])
    trace = driver.closed()["a"]
    assert trace.runs == [(0, 5), (0, 8)]
    assert (trace.preemptions, trace.rejected) == (1, 3)


def lost() -> StepOutcome:
    """A step of which nobody will tell what it sampled."""
    outcome = StepOutcome(scheduled({}))
    outcome.lose()
    return outcome


def test_where_the_last_step_is_not_told_its_drafts_are_left_out() -> None:
    driver = Driver(drafting=True)
    driver.step({"a": (0, 4)}, outcome=sampled(a=[9]))
    driver.step({"a": (4, 3)}, drafts={"a": 2}, outcome=lost())
    driver.tracer.close_all()
    driver.assembly.proceed()
    assert driver.closed()["a"].runs == [(0, 5)]


@pytest.mark.parametrize(("first", "runs"), [(5, [(0, 6)]), (6, None)])
def test_a_trace_that_may_have_lost_an_accepted_draft_is_dropped(first: int, runs: Any) -> None:
    driver = Driver(drafting=True)
    driver.step({"a": (0, 4)}, outcome=sampled(a=[9]))
    driver.step({"a": (4, 3)}, drafts={"a": 2}, outcome=lost())
    driver.step({"a": (first, 1)}, outcome=sampled(a=[11]))
    driver.step({}, finished=["a"])
    if runs is None:
        driver.assert_accounts(captured=1, closed=0, open_=0, outcome_unknown=1)
    else:
        assert driver.closed()["a"].runs == runs


def test_without_drafts_the_hosts_positions_are_taken() -> None:
    driver = Driver()
    driver.step({"a": (0, 4)})
    driver.positions.fill_(99)
    driver.step({"a": (4, 1)})
    driver.step({}, finished=["a"])
    assert driver.closed()["a"].runs == [(0, 5)]
