"""Each section of a report, from answers of the API that are made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from moescope.service.report.facts import Facts
from moescope.service.report.sections import (
    advice,
    experts,
    ranks,
    stragglers,
    summary,
    time,
    worst_layers,
)


def layer(number: int, ratio: float | None, loads: list[float], dead: int = 0) -> dict[str, Any]:
    over_ranks = None if ratio is None else {"imbalance_ratio": ratio}
    return {
        "layer": number,
        "over_ep_ranks": {"loads": loads, "measures": over_ranks},
        "over_experts": {"loads": loads, "measures": {"dead": dead}},
    }


def facts(**changes: Any) -> Facts:
    """A window of two DP ranks, three layers and two EP ranks."""
    over = {"ratio_of_sums": 1.25, "worst": 2.0, "worst_layer": 3}
    balance = {
        "tokens": 12_345,
        "dp_ranks": [0, 1],
        "dp_tokens": {"loads": [12_000.0, 345.0]},
        "missing_dp_ranks": [],
        "summary": {"over_ep_ranks": over, "over_experts": over},
        "window": {"truncated": False},
        "layers": [layer(1, 1.2, [6, 4]), layer(3, 2.0, [0, 9], dead=1), layer(4, None, [])],
    }
    drops = {"sends_failed": 2, "steps_lost": 1}
    workers = [{"state": "counting", "state_reason": None, "drops": drops, "restarts": 4}]
    stage = {"joined": 1_000}
    made: dict[str, Any] = {
        "since_s": 3600.0,
        "at": 1_700_000_000.0,
        "balance": balance,
        "trend": {
            "step": 30.0,
            "at": [0.0, 30.0, 60.0],
            "ratio_of_sums": [1.1, None, 1.3],
            "worst": [1.5, None, 2.0],
            "dp_ranks": [0, 1],
            "tokens_per_second": [[10.0, 20.0, 30.0], [1.0, 2.0, 3.0]],
        },
        "ranks": {"dp_ranks": [{"dp_rank": rank, "producers": workers} for rank in (0, 1)]},
        "stragglers": {
            "straggler_cost": 0.2,
            "hottest": [30.0, 10.0],
            "stages": [stage, stage],
            "layers": [{"layer": 3, "straggler_cost": 0.4, "not_conserved": None}],
        },
        "advice": None,
    }
    for name, change in changes.items():
        made[name] = {**made[name], **change}
    return Facts(**made)


def test_the_summary_has_the_numbers_in_large() -> None:
    made = summary.section(facts())
    for part in ("<dd>12,345</dd>", "2 DP ranks", "<dd>1.25</dd>", "worst 2.00 in layer 3", "20.0 %"):
        assert part in made.body, part
    assert "<dd>0.25</dd>" in made.body  # MaxVio is the ratio less one
    assert made.lead == ""


def test_the_summary_says_who_is_missing_and_what_is_not_known() -> None:
    made = summary.section(
        facts(
            balance={
                "partial": "a part: of 6 DP ranks [2, 5] never reported",
                "window": {"truncated": True},
            },
            stragglers={"straggler_cost": None},
        )
    )
    assert "This is a part: of 6 DP ranks [2, 5] never reported." in made.lead
    assert "shorter than asked for" in made.lead
    assert "no single steps were joined" in made.body


def test_layers_are_listed_worst_first_and_those_without_a_sample_not_at_all() -> None:
    made = worst_layers.section(facts())
    assert made is not None
    assert made.lead.startswith("The 2 of 2 layers")
    worst, other = made.body.index("2.00"), made.body.index("1.20")
    assert worst < other
    assert "40.0 %" in made.body
    assert worst_layers.section(facts(balance={"layers": [layer(1, None, [])]})) is None


def test_ranks_have_their_tokens_and_what_their_workers_lost() -> None:
    made = ranks.section(facts())
    for part in ("counting", "12,000", "345", ">4</td>", ">3</td>"):
        assert part in made.body, part
    worker = {"state": "<b>", "state_reason": "<i>", "drops": {}, "restarts": 0}
    lost = ranks.section(facts(ranks={"dp_ranks": [{"dp_rank": 0, "producers": [worker]}]}))
    assert "&lt;b&gt;; capture is off: &lt;i&gt;" in lost.body


def test_the_busiest_ranks_in_shares_of_steps() -> None:
    made = stragglers.section(facts())
    assert made is not None
    assert "2,000 joined steps" in made.lead
    assert "75.0 %" in made.body
    assert "25.0 %" in made.body
    assert stragglers.section(facts(stragglers={"hottest": [0.0, 0.0]})) is None


def test_lines_over_time_have_a_name_each() -> None:
    made = time.section(facts())
    for name in ("sum over layers", "worst layer", "DP rank 0", "DP rank 1"):
        assert f"<title>{name}</title>" in made.body, name
    assert "Intervals of 30 s" in made.lead


def test_the_picture_of_experts_has_a_row_a_layer() -> None:
    made = experts.section(facts())
    assert made is not None
    assert "layers 1 to 4 by experts 0 to 1" in made.body
    assert experts.section(facts(balance={"layers": [layer(1, None, [])]})) is None


@pytest.mark.parametrize("options", [0, 1])
def test_advice_is_quoted_and_escaped(options: int) -> None:
    option = {
        "name": "eplb & more",
        "fitted": {"ratio_of_sums": 1.1},
        "held_out": {"ratio_of_sums": 1.2},
        "saving_fitted": 0.3,
        "saving_held_out": None,
        "copies_to_move": 7,
        "copies_in_vain": 3,
    }
    verdict = {"words": "Worth it.", "evidence": ["a < b"]}
    assert advice.section(facts()) is None
    plain = facts()
    short = "Too early to say." if options else None
    told = Facts(
        plain.since_s, plain.at, plain.balance, plain.trend, plain.ranks, plain.stragglers,
        {"options": [option] * options, "verdict": verdict, "short": short},
    )  # fmt: skip
    made = advice.section(told)
    assert made is not None
    assert made.lead == ("Too early to say. Worth it." if options else "Worth it.")
    assert "<li>a &lt; b</li>" in made.body
    assert ("eplb &amp; more" in made.body) == bool(options)
    assert ("1.200" in made.body) == bool(options)
