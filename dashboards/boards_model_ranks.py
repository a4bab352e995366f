"""Rows of the board Model about ranks: whose tokens, which phase, where the slots go, who waits for whom."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.boards_model_now import HOTTEST
from moescope.dashboards.spec import CENTRED, MODEL, Panel, Query, Row, least_even, most, rate
from moescope.service.measures.balance import GAUGES

_RANKS: Final = f'{MODEL},dp_rank=~"$rank"'
_REJECTED: Final = f'{_RANKS},outcome="rejected"'
_IN_VAIN: Final = (
    f"{rate('moescope_draft_tokens_total', _REJECTED, 'dp_rank')} / "
    f"({rate('moescope_tokens_total', _RANKS, 'dp_rank')} > 0)"
)
_PHASE: Final = "DP {{dp_rank}} {{phase}}"


def _cost(of: str, by: str) -> str:
    """Straggler cost from the sums over joined steps; no series while idle.

    Args:
        of: part of the metrics' names: empty for the deployment, ``layer_`` for layers.
        by: labels to sum by.
    """
    mean, top = (rate(f"moescope_{of}straggler_{part}_slots_total", MODEL, by) for part in ("mean", "max"))
    return f"1 - {mean} / ({top} > 0)"


_COST: Final = _cost("", "server")
_LAYER_COST: Final = _cost("layer_", "layer")
DP_RANKS: Final = Row(
    "DP ranks: whose tokens",
    (
        Panel(
            "timeseries",
            "Tokens per second by DP rank",
            "Tokens that each DP rank computed for requests.",
            (
                Query(
                    rate("moescope_tokens_total", _RANKS, "dp_rank"),
                    "DP {{dp_rank}}",
                ),
            ),
        ),
        Panel(
            "timeseries",
            "Steps per second by DP rank",
            "Steps with tokens, and dummy steps that are run because another DP rank has work.",
            (
                Query(
                    rate("moescope_steps_total", _RANKS, "dp_rank"),
                    "DP {{dp_rank}}",
                ),
                Query(
                    rate("moescope_idle_steps_total", _RANKS, "dp_rank"),
                    "DP {{dp_rank}} dummy",
                ),
            ),
        ),
    ),
)

PHASES: Final = Row(
    "Prefill and decode",
    (
        Panel(
            "timeseries",
            "Tokens per second by phase",
            "Tokens of prompts (prefill) and of what follows them (decode), of each DP rank.",
            (Query(rate("moescope_phase_tokens_total", _RANKS, "dp_rank, phase"), _PHASE),),
        ),
        Panel(
            "timeseries",
            "Steps per second by phase",
            "Steps of each DP rank with tokens of one phase only, or of both (mixed).",
            (Query(rate("moescope_phase_steps_total", _RANKS, "dp_rank, phase"), _PHASE),),
        ),
        Panel(
            "timeseries",
            "Draft tokens per second by outcome",
            "Draft tokens of speculative decoding, of each DP rank: those that are in answers, and those "
            "that were computed in vain. Nothing where no tokens are drafted.",
            (
                Query(
                    rate("moescope_draft_tokens_total", _RANKS, "dp_rank, outcome"),
                    "DP {{dp_rank}} {{outcome}}",
                ),
            ),
        ),
        Panel(
            "timeseries",
            "Tokens computed in vain",
            "Rejected draft tokens as a share of all tokens of the DP rank. They load experts like "
            "any other.",
            (Query(_IN_VAIN, "DP {{dp_rank}}"),),
            "percentunit",
        ),
    ),
)

STRAGGLERS: Final = Row(
    "Stragglers, step by step",
    (
        Panel(
            "timeseries",
            "Straggler cost",
            "Share of MoE work time that an average EP rank waits for the busiest one: from single "
            "steps, and from sums over the window. In the sums, hot ranks that change average out.",
            (
                Query(_COST, "from steps"),
                Query(f"1 - 1 / {most('moescope_ep_imbalance_ratio', MODEL, 'server')}", "from sums"),
            ),
            "percentunit",
        ),
        Panel(
            "timeseries",
            "Which EP rank is the hottest",
            "Share of (layer, step) pairs in which each EP rank had the most slots.",
            (Query(HOTTEST, "EP {{ep_rank}}"),),
            "percentunit",
        ),
        Panel(
            "timeseries",
            "Steps joined per second",
            "Steps whose loads of all ranks are known, and steps that were given up.",
            (
                Query(rate("moescope_straggler_joined_steps_total", MODEL, "server"), "joined"),
                Query(rate("moescope_straggler_incomplete_steps_total", MODEL, "server"), "incomplete"),
            ),
        ),
        Panel(
            "timeseries",
            "Straggler cost by layer",
            "Share of the layer's work time that an average EP rank waits for the busiest one, from "
            "single steps.",
            (Query(_LAYER_COST, "layer {{layer}}"),),
            "percentunit",
        ),
    ),
)

EP_RANKS: Final = Row(
    "EP ranks: where the slots go",
    (
        Panel(
            "timeseries",
            "Slots per second by EP rank",
            "Slots (token, chosen expert) that went to experts on each EP rank, over all layers.",
            (Query(rate("moescope_ep_rank_slots_total", MODEL, "ep_rank"), "EP {{ep_rank}}"),),
        ),
        Panel(
            "timeseries",
            "Imbalance over time",
            "Max / mean: of slots over EP ranks (ratio of sums over layers), of slots in the worst "
            "layer, and of tokens over DP ranks.",
            (
                Query(most("moescope_ep_imbalance_ratio", MODEL, "server"), "EP ranks"),
                Query(most("moescope_ep_worst_layer_imbalance_ratio", MODEL, "server"), "worst layer"),
                Query(most("moescope_dp_imbalance_ratio", MODEL, "server"), "DP ranks"),
            ),
        ),
        Panel(
            "matrix",
            "Layer x EP rank",
            "Slots of each EP rank in each layer, as a multiple of the layer's fair share: 1 is yellow, more "
            "is red, less is blue. Where there are over 2,000 cells, the least even layers.",
            (Query(least_even("moescope_layer_ep_rank_slots_total", MODEL, "layer", "ep_rank")),),
            width=24,
            height=14,
            scale=CENTRED,
        ),
        Panel(
            "heatmap",
            "Imbalance ratio by layer",
            "Max / mean over EP ranks of each layer, over time: 1 (yellow) is best, red is 2 or more.",
            (Query(most(GAUGES["imbalance_ratio"].name, MODEL, "layer"), "{{layer}}"),),
            width=24,
            height=10,
            scale=CENTRED,
        ),
    ),
)
