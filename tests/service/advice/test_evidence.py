"""Which loads are judged, and why others are not."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.capture.wire import pack_counts
from moescope.service.advice.advise import advise
from moescope.service.simulation.plan import Outage
from tests.service.advice.fleets import DEPLOYMENT, START, Simulated, ask, plan, wish
from tests.service.api.schema_check import check
from tests.service.conftest import Service
from tests.service.frames import frame, placement, producer


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


@pytest.mark.parametrize("told", [False, True], ids=["an older worker", "slots by EP rank are counted"])
def test_an_even_split_over_copies_is_no_observation(service: Service, told: bool) -> None:
    """Experts 0 and 1 have a copy on each of two EP ranks."""
    for seq in range(1, 13):
        service.clock.now += 60
        for rank in range(2):
            counted = frame(
                {1: [1000 * seq] * 4},
                who=producer(dp_rank=rank, dp_size=2, ep_rank=rank, ep_size=2),
                seq=seq,
                after_s=service.clock.now - START,
                placement=placement([0, 1, 2, 3, 0, 1], [0, 0, 0, 1, 1, 1], 1),
                ep_slots=pack_counts(np.array([3000 * seq, 1000 * seq])) if told else b"",
            )
            assert service.push(counted).status_code == 200
    answer = service.client.get("/v1/advice", params={"start": "-10m", "min_tokens": 10})
    check(service.get("/openapi.json"), "/v1/advice", answer)
    base, lines = answer.json()["base"], answer.json()["verdict"]["evidence"]
    assert base["strategy"] == "present"
    said = [line for line in lines if "is an estimate: layer 1: " in line]
    assert len(said) == (0 if told else 1)
    assert (base["ep_estimate"] is None) == told
    assert all(item["ep_estimate"] is None for item in answer.json()["options"])
