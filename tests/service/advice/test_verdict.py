"""What is recommended, and what it is said to rest on."""

from __future__ import annotations

import pytest

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
