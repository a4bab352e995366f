"""The first row of the board Model: the numbers of the verdict, who causes the waiting, and what to do."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.measures import RATIO_THRESHOLDS
from moescope.dashboards.spec import (
    CENTRED,
    MODEL,
    NAME,
    Panel,
    Query,
    Row,
    most,
    of_fair,
    or_none,
    rate,
    stat,
)
from moescope.service.measures.balance import GAUGES

_HOT: Final = "moescope_straggler_hottest_layer_steps_total"
_SLOTS: Final = "moescope_layer_ep_rank_slots_total"
HOTTEST: Final = (
    f"{rate(_HOT, MODEL, 'ep_rank')} / on () group_left () (sum({rate(_HOT, MODEL, 'ep_rank')}) > 0)"
)
"""The share of (layer, step) pairs in which each EP rank was the busiest."""
_LOAD: Final = rate(_SLOTS, MODEL, "layer, ep_rank")
_EXCESS: Final = (
    f"(({_LOAD} - on (layer) group_left () avg by (layer) ({_LOAD})) "
    f"and ({_LOAD} == on (layer) group_left () max by (layer) ({_LOAD})))"
)
"""What the busiest EP rank of each layer has above the layer's mean: all others wait for that."""
_BY_SUMS: Final = f"sum by (ep_rank) ({_EXCESS}) / on () group_left () (sum({_EXCESS}) > 0)"
_CAUSED: Final = rate("moescope_straggler_caused_slots_total", MODEL, "ep_rank")
_BY_STEPS: Final = f"{_CAUSED} / on () group_left () (sum({_CAUSED}) > 0)"
CAUSED: Final = f"{_BY_STEPS} or on () {_BY_SUMS}"
"""The share of the waiting that each EP rank causes: from single steps, else by the sums of an interval."""
COUNTED: Final = f"({_BY_STEPS}) * 0 + 1 or on () ({_BY_SUMS}) * 0"
"""Which of both it is: 1, or 0."""
_RATIO: Final = most("moescope_ep_imbalance_ratio", MODEL)
_STEPS: Final = most("moescope_straggler_cost_ratio", MODEL)
_MAX_VIO: Final = f"max({GAUGES['max_vio'].name}{{{MODEL}}})"
_WAITS: Final = ((0.2, "orange"), (0.5, "red"))
_ALERTS: Final = (
    'max by (alertname, severity, kind) (ALERTS{cluster=~"$cluster",server=~"$server",model=~"$model",'
    'alertname=~"Moescope.*",alertstate="firing"})'
)
"""They have no labels job and instance: an alert is about a deployment, whichever services count for it."""

_UNEVEN: Final = f"count({_RATIO} > 1.25)"
_ONE_RANK: Final = f"(max({HOTTEST}) > 0.5)"
_ONE_EXPERT: Final = f"({_MAX_VIO} > 4)"
_TO_DO: Final = (
    (
        f"{_UNEVEN} and on () {_ONE_RANK}",
        "One EP rank is the busiest in most layers and steps",
        "Rearrange experts: moescope advise says what EPLB saves",
    ),
    (
        f"{_UNEVEN} and on () {_ONE_EXPERT}",
        "One expert has over 5 times its fair share in some layer",
        "EPLB with redundant experts: moescope advise says how many",
    ),
    (
        f"{_UNEVEN} unless on () {_ONE_RANK} unless on () {_ONE_EXPERT}",
        "Another EP rank is hot from layer to layer",
        "Rearrange experts: moescope advise says what EPLB saves",
    ),
    (
        f"count({_STEPS} > 0.2) unless on () ({_UNEVEN})",
        "Ranks wait in single steps, and over minutes the load is even",
        "Larger or better mixed batches; EPLB doesn't mend it",
    ),
    (
        f"count({most('moescope_dp_imbalance_ratio', MODEL)} >= 1.5)",
        "Tokens are uneven over DP ranks",
        "Mend the router or load balancer before vLLM; EPLB doesn't mend it",
    ),
    (
        f'count(sum(moescope_producers{{{MODEL},state!="counting"}}) > 0)',
        "Workers don't count: the numbers are those of a part",
        "See board Capture health and moescope ranks",
    ),
)
"""Condition, what it is, what to do: those of docs/verdict.md, as far as metrics have their numbers."""


