"""The board Model: one deployment, its DP ranks side by side."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.measures import RATIO_STEPS
from moescope.dashboards.spec import (
    EXPERTS,
    MODEL,
    NAME,
    NEEDS_EXPERTS,
    ONE_MODEL_VARIABLES,
    RANK_VARIABLE,
    Board,
    Panel,
    Query,
    Row,
    most,
    of_fair,
    rate,
    stat,
)
from moescope.service.measures.balance import GAUGES

_TO_LAYER: Final = "/d/moescope-layer?var-layer=${__data.fields.layer}&${__all_variables}&${__url_time_range}"
_RANKS: Final = f'{MODEL},dp_rank=~"$rank"'

_IMBALANCE: Final = GAUGES["imbalance_ratio"]
_MAX_VIO: Final = GAUGES["max_vio"]
_ENTROPY: Final = GAUGES["normalised_entropy"]
_DEAD: Final = GAUGES["dead"]

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
_HOT: Final = "moescope_straggler_hottest_layer_steps_total"
_HOTTEST: Final = (
    f"{rate(_HOT, MODEL, 'server, ep_rank')} / on (server) group_left () ({rate(_HOT, MODEL, 'server')} > 0)"
)
_FAIR_STEPS: Final = ((3, "orange"), (5, "red"))
"""Of multiples of a fair share."""
_BASE: Final = "baseline, phase"
_BASE_NAME: Final = "{{baseline}}, {{phase}}"

MODEL_BOARD: Final = Board(
    "moescope-model",
    "moescope / Model",
    "One deployment: its DP ranks side by side, its EP ranks, its layers.",
    (*ONE_MODEL_VARIABLES, RANK_VARIABLE),
    (
        Row(
            "Balance now",
            (
                stat(
                    "EP imbalance ratio",
                    "Sum over layers of max / sum of mean of slots over EP ranks; 1 is best.",
                    Query(most("moescope_ep_imbalance_ratio", MODEL), NAME),
                    steps=RATIO_STEPS,
                ),
                stat(
                    "Straggler share",
                    "1 - 1 / imbalance ratio: the share of the busiest ranks' work that an average rank "
                    "spends waiting.",
                    Query(f"1 - 1 / {most('moescope_ep_imbalance_ratio', MODEL)}", NAME),
                    "percentunit",
                    steps=((0.2, "orange"), (0.5, "red")),
                ),
                stat(
                    "Worst layer's imbalance ratio",
                    "Largest max / mean of slots over EP ranks among the layers; 1 is best.",
                    Query(most("moescope_ep_worst_layer_imbalance_ratio", MODEL), NAME),
                    steps=RATIO_STEPS,
                ),
                stat(
                    "DP imbalance ratio",
                    "Max / mean of tokens over DP ranks; 1 is best.",
                    Query(most("moescope_dp_imbalance_ratio", MODEL), NAME),
                    steps=RATIO_STEPS,
                ),
            ),
        ),
        Row(
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
        ),
        Row(
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
            ),
        ),
        Row(
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
                    (Query(_HOTTEST, "EP {{ep_rank}}"),),
                    "percentunit",
                ),
                Panel(
                    "timeseries",
                    "Steps joined per second",
                    "Steps whose loads of all ranks are known, and steps that were given up.",
                    (
                        Query(rate("moescope_straggler_joined_steps_total", MODEL, "server"), "joined"),
                        Query(
                            rate("moescope_straggler_incomplete_steps_total", MODEL, "server"), "incomplete"
                        ),
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
        ),
        Row(
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
                        Query(
                            most("moescope_ep_worst_layer_imbalance_ratio", MODEL, "server"), "worst layer"
                        ),
                        Query(most("moescope_dp_imbalance_ratio", MODEL, "server"), "DP ranks"),
                    ),
                ),
                Panel(
                    "matrix",
                    "Layer x EP rank",
                    "Slots of each EP rank in each layer, as a multiple of the layer's fair share.",
                    (Query(of_fair("moescope_layer_ep_rank_slots_total", MODEL, "layer", "ep_rank")),),
                    width=24,
                    height=14,
                    steps=RATIO_STEPS,
                ),
                Panel(
                    "heatmap",
                    "Imbalance ratio by layer",
                    "Max / mean over EP ranks of each layer, over time.",
                    (Query(most(_IMBALANCE.name, MODEL, "layer"), "{{layer}}"),),
                    width=24,
                    height=10,
                ),
            ),
        ),
        Row(
            "Experts",
            (
                Panel(
                    "timeseries",
                    "Worst MaxVio and lowest normalised entropy",
                    f"Of the worst layer. {_MAX_VIO.help} {_ENTROPY.help}",
                    (
                        Query(f"max({_MAX_VIO.name}{{{MODEL}}})", _MAX_VIO.title),
                        Query(f"min({_ENTROPY.name}{{{MODEL}}})", _ENTROPY.title),
                    ),
                    width=8,
                    height=12,
                ),
                Panel(
                    "timeseries",
                    _DEAD.title,
                    "Experts that no token chose in the service's window, over all layers.",
                    (Query(f"sum({most(_DEAD.name, MODEL, 'server, model, layer')})", "dead"),),
                    width=8,
                    height=12,
                ),
                Panel(
                    "table",
                    "Hottest experts",
                    "The twenty experts furthest above their layer's fair share. Click a value to open "
                    "the layer." + NEEDS_EXPERTS,
                    (Query(f"topk(20, {of_fair(EXPERTS, MODEL, 'layer', 'expert')})", "times fair share"),),
                    width=8,
                    height=12,
                    steps=_FAIR_STEPS,
                    link=_TO_LAYER,
                ),
                Panel(
                    "matrix",
                    "Layer x expert",
                    "Slots of each expert in each layer, as a multiple of the layer's fair share."
                    + NEEDS_EXPERTS,
                    (Query(of_fair(EXPERTS, MODEL, "layer", "expert")),),
                    width=24,
                    height=14,
                    steps=_FAIR_STEPS,
                    axes=("layer", "expert"),
                ),
            ),
        ),
        Row(
            "Drift",
            (
                Panel(
                    "timeseries",
                    "Drift of the median layer",
                    "Jensen-Shannon divergence of the experts' shares, bits, from the hour before and from "
                    "each pinned baseline, beside what sampling alone would show.",
                    (
                        Query(most("moescope_median_layer_drift_bits", MODEL, _BASE), _BASE_NAME),
                        Query(
                            most("moescope_drift_sampling_noise_bits", MODEL, _BASE),
                            f"sampling: {_BASE_NAME}",
                        ),
                    ),
                ),
                Panel(
                    "timeseries",
                    "New dead and new hot experts",
                    "Experts of all layers that lost every slot, or grew to 3 times a fair share, since the "
                    "baseline. /v1/drift names them.",
                    (
                        Query(most("moescope_new_dead_experts", MODEL, _BASE), f"dead: {_BASE_NAME}"),
                        Query(most("moescope_new_hot_experts", MODEL, _BASE), f"hot: {_BASE_NAME}"),
                    ),
                ),
            ),
        ),
    ),
    MODEL,
)
