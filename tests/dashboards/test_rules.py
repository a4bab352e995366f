"""Recording rules, and all rules' syntax, by promtool."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.dashboards.promtool import FILES, OF, ROOT, check, promtool, rules
from tests.service.metrics.families import FAMILY_OF


def test_promtool_finds_nothing_wrong() -> None:
    done = promtool("check", "rules", *FILES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(FILES) == 4


def test_rules_use_only_metrics_that_exist() -> None:
    recorded = {rule["record"] for rule in rules("record")}
    known = recorded | set(FAMILY_OF) | {"up"}
    for rule in [*rules("record"), *rules("alert")]:
        used = set(re.findall(r"\b(?:\w+:)?moescope_\w+(?::\w+)?|\bup\b", rule["expr"]))
        assert used, rule
        assert used <= known, used - known


def test_each_row_of_board_fleet_has_a_cluster_that_its_link_can_take(tmp_path: Path) -> None:
    board = json.loads((ROOT / "dashboards" / "boards" / "moescope-fleet.json").read_text())
    (table,) = (panel for panel in board["panels"] if panel["type"] == "table")
    assert "var-cluster=${__data.fields.cluster}" in table["fieldConfig"]["defaults"]["links"][0]["url"]
    for target in table["targets"]:
        expr = re.sub(r'"\$\w+"', '".*"', target["expr"])
        (metric,) = re.findall(r"moescope_\w+", expr)
        series = {f"{metric}{OF}}}": "1+0x9", f'{metric}{OF},cluster="b"}}': "2+0x9"}
        rows = {f'{OF},cluster="All"}}': 1, f'{OF},cluster="b"}}': 2}
        check(tmp_path, [{"series": series, "at": "5m", "expect": {expr: rows}}])


def test_a_dp_rank_that_fell_silent_is_no_idle_one(tmp_path: Path) -> None:
    series, ages = {}, {"0": "1x90", "1": "1x90", "2": "1x30 60+60x60"}
    for rank, tokens in (("0", "0+60x90"), ("1", "0+0x90"), ("2", "0+60x30 1800x60")):
        labels = f'{OF},dp_rank="{rank}"}}'
        series[f"moescope_tokens_total{labels}"] = tokens
        series[f"moescope_snapshot_age_seconds{labels}"] = ages[rank]
    ratio = "round(model:moescope_dp_imbalance:ratio_rate5m, 0.001)"
    check(tmp_path, [{"series": series, "at": "25m", "expect": {ratio: {f"{OF}}}": 1.5}}}])
    check(tmp_path, [{"series": series, "at": "60m", "expect": {ratio: {f"{OF}}}": 2}}}])  # of 0 and 1


def test_recorded_balance_adds_up_over_services_and_layers(tmp_path: Path) -> None:
    # Two services have half the counts each. Layer 0: 300 and 100 slots a minute; layer 1: 100 and 300.
    series = {}
    for instance in "ab":
        for layer, per_minute in (("0", (150, 50)), ("1", (50, 150))):
            for rank, step in enumerate(per_minute):
                labels = f'{OF},instance="{instance}",layer="{layer}",ep_rank="{rank}"}}'
                series[f"moescope_layer_ep_rank_slots_total{labels}"] = f"0+{step}x90"
        for rank, step in enumerate((60, 180)):
            series[f'moescope_tokens_total{OF},instance="{instance}",dp_rank="{rank}"}}'] = f"0+{step}x90"
            labels = f'{OF},instance="{instance}",ep_rank="{rank}"}}'
            series[f"moescope_ep_rank_slots_total{labels}"] = f"0+{step}x90"
    expect = {
        "round(layer:moescope_ep_imbalance:ratio_rate5m, 0.001)": {
            f'{OF},layer="0"}}': 1.5,
            f'{OF},layer="1"}}': 1.5,
        },
        "round(model:moescope_ep_imbalance:ratio_rate5m, 0.001)": {f"{OF}}}": 1.5},
        "round(model:moescope_worst_layer_ep_imbalance:ratio_rate5m, 0.001)": {f"{OF}}}": 1.5},
        "round(model:moescope_straggler_share:ratio_rate5m, 0.001)": {f"{OF}}}": 0.333},
        "round(model:moescope_dp_imbalance:ratio_rate5m, 0.001)": {f"{OF}}}": 1.5},
        "round(model:moescope_tokens:rate5m, 0.001)": {f"{OF}}}": 8},
        "ep_rank:moescope_hottest:bool_rate5m": {f'{OF},ep_rank="0"}}': 0, f'{OF},ep_rank="1"}}': 1},
    }
    named = {
        expr: {
            (labels if expr.startswith("round") else f"ep_rank:moescope_hottest:bool_rate5m{labels}"): value
            for labels, value in samples.items()
        }
        for expr, samples in expect.items()
    }
    check(tmp_path, [{"series": series, "at": "60m", "expect": named}])


def test_recorded_drift_takes_the_larger_of_two_services_and_keeps_baselines_apart(tmp_path: Path) -> None:
    series = {}
    for baseline, (median, worst, noise) in {
        "chat": (0.04, 0.2, 0.01),
        "previous_hour": (0.02, 0.1, 0),
    }.items():
        for instance, scale in (("a", 1), ("b", 0.5)):
            labels = f'{OF},baseline="{baseline}",phase="all",instance="{instance}"}}'
            series[f"moescope_median_layer_drift_bits{labels}"] = f"{median * scale}+0x30"
            series[f"moescope_worst_layer_drift_bits{labels}"] = f"{worst * scale}+0x30"
            series[f"moescope_drift_sampling_noise_bits{labels}"] = f"{noise * scale}+0x30"
    chat, hour = (f'{OF},baseline="{name}",phase="all"}}' for name in ("chat", "previous_hour"))
    expect = {
        "round(model:moescope_worst_layer_drift:bits, 0.001)": {chat: 0.2, hour: 0.1},
        "round(model:moescope_median_layer_drift:bits, 0.001)": {chat: 0.04, hour: 0.02},
        "round(model:moescope_drift_over_noise:ratio, 0.001)": {chat: 4},
    }
    check(tmp_path, [{"series": series, "at": "20m", "expect": expect}])


def test_idle_has_no_balance(tmp_path: Path) -> None:
    series = {
        f'moescope_layer_ep_rank_slots_total{OF},layer="0",ep_rank="{rank}"}}': "5+0x90" for rank in (0, 1)
    }
    series |= {f'moescope_ep_rank_slots_total{OF},ep_rank="{rank}"}}': "5+0x90" for rank in (0, 1)}
    names = ("model:moescope_ep_imbalance:ratio_rate5m", "ep_rank:moescope_hottest:bool_rate5m")
    check(tmp_path, [{"series": series, "at": "60m", "expect": {name: {} for name in names}}])


def test_recorded_straggler_cost_adds_up_over_services(tmp_path: Path) -> None:
    """One service has joined steps that cost half, the other ones that cost nothing, with fewer slots."""
    series = {}
    for instance, most, mean in (("a", 60, 30), ("b", 20, 20)):
        labels = f'{OF},instance="{instance}"'
        series |= {
            f"moescope_straggler_max_slots_total{labels}}}": f"0+{most}x90",
            f"moescope_straggler_mean_slots_total{labels}}}": f"0+{mean}x90",
            f'moescope_layer_straggler_max_slots_total{labels},layer="0"}}': f"0+{most}x90",
            f'moescope_layer_straggler_mean_slots_total{labels},layer="0"}}': f"0+{mean}x90",
            f'moescope_straggler_hottest_layer_steps_total{labels},ep_rank="0"}}': "0+30x90",
            f'moescope_straggler_hottest_layer_steps_total{labels},ep_rank="1"}}': "0+10x90",
            f'moescope_straggler_incomplete_steps_total{labels},pp_rank="0"}}': "0+1x90",
            f'moescope_straggler_joined_steps_total{labels},pp_rank="0"}}': "0+9x90",
            f'moescope_phase_tokens_total{labels},dp_rank="0",phase="decode"}}': "0+60x90",
        }
    expect = {
        "round(model:moescope_straggler_cost:ratio_rate5m, 0.001)": {f"{OF}}}": 0.375},
        "round(layer:moescope_straggler_cost:ratio_rate5m, 0.001)": {f'{OF},layer="0"}}': 0.375},
        "round(ep_rank:moescope_hottest_steps:ratio_rate5m, 0.001)": {
            f'{OF},ep_rank="0"}}': 0.75,
            f'{OF},ep_rank="1"}}': 0.25,
        },
        "round(model:moescope_incomplete_steps:ratio_rate5m, 0.001)": {f"{OF}}}": 0.1},
        "round(model_phase:moescope_tokens:rate5m, 0.001)": {f'{OF},phase="decode"}}': 2},
    }
    check(tmp_path, [{"series": series, "at": "30m", "expect": expect}])


def test_one_dp_rank_alone_is_no_sample_of_balance(tmp_path: Path) -> None:
    alone = {f'moescope_tokens_total{OF},dp_rank="0"}}': "0+100x90"}
    check(
        tmp_path, [{"series": alone, "at": "60m", "expect": {"model:moescope_dp_imbalance:ratio_rate5m": {}}}]
    )


def test_ranks_that_left_are_in_no_rate_of_ranks(tmp_path: Path) -> None:
    """A deployment of four ranks starts again with two: the others' series end, and two do all the work."""
    series = {}
    for rank in range(4):
        stays = rank < 2
        for name, labels in (
            ("tokens_total", f'dp_rank="{rank}"'),
            ("ep_rank_slots_total", f'ep_rank="{rank}"'),
            ("layer_ep_rank_slots_total", f'layer="0",ep_rank="{rank}"'),
            ("straggler_hottest_layer_steps_total", f'ep_rank="{rank}"'),
        ):
            series[f"moescope_{name}{OF},{labels}}}"] = "0+60x30 1920+120x60" if stays else "0+60x30 stale"
    ratios = ("model:moescope_ep_imbalance:ratio_rate5m", "model:moescope_dp_imbalance:ratio_rate5m")
    one = {f"round({name}, 0.001)": {f"{OF}}}": 1} for name in ratios}
    hottest = {
        "ep_rank:moescope_hottest_steps:ratio_rate5m": {
            f'ep_rank:moescope_hottest_steps:ratio_rate5m{OF},ep_rank="{rank}"}}': 0.5 for rank in (0, 1)
        }
    }
    check(
        tmp_path,
        [
            {"series": series, "at": "34m", "expect": one},  # three minutes after the change
            {"series": series, "at": "60m", "expect": one | hottest},
        ],
    )


