"""Tokens and steps as the host adds them up."""

from __future__ import annotations

import pytest

from moescope.capture.step.totals import StepTokens, Totals
from moescope.capture.step.word import Phase


@pytest.mark.parametrize(
    ("tokens", "decode", "phase"), [(4, 0, Phase.PREFILL), (4, 4, Phase.DECODE), (4, 1, Phase.MIXED)]
)
def test_the_phase_of_a_step(tokens: int, decode: int, phase: Phase) -> None:
    assert StepTokens(tokens, decode).phase is phase


def test_steps_of_each_kind_are_added_up() -> None:
    totals = Totals()
    for step in (StepTokens(5, 0), StepTokens(3, 3), StepTokens(6, 2)):
        totals = totals.with_step(step)
    assert totals == Totals(tokens=14, steps=3, decode_tokens=5, decode_steps=1, mixed_steps=1)


def test_dummy_steps_have_numbers_too() -> None:
    totals = Totals(idle_steps=4).with_step(StepTokens(5, 0))
    assert totals.idle_steps == 4
    assert totals.forward_passes == 5


def test_phases_that_were_not_known_once_are_not_known_any_more() -> None:
    totals = Totals().with_step(StepTokens(6, 2), phases_known=False)
    assert not totals.phases_known
    assert not totals.with_step(StepTokens(3, 3)).phases_known
