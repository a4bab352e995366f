"""Which placements are tried, and against what."""

from __future__ import annotations

import pytest

from moescope.service.advice.what_if import fitting, sweep
from tests.service.advice.fleets import Simulated, ask, eplb_of, plan


def test_sweeps_fit() -> None:
    assert sweep(256, 32) == (0, 32, 64, 128, 256)
    assert sweep(256, 64) == (0, 64, 128, 256)
    assert sweep(60, 8) == (4, 12, 20, 36)
    assert sweep(3, 4) == (1,)
    assert fitting(60, 8, 20) == [4, 12, 20]
    for experts, ranks in ((256, 32), (60, 8), (160, 12), (3, 4)):
        assert all((experts + redundant) % ranks == 0 for redundant in sweep(experts, ranks))


def test_the_base_is_what_the_ranks_really_got() -> None:
    simulated = Simulated(plan(skew=0.3, rearrange_s=60)).run(600, every=10)
    advice = ask(simulated)
    assert advice.found is not None
    # Rearranged every minute by its own load, it is well balanced: nothing left to gain.
    assert advice.found.base.held_out.summary.ratio_of_sums == pytest.approx(1, abs=0.1)
    assert advice.verdict.decision == "not_worth_it"
    assert "became better meanwhile" in advice.verdict.words
    linear = advice.found.options[0]
    assert linear.saving_held_out < -0.05


def test_other_ranks_than_there_are_have_linear_as_their_base() -> None:
    advice = ask(Simulated(plan(skew=0.8)).run(300), ranks=8)
    assert advice.found is not None
    assert advice.found.base.strategy == "linear"
    assert any("4 EP ranks, the question is about 8" in line for line in advice.verdict.evidence)
    assert advice.found.options[-1].moves is None


def test_groups_stay_on_their_nodes() -> None:
    simulated = Simulated(plan(skew=0.8)).run(300)
    free = eplb_of(ask(simulated, nodes=2), 4)
    bound = eplb_of(ask(simulated, nodes=2, groups=4), 4)
    assert bound.placement is not None
    for logical, rank in zip(bound.placement.logical, bound.placement.rank, strict=True):
        assert len(set(zip((logical // 8).tolist(), (rank // 2).tolist(), strict=True))) == 4
    assert free.fitted.summary.ratio_of_sums <= bound.fitted.summary.ratio_of_sums + 1e-9  # type: ignore[operator]
