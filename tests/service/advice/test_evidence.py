"""Which loads are judged, and why others are not."""

from __future__ import annotations

import pytest

from moescope.service.advice.advise import advise
from moescope.service.simulation.plan import Outage
from tests.service.advice.fleets import DEPLOYMENT, START, Simulated, ask, plan, wish


def test_layers_that_can_not_be_judged_are_left_out_with_the_reason() -> None:
    simulated = Simulated(plan(skew=0.5, uncovered=(4,), outages=(Outage(3, 0.0),))).run(300)
    advice = ask(simulated)
    assert advice.evidence.layers == (3, 5)
    assert advice.evidence.left_out == {4: "simulated"}
    assert any("1 layer could not be judged" in line for line in advice.verdict.evidence)


@pytest.mark.parametrize(
    "outage",
    [Outage(3, 60), Outage(3, 900), Outage(3, 0, 1100)],
    ids=["gone before the window", "leaves in it", "joins in it"],
)
def test_a_rank_that_is_gone_leaves_advice_for_the_others(outage: Outage) -> None:
    simulated = Simulated(plan(skew=0.8, outages=(outage,))).run(1200)
    advice = advise(simulated.state, DEPLOYMENT, START + 600, None, wish())
    assert advice.verdict.decision == "worth_it"
    share = advice.evidence.fit_tokens / (advice.evidence.fit_tokens + advice.evidence.later_tokens)
    assert share == pytest.approx(0.5, abs=0.1)
