"""The board Layer: one layer of one deployment, its ranks and its experts."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.spec import (
    EXPERTS,
    LAYER,
    LAYER_VARIABLE,
    MODEL,
    NAME,
    NEEDS_EXPERTS,
    ONE_MODEL_VARIABLES,
    RATIO_STEPS,
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
            (
                Panel(
                    "stat",
                    "EP imbalance ratio",
                    "Max / mean of slots over EP ranks; 1 is best.",
                    (Query(most("moescope_layer_ep_imbalance_ratio", LAYER), NAME),),
                    width=6,
                    height=4,
                    steps=RATIO_STEPS,
                ),
                Panel(
                    "stat",
                    "MaxVio",
                    "(max - mean) / mean of slots over experts; 0 is best.",
                    (Query(most("moescope_layer_max_vio_ratio", LAYER), NAME),),
                    width=6,
                    height=4,
                    steps=((2, "orange"), (4, "red")),
                ),
                Panel(
                    "stat",
                    "Normalised entropy",
                    "exp(H) / N of slots over experts, the share of experts that are in effect used; "
                    "1 is best.",
                    (Query(most("moescope_layer_normalised_entropy_ratio", LAYER), NAME),),
                    "percentunit",
                    width=6,
                    height=4,
                ),
                Panel(
                    "stat",
                    "Dead experts",
                    "Experts that no token chose in the service's window.",
                    (Query(most("moescope_layer_dead_experts", LAYER), NAME),),
                    width=6,
                    height=4,
                    steps=((1, "orange"),),
                ),
            ),
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
                    "Slots per second by expert",
                    "All experts over time." + NEEDS_EXPERTS,
                    (Query(rate(EXPERTS, LAYER, "expert"), "{{expert}}"),),
                    width=24,
                    height=12,
                ),
                Panel(
                    "timeseries",
                    "Hottest experts",
                    "The ten busiest experts, as multiples of a fair share." + NEEDS_EXPERTS,
                    (Query(f"topk(10, {of_fair(EXPERTS, LAYER, 'layer', 'expert')})", "expert {{expert}}"),),
                    width=8,
                ),
                Panel(
                    "timeseries",
                    "Measures over time",
                    "Imbalance ratio over EP ranks (1 is best) and MaxVio over experts (0 is best).",
                    (
                        Query(most("moescope_layer_ep_imbalance_ratio", LAYER, "server"), "imbalance ratio"),
                        Query(most("moescope_layer_max_vio_ratio", LAYER, "server"), "MaxVio"),
                    ),
                    width=8,
                ),
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