def _told(condition: str, what: str, action: str) -> str:
    inner = f'label_replace({condition}, "what", "{what}", "", "")'
    return f'label_replace({inner}, "do", "{action}", "", "")'


_NOTHING: Final = _told("vector(0)", "Nothing of this", "Nothing")
_ADVICE: Final = " or ".join(_told(*each) for each in _TO_DO) + f" or on () {_NOTHING}"

NOW: Final = Row(
    "Now: is one rank or one expert the bottleneck, and what to do?",
    (
        stat(
            "Waiting",
            "1 - 1 / imbalance ratio: the share of the busiest ranks' work that an average rank spends "
            "waiting.",
            Query(f"1 - 1 / {_RATIO}", NAME),
            "percentunit",
            _WAITS,
        ),
        stat(
            "Waiting, from single steps",
            "The same from single steps. Above the sums' share: hot ranks change from step to step.",
            Query(_STEPS, NAME),
            "percentunit",
            _WAITS,
        ),
        stat(
            "EP imbalance ratio",
            "Sum over layers of max / sum of mean of slots over EP ranks; 1 is best.",
            Query(_RATIO, NAME),
            thresholds=RATIO_THRESHOLDS,
        ),
        stat(
            "Worst layer's imbalance ratio",
            "Largest max / mean of slots over EP ranks among the layers; 1 is best.",
            Query(most("moescope_ep_worst_layer_imbalance_ratio", MODEL), NAME),
            thresholds=RATIO_THRESHOLDS,
        ),
        stat(
            "Busiest EP rank",
            "The EP rank that was the busiest most often, and the share of (layer, step) pairs in which it "
            "was.",
            Query(f"topk(1, {HOTTEST})", "EP {{ep_rank}}"),
            "percentunit",
            ((0.5, "orange"),),
        ),
        stat(
            "Hottest expert",
            "The largest multiple of a fair share that an expert of any layer has.",
            Query(f"1 + {_MAX_VIO}", "times fair share"),
            thresholds=((3, "orange"), (5, "red")),
        ),
        stat(
            "DP imbalance ratio",
            "Max / mean of tokens over DP ranks; 1 is best. A matter of the load balancer.",
            Query(most("moescope_dp_imbalance_ratio", MODEL), NAME),
            thresholds=RATIO_THRESHOLDS,
        ),
        stat(
            "Workers that don't count",
            "Workers that are silent, or whose capture is off: see board Capture health.",
            Query(f'sum(moescope_producers{{{MODEL},state!="counting"}})', "workers"),
            thresholds=((1, "red"),),
        ),
        Panel(
            "table",
            "What to do",
            "What these numbers say, and what to do about it. moescope verdict says more, with how much "
            "data it rests on.",
            (Query(_ADVICE, "deployments"),),
            height=7,
        ),
        Panel(
            "table",
            "Alerts that fire",
            "Of this deployment, by the rules of dashboards/rules. The runbook has a section for each.",
            (Query(or_none(_ALERTS, "alertname"), "fires"),),
            height=7,
        ),
        Panel(
            "table",
            "Who causes the waiting",
            "Of each EP rank: its slots as a multiple of a fair share; the share of (layer, step) pairs in "
            "which it was the busiest; and the share of the waiting that it causes, which is what the "
            "busiest rank of each layer and step has above the mean. The last column is 1 where that is "
            "counted exactly, from single steps. It is 0 where their loads are not known: then it is by the "
            "sums of the panel's interval, which hide hot ranks that change from step to step.",
            (
                Query(
                    f"{rate(_SLOTS, MODEL, 'ep_rank')} "
                    f"/ on () group_left () (avg({rate(_SLOTS, MODEL, 'ep_rank')}) > 0)",
                    "times fair share",
                ),
                Query(HOTTEST, "busiest"),
                Query(CAUSED, "waiting caused"),
                Query(COUNTED, "from single steps"),
            ),
            width=24,
            height=10,
            sort="waiting caused",
        ),
        Panel(
            "heatmap",
            "Slots by EP rank, times fair share",
            "Each EP rank over time: 1 (yellow) is a fair share, red is more, blue is less.",
            (Query(of_fair("moescope_ep_rank_slots_total", MODEL, "server", "ep_rank"), "{{ep_rank}}"),),
            width=24,
            height=10,
            scale=CENTRED,
        ),
    ),
)
