"""Advice on simulated fleets: what was planted is found, what is not there is not."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.service.advice.advise import Advice, UnanswerableError, advise
from moescope.service.advice.what_if import Option, fitting, sweep
from moescope.service.simulation.plan import Outage
from tests.service.advice.fleets import DEPLOYMENT, START, Simulated, plan, wish
from tests.service.frames import frame, halves, placement, producer


def _ask(simulated: Simulated, **wanted: object) -> Advice:
    return advise(simulated.state, DEPLOYMENT, None, None, wish(**wanted))


def _eplb(advice: Advice, redundant: int) -> Option:
    assert advice.found is not None
    [option] = [
        item for item in advice.found.options if (item.strategy, item.redundant) == ("eplb", redundant)
    ]
    return option


def test_uniform_routing_is_not_worth_a_change() -> None:
    advice = _ask(Simulated(plan(skew=0)).run(600))
    assert advice.verdict.decision == "not_worth_it"
    assert advice.verdict.choice is None
    assert advice.verdict.words.startswith("Not worth it: ")
    assert advice.found is not None
    assert advice.found.base.strategy == "present"
    assert all(abs(item.saving_held_out) < 0.02 for item in advice.found.options)


def test_chance_in_few_tokens_is_not_taken_for_a_gain() -> None:
    # Fitted on some 60 tokens, EPLB looks better on them, whatever the routing is.
    simulated = Simulated(plan(skew=0, tokens_per_s=0.05, steps_per_s=1.0)).run(600, every=60)
    advice = _ask(simulated, min_tokens=20)
    option = _eplb(advice, 0)
    assert option.saving_fitted > 0.05
    assert option.saving_held_out < option.saving_fitted / 2
    assert advice.verdict.decision in ("not_worth_it", "ages_too_fast")


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


def test_stationary_skew_is_mended_as_predicted() -> None:
    advice = _ask(Simulated(plan(skew=0.8)).run(600))
    assert advice.verdict.decision == "worth_it"
    choice = advice.verdict.choice
    assert choice is not None
    assert choice.strategy == "eplb"
    assert choice.saving_held_out == pytest.approx(choice.saving_fitted, rel=0.1)
    assert choice.held_out.summary.ratio_of_sums == pytest.approx(1, abs=0.05)
    assert f"saved {choice.saving_held_out:.1%}" in advice.verdict.words
    assert choice.moves is not None
    assert choice.moves > 0


def test_drifting_routing_is_honestly_worth_less_later() -> None:
    advice = _ask(Simulated(plan(skew=0.8, drift=0.05)).run(1200))
    option = _eplb(advice, 0)
    assert option.saving_fitted > 0.1
    assert option.saving_held_out < 0.7 * option.saving_fitted
    assert advice.drift is not None
    assert advice.drift.shows
    # It ages: the first piece of the later window is the best one.
    pieces = [1 - mine / theirs for mine, theirs in zip(option.pieces, advice.found.base.pieces, strict=True)]  # type: ignore[union-attr,operator]
    assert pieces[0] == max(pieces)


def test_routing_that_turns_around_ages_too_fast() -> None:
    # First rank 0 is hot, and 0 with 3 would be even; from the middle on 0 and 3 are the hot ones.
    simulated = Simulated(plan())
    hot_first, hot_last = [300, 100, 60, 20], [200, 40, 40, 200]
    total = np.zeros(4, dtype=np.int64)
    for seq in range(1, 41):
        simulated.now = START + 30 * seq
        total = total + (hot_first if seq <= 20 else hot_last)
        made = frame(
            {0: total.tolist()},
            who=producer(ep_size=2),
            seq=seq,
            after_s=30 * seq,
            epoch=int(START * 1e9),
            placement=halves(4, 1),
        )
        simulated.state.ingest(made)
    advice = advise(simulated.state, ("prod", "tiny"), None, None, wish(redundant=(0,)))
    assert advice.verdict.decision == "ages_too_fast"
    assert "The routing drifts" in advice.verdict.words
    assert advice.verdict.choice is None


@pytest.mark.parametrize(
    ("counts", "best"),
    [
        # Neighbours are hot: any placement that parts them, and round-robin is the cheapest of them.
        ([100, 100, 10, 10], ("round_robin", 0)),
        # Linear and round-robin both put two hot ones together; pairing hottest and coldest does not.
        ([100, 10, 100, 10], ("linear", 0)),
        ([100, 90, 20, 10], ("eplb", 0)),
        # One expert has half of everything: only copies of it help.
        ([600, 200, 200, 200], ("eplb", 2)),
    ],
)
def test_the_placement_known_to_be_best_is_found(counts: list[int], best: tuple[str, int]) -> None:
    simulated = Simulated(plan())
    # As it is now: what is hot is together, {0, 1} | {2, 3}, or {0, 2} | {1, 3} for the second case.
    bad = placement([0, 1, 2, 3], [0, 1, 0, 1] if best[0] == "linear" else [0, 0, 1, 1], 1)
    for seq in range(1, 9):
        simulated.now = START + 60 * seq
        made = frame(
            {0: [count * 10 * seq for count in counts]},
            who=producer(ep_size=2),
            seq=seq,
            after_s=60 * seq,
            epoch=int(START * 1e9),
            placement=bad,
        )
        simulated.state.ingest(made)
    advice = advise(simulated.state, ("prod", "tiny"), None, None, wish(redundant=(0, 2), groups=2))
    choice = advice.verdict.choice
    assert choice is not None
    assert (choice.strategy, choice.redundant) == best
    assert choice.held_out.summary.ratio_of_sums == pytest.approx(1, abs=0.01)


def test_memory_must_bring_its_price() -> None:
    simulated = Simulated(plan(skew=0.4)).run(300)
    frugal, lavish = (_ask(simulated, memory_price=price).verdict.choice for price in (0.5, 0.0))
    assert frugal is not None
    assert lavish is not None
    assert frugal.redundant is not None
    assert lavish.redundant is not None
    assert frugal.redundant < lavish.redundant
    assert frugal.saving_held_out < lavish.saving_held_out


def test_the_base_is_what_the_ranks_really_got() -> None:
    simulated = Simulated(plan(skew=0.3, rearrange_s=60)).run(600, every=10)
    advice = _ask(simulated)
    assert advice.found is not None
    # Rearranged every minute by its own load, it is well balanced: nothing left to gain.
    assert advice.found.base.held_out.summary.ratio_of_sums == pytest.approx(1, abs=0.1)
    assert advice.verdict.decision == "not_worth_it"
    assert "became better meanwhile" in advice.verdict.words
    linear = advice.found.options[0]
    assert linear.saving_held_out < -0.05


def test_other_ranks_than_there_are_have_linear_as_their_base() -> None:
    advice = _ask(Simulated(plan(skew=0.8)).run(300), ranks=8)
    assert advice.found is not None
    assert advice.found.base.strategy == "linear"
    assert any("4 EP ranks, the question is about 8" in line for line in advice.verdict.evidence)
    assert advice.found.options[-1].moves is None


def test_a_hot_rank_that_alternates_is_said_to_be_beyond_placement() -> None:
    simulated = Simulated(plan(alternate=2.0)).run(120, every=10)
    advice = _ask(simulated)
    assert advice.waiting is not None
    assert advice.waiting.cost == pytest.approx(0.5, abs=0.05)
    assert advice.waiting.windowed < 0.05
    assert advice.verdict.decision == "not_worth_it"
    assert f"waited {advice.waiting.cost:.1%}" in advice.verdict.evidence[-1]


def test_groups_stay_on_their_nodes() -> None:
    simulated = Simulated(plan(skew=0.8)).run(300)
    free = _eplb(_ask(simulated, nodes=2), 4)
    bound = _eplb(_ask(simulated, nodes=2, groups=4), 4)
    assert bound.placement is not None
    for logical, rank in zip(bound.placement.logical, bound.placement.rank, strict=True):
        assert len(set(zip((logical // 8).tolist(), (rank // 2).tolist(), strict=True))) == 4
    assert free.fitted.summary.ratio_of_sums <= bound.fitted.summary.ratio_of_sums + 1e-9  # type: ignore[operator]


def test_without_traffic_there_is_no_verdict_but_a_reason() -> None:
    advice = _ask(Simulated(plan(tokens_per_s=0)).run(120))
    assert advice.verdict.decision == "no_sample"
    assert advice.found is None
    assert any("idle" in line for line in advice.verdict.evidence)
    assert len(advice.evidence.left_out) == 3


def test_layers_that_can_not_be_judged_are_left_out_with_the_reason() -> None:
    simulated = Simulated(plan(skew=0.5, uncovered=(4,), outages=(Outage(3, 0.0),))).run(300)
    advice = _ask(simulated)
    assert advice.evidence.layers == (3, 5)
    assert advice.evidence.left_out == {4: "simulated"}
    assert any("1 layer could not be judged" in line for line in advice.verdict.evidence)


@pytest.mark.parametrize(
    ("wanted", "kind", "words"),
    [
        ({"redundant": (3,)}, "bad-redundant", "redundant=0 or 4"),
        ({"nodes": 3}, "bad-nodes", "4 ranks"),
        ({"groups": 5}, "bad-groups", "n_group"),
        ({"ranks": 4096, "redundant": (4096 * 64 - 32,)}, "too-large", "fewer ranks"),
    ],
)
def test_what_can_not_be_asked_is_said(wanted: dict[str, object], kind: str, words: str) -> None:
    simulated = Simulated(plan()).run(120)
    with pytest.raises(UnanswerableError, match=words) as caught:
        _ask(simulated, **wanted)
    assert caught.value.kind == kind


def test_one_ep_rank_needs_to_be_told_how_many() -> None:
    simulated = Simulated(plan(ranks=1, skew=0.8)).run(120)
    with pytest.raises(UnanswerableError, match="ranks=8"):
        _ask(simulated)
    assert _ask(simulated, ranks=4).verdict.decision == "worth_it"


def test_sweeps_fit() -> None:
    assert sweep(256, 32) == (0, 32, 64, 128, 256)
    assert sweep(256, 64) == (0, 64, 128, 256)
    assert sweep(60, 8) == (4, 12, 20, 36)
    assert sweep(3, 4) == (1,)
    assert fitting(60, 8, 20) == [4, 12, 20]
    for experts, ranks in ((256, 32), (60, 8), (160, 12), (3, 4)):
        assert all((experts + redundant) % ranks == 0 for redundant in sweep(experts, ranks))
