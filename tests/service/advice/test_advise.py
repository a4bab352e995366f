"""Advice on simulated fleets: what was planted is found, what is not there is not."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.capture import wire
from moescope.service.advice.advise import UnanswerableError, advise
from moescope.service.advice.whole import whole_placement
from tests.service.advice.fleets import START, Simulated, ask, eplb_of, plan, wish
from tests.service.frames import frame, halves, placement, producer


def test_uniform_routing_is_not_worth_a_change() -> None:
    advice = ask(Simulated(plan(skew=0)).run(600))
    assert advice.verdict.decision == "not_worth_it"
    assert advice.verdict.choice is None
    assert advice.verdict.words.startswith("Not worth it: ")
    assert advice.found is not None
    assert advice.found.base.strategy == "present"
    assert all(abs(item.saving_held_out) < 0.02 for item in advice.found.options)


def test_stationary_skew_is_mended_as_predicted() -> None:
    advice = ask(Simulated(plan(skew=0.8)).run(600))
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
    advice = ask(Simulated(plan(skew=0.8, drift=0.05)).run(1200))
    option = eplb_of(advice, 0)
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
        ask(simulated, **wanted)
    assert caught.value.kind == kind


def test_one_ep_rank_needs_to_be_told_how_many() -> None:
    simulated = Simulated(plan(ranks=1, skew=0.8)).run(120)
    with pytest.raises(UnanswerableError, match="ranks=8"):
        ask(simulated)
    assert ask(simulated, ranks=4).verdict.decision == "worth_it"


def test_a_deployment_without_counted_layers_is_no_sample_and_not_taken_to_have_one_expert() -> None:
    simulated = Simulated(plan())
    who = producer(ep_size=4)
    for seq in (1, 2):
        simulated.now = START + 60 * seq
        made = frame(
            {}, who=who, seq=seq, tokens=100 * seq, after_s=60 * seq, epoch=int(START * 1e9),
            uncovered=[wire.UncoveredLayer(3, "monolithic kernel")],
        )  # fmt: skip
        simulated.state.ingest(made)
    asked = wish(redundant=(8,), groups=8)
    advice = advise(simulated.state, ("prod", "tiny"), None, None, asked)
    assert advice.verdict.decision == "no_sample"
    assert advice.evidence.left_out == {3: "monolithic kernel"}
    with pytest.raises(UnanswerableError, match="monolithic kernel"):
        whole_placement(simulated.state, ("prod", "tiny"), None, None, asked, strategy="eplb")
    with pytest.raises(UnanswerableError, match="monolithic kernel"):
        whole_placement(simulated.state, ("prod", "tiny"), None, None, asked, strategy="linear")
