"""From facts to a verdict, case by case."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from moescope.service.verdict.facts import (
    Balance,
    Dp,
    Drift,
    Facts,
    Gap,
    LayerFacts,
    Remedy,
    Steps,
)
from moescope.service.verdict.judge import judge
from moescope.service.verdict.model import Kind
from moescope.service.windows.silence import Silence


def balance(ratio: float, *layers: LayerFacts, ranks: tuple[float, ...] = (1.0, 1.0)) -> Balance:
    return Balance(layers or (layer(0, ratio, 0),), ratio, ranks)


def layer(number: int, ratio: float, rank: int, expert_part: float = 0.0) -> LayerFacts:
    return LayerFacts(
        layer=number,
        ratio=ratio,
        rank=rank,
        waiting=100.0 * (ratio - 1),
        expert=7 if expert_part else None,
        expert_over_fair=5.0 if expert_part else 0.0,
        expert_part=expert_part,
    )


EVEN = Facts(
    server="prod",
    model="m/x",
    start=1000.0,
    end=1060.0,
    tokens=50_000,
    seconds=60.0,
    steps=600,
    ep_size=2,
    balance=balance(1.03),
)
HOT = replace(EVEN, balance=balance(2.0, *(layer(i, 2.0, 1) for i in range(4)), ranks=(0.0, 2.0)))
BY_LAYER = replace(
    EVEN, balance=balance(2.0, *(layer(i, 2.0, i % 4) for i in range(8)), ranks=(0.95, 0.9, 1.18, 0.97))
)
EXPERT = replace(EVEN, balance=balance(2.0, *(layer(i, 2.0, i % 4, 0.9) for i in range(8))))
STEPS = Steps(cost=0.6, joined=600, busiest=(0.5, 0.5))
DRIFT = Drift("previous_hour", moved=0.3, divergence=0.2, noise=0.001, new_hot=2, new_dead=1)
GAP = Gap("warning", "layer 60 can't be seen (monolithic)")

WRONG = Gap("critical", "counts don't add up in layer 3 (12 of 13)")
TWO = replace(EVEN, balance=balance(1.6, *(layer(i, 1.6, i % 2) for i in range(4)), ranks=(1.0, 1.0)))
SLIGHT = replace(EVEN, balance=balance(1.251, ranks=(1.251, 0.749)))

CASES: list[tuple[str, Facts, str, str]] = [
    ("even", EVEN, "balanced", "ok"),
    ("one EP rank", replace(EVEN, balance=None, ep_size=1), "balanced", "ok"),
    ("19.9 % waiting is balanced", replace(EVEN, balance=balance(1 / 0.801)), "balanced", "ok"),
    (
        "more than 20 % is not",
        SLIGHT,
        "one_rank_hot",
        "warning",
    ),
    ("half of the time", HOT, "one_rank_hot", "critical"),
    ("each layer another", BY_LAYER, "ranks_hot_by_layer", "critical"),
    ("an expert", EXPERT, "one_expert_hot", "critical"),
    ("DP ranks", replace(EVEN, dp=Dp(1.5, 3, 8)), "dp_uneven", "warning"),
    ("DP ranks, a little", replace(EVEN, dp=Dp(1.49, 3, 8)), "balanced", "ok"),
    ("steps", replace(EVEN, in_steps=STEPS), "steps_only", "critical"),
    ("small noise of steps", replace(EVEN, in_steps=replace(STEPS, cost=0.19)), "balanced", "ok"),
    ("drift", replace(EVEN, drift=DRIFT), "drifted", "info"),
    ("drift by chance", replace(EVEN, drift=replace(DRIFT, noise=0.1)), "balanced", "ok"),
    ("drift that is small", replace(EVEN, drift=replace(DRIFT, moved=0.19)), "balanced", "ok"),
    ("too little", replace(HOT, too_little=("12 tokens, of at least 100",)), "too_little_data", "info"),
    ("one of two ranks, in each layer another", TWO, "ranks_hot_by_layer", "warning"),
    ("wrong numbers before all that", replace(HOT, gaps=(WRONG,)), "capture_incomplete", "critical"),
    ("what isn't seen hides no hot rank", replace(HOT, gaps=(GAP,)), "one_rank_hot", "critical"),
    ("not even one that is as grave", replace(TWO, gaps=(GAP,)), "ranks_hot_by_layer", "warning"),
    ("what isn't seen of even ranks", replace(EVEN, gaps=(GAP,)), "capture_incomplete", "warning"),
    ("a part", replace(EVEN, partial="of 4 DP ranks [3] fell silent"), "part_only", "warning"),
    ("no traffic", replace(EVEN, tokens=0), "no_traffic", "info"),
    ("no traffic that is seen", replace(EVEN, tokens=0, gaps=(WRONG,)), "capture_incomplete", "critical"),
    ("unknown tokens are not none", replace(EVEN, tokens=None, tokens_reason="off"), "balanced", "ok"),
    ("silent", replace(HOT, silence=Silence(70, ended=False)), "silent", "critical"),
    ("ended", replace(HOT, silence=Silence(70, ended=True)), "silent", "info"),
    (
        "silence of now is none of the past",
        replace(HOT, silence=Silence(70, ended=False), open_end=False),
        "one_rank_hot",
        "critical",
    ),
    (
        "nothing known",
        replace(EVEN, balance=None, balance_reason="idle: no tokens in the window"),
        "too_little_data",
        "info",
    ),
]


@pytest.mark.parametrize(("facts", "kind", "severity"), [x[1:] for x in CASES], ids=[x[0] for x in CASES])
def test_each_kind(facts: Facts, kind: str, severity: str) -> None:
    found = judge(facts).finding
    assert (found.kind, found.severity) == (kind, severity)
    assert "{" not in found.words + found.action.words
    for number in (*found.numbers, *found.action.numbers):
        assert "server=prod&model=m%2Fx" in number.view
        assert "server=prod&model=m%2Fx" in number.api
        assert number.view.startswith("#/")
        assert number.api.startswith("v1/")
        assert "from=1000&to=1060" in number.view


def test_every_kind_has_a_case() -> None:
    assert {case[2] for case in CASES} == set(get_args(Kind))


def test_others_that_are_true_follow_in_the_order_of_precedence() -> None:
    everything = replace(
        BY_LAYER, gaps=(GAP,), dp=Dp(2.0, 0, 8), drift=DRIFT, in_steps=replace(STEPS, cost=0.7)
    )
    found = judge(everything)
    kinds = [found.finding.kind, *(item.kind for item in found.also)]
    assert kinds == ["ranks_hot_by_layer", "dp_uneven", "capture_incomplete", "drifted"]
    graver = judge(replace(everything, gaps=(WRONG,)))
    kinds = [graver.finding.kind, *(item.kind for item in graver.also)]
    assert kinds == ["capture_incomplete", "ranks_hot_by_layer", "dp_uneven", "drifted"]


def test_a_ratio_above_even_bars_is_no_contradiction() -> None:
    words = judge(replace(BY_LAYER, balance=replace(BY_LAYER.balance, ratio=2.5))).finding.words
    assert words == (
        "Another EP rank is hot from layer to layer: 4 of 4 ranks are the busiest of some layer, and none "
        "causes more than 25 % of the waiting. Over all layers together every rank has 0.90 to 1.18 times a "
        "fair share, but each layer waits for its own busiest rank, and that adds up: an average EP rank "
        "waits 60 % of the time in experts by the window's sums (2.50x over 8 layers)."
    )


def test_a_hot_rank_is_told_with_its_steps() -> None:
    found = judge(replace(HOT, in_steps=Steps(0.55, 600, (0.1, 0.9)))).finding
    assert (
        "waits 50 % of the time in experts by the window's sums (2.00x over 4 layers), and 55 %"
        in found.words
    )
    by_name = {number.name: number.value for number in found.numbers}
    assert by_name["steps and layers in which it was the busiest"] == 0.9


REMEDY = Remedy(name="EPLB with 32 redundant experts", redundant=32, before=0.5, after=0.1, memory=0.125)


def test_what_to_do_about_uneven_ranks() -> None:
    action = judge(replace(HOT, remedy=REMEDY)).finding.action
    assert action.words == (
        "EPLB with 32 redundant experts would bring the waiting from 50 % to 10 %, on loads that it was not "
        "fitted on: it saves 80 % of the waiting and costs 12 % more memory for experts."
    )
    assert [number.value for number in action.numbers] == [32, 0.1, 0.8, 0.125]
    none = Remedy(reason="Not worth it: the best placement would have saved 1.0 %.")
    assert judge(replace(HOT, remedy=none)).finding.action.words == (
        "No other placement is recommended: Not worth it: the best placement would have saved 1.0 %."
    )
    short = Remedy(known=False, reason="there are data of 100 s, and it takes 10 min at least")
    words = judge(replace(HOT, remedy=short)).finding.action.words
    assert words == (
        "What another placement (EPLB) would save is not known: there are data of 100 s, and it takes 10 min "
        "at least."
    )


def test_an_open_window_is_not_called_past_while_advice_is_made() -> None:
    assert judge(HOT).finding.action.words == (
        "What another placement (EPLB) would save is not known: advice is being made, ask again."
    )
    past = judge(replace(HOT, open_end=False)).finding.action.words
    assert past.endswith("is not known: this window is past; see Advice about it.")


def test_what_it_rests_on() -> None:
    told = judge(EVEN).confidence
    assert told.words == "Rests on 50,000 tokens in 60 s, 600 steps, 1 layer."
    assert told.enough
    assert not judge(replace(HOT, too_little=("few",))).confidence.enough
