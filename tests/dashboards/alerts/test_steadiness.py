"""What must not raise an alert, and what must not end one, by promtool, in the minutes of production."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards.promtool import OF, check

Series = dict[str, str]


def firing(name: str) -> str:
    return f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'


def never(name: str, series: Series, at: str = "85m") -> dict[str, Any]:
    """A case: the alert has not fired up to a time."""
    fired = f'count(max_over_time(ALERTS{{alertname="{name}",alertstate="firing"}}[{at}]))'
    return {"series": series, "at": at, "expect": {fired: {}}}


def steady(name: str, series: Series) -> dict[str, Any]:
    """A case: the alert fires from the 40th to the 80th minute, and is one alert all the time."""
    once = f'changes(ALERTS_FOR_STATE{{alertname="{name}"}}[40m])'
    always = f'count_over_time(ALERTS{{alertname="{name}",alertstate="firing"}}[40m])'
    expect = {f"max({once})": {"{}": 0}, f"max({always})": {"{}": 41}, f"count({always})": {"{}": 1}}
    return {"series": series, "at": "80m", "expect": expect}


def tokens(values: str = "0+60000x90") -> Series:
    return {f'moescope_tokens_total{OF},dp_rank="0"}}': values}


def vio(layer: str, values: str) -> Series:
    return {
        f'moescope_layer_max_vio_ratio{OF},layer="{layer}"}}': values,
        f'moescope_layer_max_vio_limit_ratio{OF},layer="{layer}"}}': "7+0x90",
    }


def loads(*per_minute: str) -> Series:
    """Slots of EP ranks in one layer, of many tokens."""
    return tokens() | {
        f'moescope_{name}{OF},{labels}ep_rank="{rank}"}}': values
        for rank, values in enumerate(per_minute)
        for name, labels in (("layer_ep_rank_slots_total", 'layer="0",'), ("ep_rank_slots_total", ""))
    }


def test_an_alert_goes_on_when_another_layer_becomes_the_worst(tmp_path: Path) -> None:
    series = {**tokens(), **vio("3", "5+0x50 0+0x40"), **vio("4", "0+0x49 6+0x41")}
    check(tmp_path, [steady("MoescopeHotExpert", series)])


def test_an_alert_goes_on_over_a_scrape_that_failed(tmp_path: Path) -> None:
    cases = [
        steady(
            "MoescopeUncoveredLayers", {f'moescope_uncovered_layers{OF},dp_rank="0"}}': "1+0x60 stale 1+0x30"}
        ),
        steady(
            "MoescopeHotExpert",
            {**tokens("0+60000x60 stale 3660000+60000x30"), **vio("3", "5+0x60 stale 5+0x30")},
        ),
    ]
    check(tmp_path, cases)


def test_an_alert_whose_value_is_near_its_threshold_is_one(tmp_path: Path) -> None:
    """Three minutes below the threshold."""
    series = loads("0+240x40 9750+150x4 10590+240x40", "0+100x90")
    below = "count_over_time((model:moescope_ep_imbalance:ratio_rate5m <= 1.3)[40m:1m])"
    case = steady("MoescopeRankImbalance", series)
    case["expect"][f"max({below})"] = {"{}": 3}
    check(tmp_path, [case])


def test_nothing_is_said_of_routing_after_the_last_token(tmp_path: Path) -> None:
    """The service's gauges stay; the last token comes in the 60th minute."""
    series = {**tokens("0+60000x60 3600000+0x30")}
    gauges = {
        "MoescopeNewHotExperts": {f'moescope_new_hot_experts{OF},baseline="b",phase="all"}}': "2+0x90"},
        "MoescopeExpertsDied": {f'moescope_new_dead_experts{OF},baseline="b",phase="all"}}': "2+0x90"},
        "MoescopeRoutingDrift": {
            f'moescope_median_layer_drift_bits{OF},baseline="b",phase="all"}}': "0.2+0x90",
            f'moescope_drift_sampling_noise_bits{OF},baseline="b",phase="all"}}': "0.001+0x90",
        },
        "MoescopeHotExpert": vio("3", "5+0x90"),
        "MoescopeRankImbalance": loads("0+240x60 14400+0x30", "0+100x60 6000+0x30"),
        "MoescopeReplicaRouting": {
            f"moescope_replica_divergence_bits{OF}}}": "0.2+0x90",
            f"moescope_replica_sampling_noise_bits{OF}}}": "0.01+0x90",
        },
    }
    cases = []
    for name, gauge in gauges.items():
        cases.append({"series": {**gauge, **series}, "at": "59m", "expect": {firing(name): {"{}": 1}}})
        cases.append({"series": {**gauge, **series}, "at": "66m", "expect": {firing(name): {}}})
    check(tmp_path, cases)


def test_ranks_of_an_idle_or_nearly_idle_fleet_are_not_uneven(tmp_path: Path) -> None:
    """With so few tokens it may be chance, or one long request."""
    few = {f'moescope_tokens_total{OF},dp_rank="{rank}"}}': f"0+{n}x90" for rank, n in enumerate((900, 60))}
    cases = [
        never("MoescopeDpImbalance", few),
        never("MoescopeRankImbalance", loads("0+30x90", "0+10x90")),
        never("MoescopeHotExpert", {**tokens("0+60x90"), **vio("3", "6+0x90")}),
    ]
    check(tmp_path, cases)


