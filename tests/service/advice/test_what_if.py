"""Which placements are tried, and against what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moescope.service.advice.evidence import Evidence
from moescope.service.advice.placements import PlacementArrays
from moescope.service.advice.verdict import Scale, decide, drift_of
from moescope.service.advice.what_if import Question, fitting, sweep, what_if
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


def _evidence(loads: list[int], ranks: int) -> Evidence:
    counts = np.array([loads], dtype=np.float64)
    return Evidence(
        layers=(3,),
        experts=len(loads),
        ranks=ranks,
        fit=counts,
        pieces=counts[np.newaxis],
        seen_fit=None,
        seen_pieces=None,
        unseen="no placement",
        left_out={},
        fit_tokens=1000,
        later_tokens=1000,
    )


def test_an_option_is_what_vllm_would_do_and_names_what_our_own_placement_would() -> None:
    evidence = _evidence(
        [100, 6000, 400, 100, 100, 400, 2600, 100, 100, 6000, 100, 100, 100, 6000, 1400, 700], 4
    )
    found = what_if(evidence, Question(4, 1, 1, (0, 8)), None)
    linear, _, without, with_copies = found.options
    assert (linear.in_vain, without.in_vain, without.own) == (0, 0, None)
    # vLLM's policy: the busiest rank has 6,500 of 24,300 / 4; ours 6,400, and no expert twice on a rank.
    assert with_copies.in_vain == 4
    assert with_copies.held_out.summary.ratio_of_sums == pytest.approx(6500 / 6075)
    own = with_copies.own
    assert own is not None
    assert own.in_vain == 0
    assert own.held_out.summary.ratio_of_sums == pytest.approx(6400 / 6075)
    verdict = decide(
        evidence, found, drift_of(evidence), None, Scale(groups=1, min_gain=0.05, memory_price=0)
    )
    assert any(
        "4 of these copies" in line and "Our own placement puts 0" in line for line in verdict.evidence
    )


def test_what_is_in_force_has_its_copies_in_vain_told() -> None:
    evidence = replace(
        _evidence([10, 10, 10, 10], 2),
        seen_fit=np.array([[20.0, 20.0]]),
        seen_pieces=np.array([[[20.0, 20.0]]]),
    )
    doubled = PlacementArrays(np.array([[0, 1, 0, 2, 3, 2]]), np.array([[0, 0, 0, 1, 1, 1]]), 4, 2)
    assert what_if(evidence, Question(2, 1, 1, (0,)), doubled).base.in_vain == 2
    assert what_if(evidence, Question(2, 1, 1, (0,)), None).base.in_vain is None
