"""Alerts, by promtool: when each fires and when not, and what an operator is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moescope.dashboards.alert_rules import ALERTS as ALL
from moescope.service.metrics.alerts import ALERT_LEVELS, silent_alerts
from moescope.service.settings import MetricsLevel
from tests.dashboards.promtool import OF, ROOT, check, rules
from tests.service.metrics.families import FAMILY_OF

Series = dict[str, str]


def level_of(expr: str) -> MetricsLevel:
    """The coarsest level that shows all metrics that an expression needs, those of recorded series too."""
    by_name = {name: family.level for name, family in FAMILY_OF.items()}
    recorded = {rule["record"]: rule["expr"] for rule in rules("record")}
    levels = list(MetricsLevel)
    used = re.findall(r"\b(?:\w+:)?moescope_\w+(?::\w+)?", expr.partition("unless")[0])
    needed = [level_of(recorded[name]) if name in recorded else by_name[name] for name in used]
    return max(needed, key=levels.index, default=MetricsLevel.RANK)


def test_alerts_that_can_not_fire_at_a_level_are_told() -> None:
    needed = {rule["alert"]: level_of(rule["expr"]) for rule in rules("alert")}
    assert {name: level for name, level in needed.items() if level is not MetricsLevel.RANK} == ALERT_LEVELS
    assert silent_alerts(MetricsLevel.LAYER_EXPERT) == []
    assert silent_alerts(MetricsLevel.LAYER_RANK) == []
    assert set(silent_alerts(MetricsLevel.RANK)) == set(ALERT_LEVELS)
    for section in (ROOT / "docs" / "runbook.md").read_text().split("\n## ")[1:]:
        name = section.split("\n")[0]
        means = " ".join(section.split("**Means**")[1].split("- **Look**")[0].split())  # whatever its lines
        level = ALERT_LEVELS.get(name)
        said = re.findall(r"Needs `--metrics-level (\w+)`", means)
        assert said == ([] if level is None else [level.value]), name


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    headings = re.findall(r"^## (\w+)$", runbook, re.MULTILINE)
    names = [rule["alert"] for rule in rules("alert")]
    assert sorted(headings) == sorted(names)
    for section in runbook.split("\n## ")[1:]:
        said = re.findall(r"^- \*\*(\w+)\*\*: \S", section, re.MULTILINE)
        assert said == ["Means", "Look", "Do"], section
    for rule in rules("alert"):
        annotations = rule["annotations"]
        assert set(annotations) == {"summary", "description", "runbook_url", "dashboard_url"}
        assert len(annotations["summary"]) < 120
        assert annotations["description"].endswith((".", "?", "}"))
        assert annotations["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule.get("for", "0m") in {"0m", "2m", "3m", "5m", "10m", "15m", "30m"}


def test_an_alert_has_only_labels_of_a_deployment_a_pool_or_an_instance() -> None:
    allowed = {"cluster", "server", "model", "pool", "role", "job", "instance"}
    assert all(set(alert.labels) <= allowed for alert in ALL)


def replica(
    server: str,
    tokens: str = "0+60000x90",
    age: str = "1x90",
    *,
    ep: tuple[int, ...] = (),
    pool: str = "chat",
    role: str = "",
    lives: int = 0,
) -> Series:
    """Series of a deployment of one DP rank in a pool; ``ep`` are slots a minute by EP rank.

    ``lives`` are the live processes that claim the DP rank, if there are several.
    """
    place = f'server="{server}",model="m",pool="{pool}"' + (f',role="{role}"' if role else "")
    slots = {
        f'moescope_layer_ep_rank_slots_total{{{place},layer="0",ep_rank="{rank}"}}': f"0+{step}x90"
        for rank, step in enumerate(ep)
    }
    return {
        f'moescope_tokens_total{{{place},dp_rank="0"}}': tokens,
        f'moescope_snapshot_age_seconds{{{place},dp_rank="0"}}': age,
        f'moescope_conflicting_lives{{{place},dp_rank="0"}}': f"{lives}x90",
        **slots,
    }


TOKENS = {f'moescope_tokens_total{OF},dp_rank="0"}}': "0+60000x300"}
"""A thousand tokens a second."""


def vio(values: str, limit: str, layer: str = "0") -> Series:
    """MaxVio of a layer, and its limit, of a deployment with many tokens."""
    return {
        **TOKENS,
        f'moescope_layer_max_vio_ratio{OF},layer="{layer}"}}': values,
        f'moescope_layer_max_vio_limit_ratio{OF},layer="{layer}"}}': limit,
    }


# Name to the series under which it fires and those under which it doesn't.
ALERTS: dict[str, tuple[Series, Series]] = {
    "MoescopeRankImbalance": (
        {
            **TOKENS,
            f'moescope_layer_ep_rank_slots_total{OF},layer="0",ep_rank="0"}}': "0+300x90",
            f'moescope_layer_ep_rank_slots_total{OF},layer="0",ep_rank="1"}}': "0+100x90",
        },
        {
            **TOKENS,
            f'moescope_layer_ep_rank_slots_total{OF},layer="0",ep_rank="0"}}': "0+120x90",
            f'moescope_layer_ep_rank_slots_total{OF},layer="0",ep_rank="1"}}': "0+100x90",
        },
    ),
    "MoescopeDpImbalance": (
        {
            f'moescope_tokens_total{OF},dp_rank="0"}}': "0+40000x90",
            f'moescope_tokens_total{OF},dp_rank="1"}}': "0+10000x90",
        },
        {
            f'moescope_tokens_total{OF},dp_rank="0"}}': "0+0x90",  # idle is not unbalanced
            f'moescope_tokens_total{OF},dp_rank="1"}}': "0+0x90",
        },
    ),
    "MoescopeHotExpert": (
        vio("5+0x90", "7+0x90"),
        vio("3+0x70 9+0x5 3+0x20", "15+0x90"),  # for five minutes only
    ),
    "MoescopeNewDeadExperts": (
        {**vio("0+0x300", "7+0x300"), f'moescope_layer_dead_experts{OF},layer="0"}}': "2+0x240 4+0x60"},
        {**vio("0+0x300", "7+0x300"), f'moescope_layer_dead_experts{OF},layer="0"}}': "4+0x300"},  # always
    ),
    "MoescopeOneRankHottest": (
        {
            **TOKENS,
            f'moescope_ep_rank_slots_total{OF},ep_rank="0"}}': "0+300x90",
            f'moescope_ep_rank_slots_total{OF},ep_rank="1"}}': "0+100x90",
            f'moescope_layer_ep_rank_slots_total{OF},layer="0",ep_rank="0"}}': "0+300x90",
            f'moescope_layer_ep_rank_slots_total{OF},layer="0",ep_rank="1"}}': "0+100x90",
        },
        {  # first one, then the other
            **TOKENS,
            f'moescope_ep_rank_slots_total{OF},ep_rank="0"}}': "0+300x60 18000+100x30",
            f'moescope_ep_rank_slots_total{OF},ep_rank="1"}}': "0+100x60 6000+300x30",
            f'moescope_layer_ep_rank_slots_total{OF},layer="0",ep_rank="0"}}': "0+300x60 18000+100x30",
            f'moescope_layer_ep_rank_slots_total{OF},layer="0",ep_rank="1"}}': "0+100x60 6000+300x30",
        },
    ),
    "MoescopeRoutingDrift": (
        {
            **TOKENS,
            f'moescope_median_layer_drift_bits{OF},baseline="chat",phase="all"}}': "0.05+0x90",
            f'moescope_drift_sampling_noise_bits{OF},baseline="chat",phase="all"}}': "0.001+0x90",
        },
        {  # as much, of so few tokens that it may be chance
            **TOKENS,
            f'moescope_median_layer_drift_bits{OF},baseline="chat",phase="all"}}': "0.05+0x90",
            f'moescope_drift_sampling_noise_bits{OF},baseline="chat",phase="all"}}': "0.03+0x90",
        },
    ),
    "MoescopeNewHotExperts": (
        {**TOKENS, f'moescope_new_hot_experts{OF},baseline="chat",phase="all"}}': "0+0x50 2+0x40"},
        {**TOKENS, f'moescope_new_hot_experts{OF},baseline="chat",phase="all"}}': "0+0x70 2+0x5 0+0x9"},
    ),
    "MoescopeExpertsDied": (
        {**TOKENS, f'moescope_new_dead_experts{OF},baseline="chat",phase="all"}}': "0+0x50 1+0x40"},
        {**TOKENS, f'moescope_new_dead_experts{OF},baseline="chat",phase="all"}}': "0+0x70 1+0x5 0+0x9"},
    ),
    "MoescopeUncoveredLayers": (
        {f'moescope_uncovered_layers{OF},dp_rank="0"}}': "1+0x90"},
        {f'moescope_uncovered_layers{OF},dp_rank="0"}}': "0+0x90"},
    ),
    "MoescopeAbsentLayers": (
        {f'moescope_absent_layers{OF},dp_rank="0"}}': "1+0x90"},
        {f'moescope_absent_layers{OF},dp_rank="0"}}': "0+0x90"},
    ),
    "MoescopeUnseenLayers": (
        {f'moescope_unseen_layers{OF},dp_rank="0"}}': "1+0x90"},
        {f'moescope_unseen_layers{OF},dp_rank="0"}}': "0+0x80 1+0x10"},
    ),
    "MoescopeConflictingLives": (
        {f'moescope_conflicting_lives{OF},dp_rank="0"}}': "0+0x10 2+0x80"},
        {f'moescope_conflicting_lives{OF},dp_rank="0"}}': "0+0x89 2+0x1"},  # it is shutting down
    ),
    "MoescopeConservationMismatch": (
        {f'moescope_conservation_mismatched_layers{OF},dp_rank="0"}}': "2+0x90"},
        {f'moescope_conservation_mismatched_layers{OF},dp_rank="0"}}': "0+0x90"},
    ),
    "MoescopeConservationUnknown": (
        {f'moescope_conservation_unknown_stages{OF},dp_rank="0"}}': "1+0x90"},
        {f'moescope_conservation_unknown_stages{OF},dp_rank="0"}}': "0+0x85 1+0x5"},
    ),
    "MoescopeStaleProducer": (
        {
            f'moescope_producers{OF},state="stale"}}': "1+0x90",
            f'moescope_snapshot_age_seconds{OF},dp_rank="0"}}': "20+60x90",
        },
        {
            f'moescope_producers{OF},state="counting"}}': "1+0x90",
            f'moescope_snapshot_age_seconds{OF},dp_rank="0"}}': "1+0x90",
        },
    ),
    "MoescopeCaptureDisabled": (
        {f'moescope_producers{OF},state="disabled"}}': "1+0x90"},
        {f'moescope_producers{OF},state="stale"}}': "1+0x90"},
    ),
    "MoescopeMissingRanks": (
        {f"moescope_missing_dp_ranks{OF}}}": "2+0x90"},
        {f"moescope_missing_dp_ranks{OF}}}": "2+0x10 0+0x80"},
    ),
    "MoescopeStragglerCost": (
        {
            **TOKENS,
            f"moescope_straggler_mean_slots_total{OF}}}": "0+60x90",
            f"moescope_straggler_max_slots_total{OF}}}": "0+100x90",
        },
        {
            **TOKENS,
            f"moescope_straggler_mean_slots_total{OF}}}": "0+80x90",
            f"moescope_straggler_max_slots_total{OF}}}": "0+100x90",
        },
    ),
    "MoescopeStepsNotJoined": (
        {
            f'moescope_straggler_incomplete_steps_total{OF},pp_rank="0"}}': "0+10x90",
            f'moescope_straggler_joined_steps_total{OF},pp_rank="0"}}': "0+90x90",
        },
        {
            f'moescope_straggler_incomplete_steps_total{OF},pp_rank="0"}}': "0+1x90",
            f'moescope_straggler_joined_steps_total{OF},pp_rank="0"}}': "0+99x90",
        },
    ),
    "MoescopeProducerDrops": (
        {f'moescope_producer_drops_total{OF},dp_rank="0",reason="sends_failed"}}': "0+2x90"},
        {f'moescope_producer_drops_total{OF},dp_rank="0",reason="snapshots_put_off"}}': "0+50x90"},
    ),
    "MoescopeTracesDropped": (
        {f'moescope_traces_dropped_total{OF},dp_rank="0",reason="buffer_full"}}': "0+1x90"},
        {f'moescope_traces_dropped_total{OF},dp_rank="0",reason="buffer_full"}}': "7+0x90"},
    ),
    "MoescopeRestarts": (
        {f'moescope_producer_restarts_total{OF},dp_rank="0"}}': "0+0x60 1+1x4 5+0x30"},
        {f'moescope_producer_restarts_total{OF},dp_rank="0"}}': "0+0x60 1+0x10 2+0x20"},  # exactly two
    ),
    "MoescopeReplicaTokens": (
        {
            **replica("a", "0+60000x90"),
            **replica("b", "0+60000x90"),
            **replica("c", "0+10000x90"),
        },
        {
            **replica("a", "0+60000x90"),
            **replica("b", "0+40000x90"),
            **replica("gone", "0+60000x30 1800000+0x60", "1x30 60+60x60"),
            **replica("prefill", "0+600000x90", role="prefill"),  # no sibling of its role
            **replica("few", "0+600x90", pool="small"),
            **replica("fewer", "0+60x90", pool="small"),  # too few tokens to tell
            **replica("once", pool="twice"),
            **replica("innocent", pool="twice"),
            **replica("several", "0+600000x90", pool="twice", lives=2),  # nobody knows whose tokens they are
        },
    ),
    "MoescopeReplicaImbalance": (
        {**replica("a", ep=(100, 100)), **replica("b", ep=(100, 110)), **replica("c", ep=(100, 200))},
        {
            **replica("a", ep=(100, 200)),
            **replica("b", ep=(200, 100)),
            **replica("alone", ep=(1, 9), pool="p"),
            **replica("busy", ep=(100, 100), pool="q"),
            **replica("nearly idle", "0+60x90", ep=(10, 90), pool="q"),
            **replica("even", ep=(100, 100), pool="twice"),
            **replica("several", ep=(100, 300), pool="twice", lives=2),
        },
    ),
    "MoescopeReplicaRouting": (
        {
            **replica("s"),
            f'moescope_replica_divergence_bits{OF},pool="chat"}}': "0.2+0x90",
            f'moescope_replica_sampling_noise_bits{OF},pool="chat"}}': "0.01+0x90",
        },
        {  # as much, of so few tokens that it may be chance
            **replica("s"),
            f'moescope_replica_divergence_bits{OF},pool="chat"}}': "0.2+0x90",
            f'moescope_replica_sampling_noise_bits{OF},pool="chat"}}': "0.1+0x90",
        },
    ),
    "MoescopeDown": (
        {'up{job="moescope",instance="i"}': "0+0x90"},
        {'up{job="moescope",instance="i"}': "1+0x90", 'up{job="other",instance="i"}': "0+0x90"},
    ),
    "MoescopeRefusedFrames": (
        {'moescope_frames_total{instance="i",result="refused",reason="version"}': "0+1x90"},
        {'moescope_frames_total{instance="i",result="accepted",reason=""}': "0+60x90"},
    ),
    "MoescopeScrapePartFailed": (
        {'moescope_scrape_part_success{instance="i",part="ranks"}': "0+0x90"},
        {'moescope_scrape_part_success{instance="i",part="ranks"}': "1+0x90"},
    ),
    "MoescopeShortHistory": (
        {
            f"moescope_history_span_seconds{OF}}}": "400+2x90",
            "moescope_window_seconds": "3600x90",
            f'moescope_producer_start_time_seconds{OF},dp_rank="0"}}': "-3600x90",
        },
        {
            f"moescope_history_span_seconds{OF}}}": "60+60x90",
            "moescope_window_seconds": "60x90",
            f'moescope_producer_start_time_seconds{OF},dp_rank="0"}}': "-3600x90",
        },
    ),
    "MoescopeSeriesOverflow": (
        {'moescope_overflowed_series_total{instance="i",family="f"}': "0+5x90"},
        {'moescope_overflowed_series_total{instance="i",family="f"}': "0+0x90"},
    ),
}


def test_every_alert_is_tested() -> None:
    assert set(ALERTS) == {rule["alert"] for rule in rules("alert")}


def _at(name: str) -> str:
    return "295m" if name == "MoescopeNewDeadExperts" else "85m"


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path, name: str) -> None:
    bad, good = ALERTS[name]
    firing = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
    at = _at(name)
    # Whatever series it is made of, it is one alert, and none of a layer or a rank.
    finer = ("layer", "expert", "ep_rank", "dp_rank", "phase", "baseline", "reason", "part", "family")
    none = {f'ALERTS{{alertname="{name}",{label}!=""}}': {} for label in finer}
    fires = {"series": bad, "at": at, "expect": {firing: {"{}": 1}, **none}}
    does_not = {"series": good, "at": at, "expect": {firing: {}}}
    check(tmp_path, [fires, does_not])


# Experts, top-k, share of the tokens that choose the hottest expert, whether that is a hot expert.
HOT = [
    (8, 2, 0.8, True),  # Mixtral: 3.2 times a fair share of 4 at most
    (8, 2, 0.7, False),
    (16, 4, 0.8, True),  # DBRX
    (16, 2, 0.65, True),  # Phi-3.5-MoE: 5.2 times a fair share
    (16, 2, 0.6, False),
    (128, 8, 0.32, True),  # Qwen3: 5.1 times
    (128, 8, 0.3, False),
    (384, 8, 0.11, True),  # Kimi K2: 5.3 times
    (384, 8, 0.1, False),
    (4, 4, 1.0, False),  # all experts take all tokens
]


def test_frames_that_a_service_refuses_are_told_whoever_is_silent_at_another(tmp_path: Path) -> None:
    """A worker whose frames are refused falls silent: MoescopeStaleProducer tells both."""
    refused = {'moescope_frames_total{cluster="c",instance="i",result="refused",reason="version"}': "0+1x90"}

    def silent(instance: str) -> dict[str, str]:
        labels = f'cluster="c",instance="{instance}",server="a",model="m",state="stale"'
        return {f"moescope_producers{{{labels}}}": "1x90"}

    firing = 'count(ALERTS{alertname="MoescopeRefusedFrames",alertstate="firing"})'
    elsewhere = {"series": refused | silent("other"), "at": "85m", "expect": {firing: {"{}": 1}}}
    here = {"series": refused | silent("i"), "at": "85m", "expect": {firing: {}}}
    check(tmp_path, [elsewhere, here])


def test_a_hot_expert_is_found_whatever_the_number_of_experts(tmp_path: Path) -> None:
    firing = 'count(ALERTS{alertname="MoescopeHotExpert",alertstate="firing"})'
    cases = []
    for experts, top_k, share, hot in HOT:
        series = vio(f"{share * experts / top_k - 1}+0x90", f"{experts / top_k - 1}+0x90")
        cases.append({"series": series, "at": "85m", "expect": {firing: {"{}": 1} if hot else {}}})
    check(tmp_path, cases)


def test_an_alert_that_should_fire_and_does_not_is_found(tmp_path: Path) -> None:
    firing = 'count(ALERTS{alertname="MoescopeHotExpert",alertstate="firing"})'
    series = vio("1+0x90", "7+0x90")
    with pytest.raises(AssertionError, match="FAILED"):
        check(tmp_path, [{"series": series, "at": "85m", "expect": {firing: {"{}": 1}}}])
