"""What is recommended, and what it is said to rest on."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.service.advice.evidence import Evidence
from moescope.service.advice.verdict import Scale, decide, drift_of
from moescope.service.advice.what_if import Question, what_if
from tests.service.advice.fleets import Simulated, ask, eplb_of, plan


def test_memory_must_bring_its_price() -> None:
    simulated = Simulated(plan(skew=0.4)).run(300)
    frugal, lavish = (ask(simulated, memory_price=price).verdict.choice for price in (0.5, 0.0))
    assert frugal is not None
    assert lavish is not None
    assert frugal.redundant is not None
    assert lavish.redundant is not None
    assert frugal.redundant < lavish.redundant
    assert frugal.saving_held_out < lavish.saving_held_out


def test_a_hot_rank_that_alternates_is_said_to_be_beyond_placement() -> None:
    simulated = Simulated(plan(alternate=2.0)).run(120, every=10)
    advice = ask(simulated)
    assert advice.waiting is not None
    assert advice.waiting.cost == pytest.approx(0.5, abs=0.05)
    assert advice.waiting.windowed < 0.05
    assert advice.verdict.decision == "not_worth_it"
    assert f"waited {advice.waiting.cost:.1%}" in advice.verdict.evidence[-1]


def test_without_traffic_there_is_no_verdict_but_a_reason() -> None:
    advice = ask(Simulated(plan(tokens_per_s=0)).run(120))
    assert advice.verdict.decision == "no_sample"
    assert advice.found is None
    assert any("idle" in line for line in advice.verdict.evidence)
    assert len(advice.evidence.left_out) == 3


def test_chance_in_few_tokens_is_not_taken_for_a_gain() -> None:
    # Fitted on some 60 tokens, EPLB looks better on them, whatever the routing is.
    simulated = Simulated(plan(skew=0, tokens_per_s=0.05, steps_per_s=1.0)).run(600, every=60)
    advice = ask(simulated, min_tokens=20)
    option = eplb_of(advice, 0)
    assert option.saving_fitted > 0.05
    assert option.saving_held_out < option.saving_fitted / 2
    assert advice.verdict.decision in ("not_worth_it", "ages_too_fast")


@pytest.mark.parametrize(
    ("later", "seen_later", "decision"),
    [
        # It would still be even later. But the ranks are even by themselves then.
        ([4, 4, 1, 1], [5, 5], "not_worth_it"),
        # One expert takes it all now: no placement without copies is good for that.
        ([8, 0.5, 0.5, 1], [8.5, 1.5], "ages_too_fast"),
        ([4, 4, 1, 1], [8, 2], "worth_it"),
    ],
)
def test_ages_too_fast_gives_way_where_the_present_placement_became_better(
    later: list[float], seen_later: list[float], decision: str
) -> None:
    slots = 1000
    evidence = Evidence(
        layers=(0,),
        experts=4,
        ranks=2,
        fit=slots * np.array([[4.0, 4.0, 1.0, 1.0]]),
        pieces=slots * np.array([[later]], dtype=np.float64),
        seen_fit=slots * np.array([[8.0, 2.0]]),
        seen_pieces=slots * np.array([[seen_later]], dtype=np.float64),
        unseen=None,
        left_out={},
        fit_tokens=10 * slots,
        later_tokens=10 * slots,
    )
    found = what_if(evidence, Question(ranks=2, nodes=1, groups=1, redundant=(0,)), present=None)
    scale = Scale(groups=1, min_gain=0.05, memory_price=0.1)
    verdict = decide(evidence, found, drift_of(evidence), None, scale)
    assert verdict.decision == decision
    assert ("became better meanwhile" in verdict.words) == (decision == "not_worth_it")
