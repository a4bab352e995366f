"""Alerts about balance: the symptoms, that ranks wait, and their causes in experts and placement."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.alerts.spec import (
    DEPLOYMENT,
    NAME,
    NUMBER,
    RATIO,
    SHARE,
    VALUE,
    VALUE_RATIO,
    VALUE_SHARE,
    Alert,
    Group,
    ask,
)

_ON: Final = f"on ({DEPLOYMENT})"
_BOARD: Final = "moescope-model"
_IMBALANCE: Final = "model:moescope_ep_imbalance:ratio_rate5m"
UNEVEN: Final = 1.3
"""Imbalance ratio from which on the alert fires. The verdict warns from 1.25 on, before anybody is paged, and
an uneven replica of an even pool (`MoescopeReplicaImbalance`) is told by itself."""
_UNEVEN: Final = f"{_IMBALANCE} > {UNEVEN}"
_ENOUGH_SLOTS: Final = "model:moescope_slots_of_layer_and_rank:mean_rate5m > 4 / 3"
"""400 slots of an EP rank and layer in five minutes: with fewer, chance makes one of many stand out."""
_IN_LAYER: Final = 'layer="%s"'

WHO_IS_BUSIEST: Final = ask(
    "topk(1, ep_rank:moescope_hottest_steps:ratio_rate5m{%s})",
    "{{ if gt .Value 0.5 }}One rank is hot in most layers: EP rank {{ .Labels.ep_rank }}"
    "{{ else }}Hot ranks differ by layer or step: the most frequent is EP rank {{ .Labels.ep_rank }}"
    f"{{{{ end }}}}, the busiest in {SHARE} of steps x layers. ",
)
WORST_LAYER: Final = ask(
    "topk(1, layer:moescope_ep_imbalance:ratio_rate5m{%s})",
    f"{{{{ $layer := .Labels.layer }}}}Worst is layer {{{{ $layer }}}} ({RATIO}"
    + ask(
        "topk(1, layer_ep_rank:moescope_slots:rate5m{%s," + _IN_LAYER + "})",
        ", EP rank {{ .Labels.ep_rank }}",
        "$layer",
    )
    + ask(
        "count(layer:moescope_ep_imbalance:ratio_rate5m{%s}" + f" > {UNEVEN})",
        f"; layers above {UNEVEN}: {NUMBER}",
    )
    + "). ",
)
HOT_EXPERT: Final = ask(
    "topk(1, 1 + layer:moescope_hot_expert:max_vio{%s})",
    "{{ $layer := .Labels.layer }}Layers with a hot expert: "
    + ask("count(layer:moescope_hot_expert:max_vio{%s})", NUMBER)
    + "; worst is layer {{ $layer }}"
    + ask(
        "topk(1, sum by (expert) (rate(moescope_layer_expert_slots_total{%s," + _IN_LAYER + "}[5m])))",
        ", expert {{ .Labels.expert }}",
        "$layer",
    )
    + f", with {RATIO} times its fair share. ",
)

BALANCE: Final = Group(
    "moescope-balance-alerts",
    "Symptoms: ranks wait, or work is dealt unevenly.",
    (
        Alert(
            "MoescopeRankImbalance",
            DEPLOYMENT,
            f"{_UNEVEN}\nand {_ON} {_ENOUGH_SLOTS}",
            "critical",
            "symptom",
            15,
            f"Expert load of {NAME} is uneven over EP ranks",
            f"The busiest EP ranks have {VALUE_RATIO} times a fair share of the slots, summed over "
            "layers: an average "
            "rank spends "
            + ask("model:moescope_straggler_share:ratio_rate5m{%s}", SHARE)
            + f" of that time waiting. {WHO_IS_BUSIEST}{WORST_LAYER}{HOT_EXPERT}"
            "`moescope advise` says what EPLB would save.",
            _BOARD,
            keep_minutes=15,  # longer than MoescopeHotExpert, which it inhibits
        ),
        Alert(
            "MoescopeStragglerCost",
            DEPLOYMENT,
            # While the sums are uneven too, MoescopeRankImbalance says so.
            f"model:moescope_straggler_cost:ratio_rate5m > 0.3\nunless {_ON} {_UNEVEN}",
            "warning",
            "symptom",
            15,
            f"Ranks of {NAME} wait for the hottest EP rank of single steps",
            f"{VALUE_SHARE} of the hottest ranks' work in MoE layers is what an average rank waits for, "
            "from single "
            "steps. Over minutes the load is even: it is a matter of batches, not of placement. "
            f"{WHO_IS_BUSIEST}"
            "Larger batches lower it.",
            _BOARD,
            keep_minutes=15,  # longer than MoescopeHotExpert, which it inhibits
        ),
        Alert(
            "MoescopeDpImbalance",
            DEPLOYMENT,
            # With fewer tokens a few long requests make the difference.
            "model:moescope_dp_imbalance:ratio_rate5m > 1.5\n"
            f"and {_ON} avg by ({DEPLOYMENT}) (dp_rank:moescope_tokens_taking_part:rate5m) > 100",
            "critical",
            "symptom",
            15,
            f"Tokens of {NAME} are uneven over DP ranks",
            ask(
                "topk(1, dp_rank:moescope_tokens_taking_part:rate5m{%s})",
                f"DP rank {{{{ .Labels.dp_rank }}}} computes {NUMBER} tokens/s, ",
            )
            + f"{VALUE_RATIO} times a fair share"
            + ask(
                "bottomk(1, dp_rank:moescope_tokens_taking_part:rate5m{%s})",
                f", DP rank {{{{ .Labels.dp_rank }}}} the least ({NUMBER} tokens/s)",
            )
            + ". That is a matter of the router or load balancer before vLLM, not of EPLB.",
            _BOARD,
            keep_minutes=5,
        ),
    ),
)

CAUSES: Final = Group(
    "moescope-cause-alerts",
    "Causes. They inform, and say nothing while a symptom of theirs is notified (deploy/alertmanager).",
    (
        Alert(
            "MoescopeHotExpert",
            DEPLOYMENT,
            f"max by ({DEPLOYMENT}) (layer:moescope_hot_expert:max_vio)",
            "info",
            "cause",
            15,
            f"One expert is hot in layers of {NAME}",
            f"{HOT_EXPERT}Its rank is a bottleneck unless the expert is replicated.",
            _BOARD,
            # Longer than the drift alerts, which it inhibits: their gauges are of five minutes.
            keep_minutes=10,
        ),
        Alert(
            "MoescopeOneRankHottest",
            DEPLOYMENT,
            # Only of a rank that is there, and not before half an hour was seen.
            f"max by ({DEPLOYMENT}) (\n"
            "  avg_over_time(ep_rank:moescope_hottest:bool_rate5m[1h])\n"
            "  and ep_rank:moescope_hottest:bool_rate5m\n"
            ") > 0.8\n"
            f"and {_ON} {_IMBALANCE} > 1.1\n"
            f"and {_ON} {_IMBALANCE} offset 30m",
            "info",
            "cause",
            15,
            f"One EP rank of {NAME} is the hottest most of the time",
            ask(
                "topk(1, avg_over_time(ep_rank:moescope_hottest:bool_rate5m{%s}[1h]) "
                "and ep_rank:moescope_hottest:bool_rate5m)",
                "EP rank {{ .Labels.ep_rank }} ",
            )
            + f"had the most slots in {VALUE_SHARE} of the last "
            + ask(
                "time() - min(min_over_time(timestamp(" + _IMBALANCE + "{%s})[1h:1m]))",
                "{{ .Value | humanizeDuration }}",
            )
            + ". A fixed hot rank points at placement, not at chance.",
            _BOARD,
        ),
        Alert(
            "MoescopeNewDeadExperts",
            DEPLOYMENT,
            f"sum by ({DEPLOYMENT}) (layer:moescope_new_dead_experts:count)",
            "info",
            "cause",
            30,
            f"Experts of {NAME} get no tokens any more",
            f"{VALUE} experts more than at any time of the day before get no token"
            + ask(
                "topk(1, layer:moescope_new_dead_experts:count{%s})",
                f", most of them in layer {{{{ .Labels.layer }}}} ({NUMBER})",
            )
            + ".",
            _BOARD,
        ),
    ),
)