def test_one_scrape_that_failed_takes_no_rate_away(tmp_path: Path) -> None:
    series = {
        f'moescope_layer_ep_rank_slots_total{OF},layer="0",ep_rank="{rank}"}}': f"0+{slots}x30 stale"
        for rank, slots in ((0, 60), (1, 120))
    }
    ratio = "round(model:moescope_ep_imbalance:ratio_rate5m, 0.001)"
    check(tmp_path, [{"series": series, "at": "31m", "expect": {ratio: {f"{OF}}}": 1.333}}}])


def test_a_deployment_that_is_several_has_no_balance(tmp_path: Path) -> None:
    """Two live processes under one name: their sums may be even where each is uneven."""
    series: dict[str, str] = {}
    for server, lives in (("one", "0x90"), ("several", "0x30 2x30 0x30")):
        of = f'{{server="{server}",model="m"'
        series[f'moescope_conflicting_lives{of},dp_rank="1"}}'] = lives
        for name in ("max_slots", "mean_slots", "incomplete_steps", "joined_steps"):
            series[f"moescope_straggler_{name}_total{of}}}"] = "0+60x90"
            series[f'moescope_layer_straggler_{name}_total{of},layer="0"}}'] = "0+60x90"
        for rank in "01":
            series[f'moescope_tokens_total{of},dp_rank="{rank}"}}'] = "0+60x90"
            series[f'moescope_ep_rank_slots_total{of},ep_rank="{rank}"}}'] = "0+60x90"
            series[f'moescope_layer_ep_rank_slots_total{of},layer="0",ep_rank="{rank}"}}'] = "0+60x90"
            series[f'moescope_straggler_hottest_layer_steps_total{of},ep_rank="{rank}"}}'] = "0+60x90"
    balance = {
        rule["record"]
        for rule in rules("record")
        if re.match(r"(model|layer|ep_rank):.*_rate5m$", rule["record"])
    } - {
        "model:moescope_tokens:rate5m",
        "ep_rank:moescope_slots:rate5m",
        "model:moescope_slots_of_layer_and_rank:mean_rate5m",
    }
    assert len(balance) == 10
    both = {f"count by (server) ({name})": {'{server="one"}': 0, '{server="several"}': 0} for name in balance}
    for expr, samples in both.items():
        number = 2 if "ep_rank:" in expr else 1
        samples |= dict.fromkeys(samples, number)
    one = {expr: {'{server="one"}': samples['{server="one"}']} for expr, samples in both.items()}
    tokens = {
        "round(sum by (server) (model:moescope_tokens:rate5m))": {
            '{server="one"}': 2,
            '{server="several"}': 2,
        }
    }
    check(
        tmp_path,
        [
            {"series": series, "at": "25m", "expect": both},
            {"series": series, "at": "45m", "expect": one | tokens},
            {"series": series, "at": "63m", "expect": one},  # the rates are still of both
            {"series": series, "at": "75m", "expect": both},
        ],
    )


