"""The board Layer: one layer of one deployment, its ranks and its experts."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.measures import layer_ratios, layer_stats
from moescope.dashboards.spec import (
    CENTRED,
    EXPERTS,
    LAYER,
    LAYER_VARIABLE,
    MODEL,
    NEEDS_EXPERTS,
    ONE_MODEL_VARIABLES,
    Board,
    Panel,
    Query,
    Row,
    most,
    of_fair,
    rate,
)

LAYER_BOARD: Final = Board(
    "moescope-layer",
    "moescope / Layer",
    "One MoE layer: its ranks and its experts.",
    (*ONE_MODEL_VARIABLES, LAYER_VARIABLE),
    (
        Row(
            "Balance of layer $layer",
            layer_stats(),
        ),
        Row(
            "Ranks",
            (
                Panel(
                    "timeseries",
                    "Slots per second by EP rank",
                    "Where this layer's slots went.",
                    (Query(rate("moescope_layer_ep_rank_slots_total", LAYER, "ep_rank"), "EP {{ep_rank}}"),),
                ),
                Panel(
                    "timeseries",
                    "Slots per second by DP rank",
                    "Whose tokens this layer's slots were.",
                    (Query(rate("moescope_layer_dp_rank_slots_total", LAYER, "dp_rank"), "DP {{dp_rank}}"),),
                ),
            ),
        ),
        Row(
            "Experts",
            (
                Panel(
                    "heatmap",
                    "Slots by expert, times fair share",
                    "All experts over time: 1 (yellow) is a fair share, red is twice or more."
                    + NEEDS_EXPERTS,
                    (Query(of_fair(EXPERTS, LAYER, "layer", "expert"), "{{expert}}"),),
                    width=24,
                    height=12,
                    scale=CENTRED,
                ),
                Panel(
                    "timeseries",
                    "Hottest experts",
                    "The ten busiest experts, as multiples of a fair share." + NEEDS_EXPERTS,
                    (Query(f"topk(10, {of_fair(EXPERTS, LAYER, 'layer', 'expert')})", "expert {{expert}}"),),
                    width=8,
                ),
                layer_ratios(),
                Panel(
                    "timeseries",
                    "Drift",
                    "Jensen-Shannon divergence of the experts' shares, bits, from the hour before and from "
                    "each pinned baseline.",
                    (
                        Query(
                            most("moescope_layer_drift_bits", LAYER, "baseline, phase"),
                            "{{baseline}}, {{phase}}",
                        ),
                    ),
                    width=8,
                ),
            ),
        ),
    ),
    MODEL,
)