def test_a_rolling_restart_and_a_restart_of_the_service_are_no_crash_loop(tmp_path: Path) -> None:
    rolling = {
        f'moescope_producer_restarts_total{OF},dp_rank="{rank}"}}': f"0+0x{10 + 5 * rank} 1+0x80"
        for rank in range(8)
    }
    forgotten = {f'moescope_producer_restarts_total{OF},dp_rank="0"}}': "5+0x50 0+0x40"}
    check(tmp_path, [never("MoescopeRestarts", rolling), never("MoescopeRestarts", forgotten)])


def test_a_hot_rank_is_not_said_to_be_one_before_half_an_hour_was_seen(tmp_path: Path) -> None:
    """The alert says how long it has looked: a minute less where it came before the series that it asks for.

    promtool evaluates the two groups of rules in any order, so the text is read from what it prints of the
    alerts when others were expected.
    """
    series, name = loads("0+1300x90", "0+1000x90"), "MoescopeOneRankHottest"
    check(tmp_path, [never(name, series, "44m")])
    none = {"alertname": name, "eval_time": "50m", "exp_alerts": []}
    with pytest.raises(AssertionError) as printed:
        check(tmp_path, [{"series": series, "at": "50m", "expect": {}, "alerts": [none]}])
    got = str(printed.value).partition("got:")[2]
    assert got.count("Labels:") == 1
    assert 'kind="cause", model="m", server="s", severity="info"' in got
    assert re.search(r"EP rank 0 had the most slots in 100% of the last 4[89]m 0s\. ", got)
    assert "points at placement, not at chance" in got


def test_a_rank_that_moved_to_another_service_is_not_silent(tmp_path: Path) -> None:
    series = {
        f'moescope_producers{OF},instance="a",state="stale"}}': "1+0x90",
        f'moescope_snapshot_age_seconds{OF},instance="a",dp_rank="0"}}': "0+60x90",
        f'moescope_producers{OF},instance="b",state="counting"}}': "1+0x90",
        f'moescope_snapshot_age_seconds{OF},instance="b",dp_rank="0"}}': "1+0x90",
    }
    check(tmp_path, [never("MoescopeStaleProducer", series)])


def test_a_past_that_begins_with_the_service_is_not_short(tmp_path: Path) -> None:
    """Before, the service remembered more than a day; without a store it begins anew."""
    series = {
        f"moescope_history_span_seconds{OF}}}": "100000+60x30 0+60x60",
        "moescope_window_seconds": "3600+0x90",
    }
    check(tmp_path, [never("MoescopeShortHistory", series)])


def test_ranks_that_wait_for_one_are_one_alert(tmp_path: Path) -> None:
    """The steps' cost is above its threshold too; it has an alert of its own only where the sums are even."""
    series = {
        **loads("0+300x90", "0+50x90"),
        f"moescope_straggler_mean_slots_total{OF}}}": "0+60x90",
        f"moescope_straggler_max_slots_total{OF}}}": "0+100x90",
    }
    fires = {"series": series, "at": "85m", "expect": {firing("MoescopeRankImbalance"): {"{}": 1}}}
    check(tmp_path, [fires, never("MoescopeStragglerCost", series)])


def test_a_service_is_missed_whatever_its_job_is_called(tmp_path: Path) -> None:
    place = '{job="llm-telemetry",instance="i"'
    series = {
        f"up{place}}}": "1+0x40 0+0x50",
        f'moescope_build_info{place},version="0"}}': "1+0x40 stale",
        'up{job="llm-telemetry",instance="else"}': "0+0x90",  # never was one
    }
    check(tmp_path, [{"series": series, "at": "60m", "expect": {firing("MoescopeDown"): {"{}": 1}}}])


def test_the_text_names_the_worst_layer_expert_and_rank_and_how_many(tmp_path: Path) -> None:
    series = {**tokens(), **loads("0+300x90", "0+100x90"), **vio("0", "4.5+0x90"), **vio("7", "5+0x90")}
    series |= {
        f'moescope_layer_expert_slots_total{OF},layer="7",expert="{expert}"}}': f"0+{slots}x90"
        for expert, slots in ((11, 100), (12, 900))
    }
    series |= {
        f'moescope_straggler_hottest_layer_steps_total{OF},ep_rank="{rank}"}}': f"0+{steps}x90"
        for rank, steps in enumerate((90, 10))
    }
    alert = {
        "alertname": "MoescopeRankImbalance",
        "eval_time": "30m",
        "exp_alerts": [
            {
                "exp_labels": {"server": "s", "model": "m", "severity": "critical", "kind": "symptom"},
                "exp_annotations": {
                    "summary": "Expert load of s (m) is uneven over EP ranks",
                    "description": "The busiest EP ranks have 1.50 times a fair share of the slots, "
                    "summed over layers: an average rank spends 33.33% of that time waiting. One rank is hot "
                    "in most layers: EP rank 0, the busiest in 90% of steps x layers. Worst is layer 0 "
                    "(1.50, EP rank 0; layers above 1.3: 1). Layers with a hot expert: 2; worst is layer 7, "
                    "expert 12, with 6.00 times its fair share. `moescope advise` says what EPLB would save.",
                    "runbook_url": "docs/runbook.md#moescoperankimbalance",
                    "dashboard_url": "/d/moescope-model?orgId=1&var-server=s&var-model=m",
                },
            }
        ],
    }
    check(tmp_path, [{"series": series, "at": "30m", "expect": {}, "alerts": [alert]}])