def test_the_tokens_of_a_replica_that_is_several_are_in_the_pool_and_in_no_mean(tmp_path: Path) -> None:
    series = {}
    for server, tokens, lives, age in (
        ("a", 60, 0, "1x90"),
        ("b", 60, 0, "1x90"),
        ("several", 600, 2, "1x90"),
        ("gone", 600, 0, "100x90"),
    ):
        of = f'{{pool="p",server="{server}",model="m",dp_rank="0"}}'
        series[f"moescope_tokens_total{of}"] = f"0+{tokens}x90"
        series[f"moescope_conflicting_lives{of}"] = f"{lives}x90"
        series[f"moescope_snapshot_age_seconds{of}"] = age
    expect = {
        "round(pool:moescope_tokens:rate5m)": {'{pool="p",model="m"}': 12},
        "round(replica:moescope_tokens_over_mean:ratio_rate5m, 0.01)": {
            f'{{pool="p",server="{server}",model="m"}}': 1 for server in "ab"
        },
    }
    check(tmp_path, [{"series": series, "at": "60m", "expect": expect}])


def test_board_pools_compares_only_replicas_that_report(tmp_path: Path) -> None:
    board = json.loads((ROOT / "dashboards" / "boards" / "moescope-pools.json").read_text())
    found = {
        panel["title"]: [re.sub(r'"\$\w+"', '".*"', target["expr"]) for target in panel["targets"]]
        for panel in board["panels"]
        if "targets" in panel
    }
    series = {}
    for server, state, lives, age in (
        ("a", "counting", 0, "1x90"),
        ("b", "counting", 0, "1x90"),
        ("several", "conflict", 2, "1x90"),
        ("silent", "stale", 0, "1x30 60+60x60"),
    ):
        of = f'pool="p",server="{server}",model="m"'
        series[f'moescope_producers{{{of},state="counting"}}'] = f"{int(state == 'counting')}x90"
        series[f'moescope_producers{{{of},state="{state}"}}'] = "1x90"
        series[f'moescope_tokens_total{{{of},dp_rank="0"}}'] = "0+600x90" if lives else "0+60x90"
        series[f'moescope_conflicting_lives{{{of},dp_rank="0"}}'] = f"{lives}x90"
        series[f'moescope_snapshot_age_seconds{{{of},dp_rank="0"}}'] = age
    expected = {
        "Replicas": {"{}": 2},
        "Least share of the tokens": {"{}": 1},
        "Tokens per second by replica": {
            f'{{pool="p",server="{server}",model="m"}}': value
            for server, value in (("a", 1), ("b", 1), ("several", 10))
        },
        "Share of the tokens": {f'{{pool="p",server="{server}",model="m"}}': 1 for server in "ab"},
    }
    expect = {
        f"round({found[title][0].replace('$__rate_interval', '5m')}, 0.01)": samples
        for title, samples in expected.items()
    }
    check(tmp_path, [{"series": series, "at": "60m", "expect": expect}])
