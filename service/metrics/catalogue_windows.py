"""The catalogue of what was true over a window: gauges of balance, of replicas of a pool, and of drift."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from moescope.service.measures.balance import GAUGES
from moescope.service.metrics.family import BASELINE, DEPLOYMENT, LAYER, Family
from moescope.service.settings import MetricsLevel


def _measure_families() -> Iterator[Family]:
    """The measures of each layer that are gauges, and the limits of those that have one."""
    for gauge in GAUGES.values():
        for item in (gauge, gauge.limit):
            if item is not None:
                unit = item.name.rpartition("_")[2]
                yield Family(item.name, "gauge", unit, item.help, LAYER, MetricsLevel.LAYER_RANK)


WINDOWS: Final = (
    # Balance over the last window
    Family("moescope_window_seconds", "gauge", "seconds", "Length of the window of the balance gauges."),
    Family(
        "moescope_ep_imbalance_ratio",
        "gauge",
        "ratio",
        "Sum over layers of the busiest EP rank's slots / sum over layers of the mean; 1 is best.",
        DEPLOYMENT,
    ),
    Family(
        "moescope_straggler_cost_ratio",
        "gauge",
        "ratio",
        "Share of MoE work time that EP ranks wait for the busiest, from joined steps; 0 is best.",
        DEPLOYMENT,
    ),
    Family(
        "moescope_ep_worst_layer_imbalance_ratio",
        "gauge",
        "ratio",
        "Largest max / mean of slots over EP ranks among the layers; 1 is best.",
        DEPLOYMENT,
    ),
    Family(
        "moescope_dp_imbalance_ratio",
        "gauge",
        "ratio",
        "Max / mean of tokens over DP ranks; 1 is best.",
        DEPLOYMENT,
    ),
    *_measure_families(),
    # Replicas of a pool over the last window: nothing without a sibling
    Family(
        "moescope_replica_divergence_bits",
        "gauge",
        "bits",
        "Median over layers of the Jensen-Shannon divergence of experts' shares from those of the other "
        "deployments of the pool with its role; 0 is alike.",
        DEPLOYMENT,
    ),
    Family(
        "moescope_replica_sampling_noise_bits",
        "gauge",
        "bits",
        "Median over layers of the divergence from its siblings that sampling alone would show.",
        DEPLOYMENT,
    ),
    # Drift of the last five minutes from the hour before, and from each pinned baseline
    Family(
        "moescope_worst_layer_drift_bits",
        "gauge",
        "bits",
        "Largest Jensen-Shannon divergence of experts' shares from the baseline's among layers; 0 is alike.",
        BASELINE,
    ),
    Family(
        "moescope_median_layer_drift_bits",
        "gauge",
        "bits",
        "Median over layers of the Jensen-Shannon divergence of experts' shares from the baseline's.",
        BASELINE,
    ),
    Family(
        "moescope_drift_sampling_noise_bits",
        "gauge",
        "bits",
        "Median over layers of the divergence that sampling alone would show.",
        BASELINE,
    ),
    Family(
        "moescope_new_dead_experts",
        "gauge",
        "experts",
        "Experts of all layers that got nothing, though at the baseline's share they would have.",
        BASELINE,
    ),
    Family(
        "moescope_new_hot_experts",
        "gauge",
        "experts",
        "Experts of all layers with 3 times a fair share, and 1.5 times their share in the baseline.",
        BASELINE,
    ),
    Family(
        "moescope_layer_drift_bits",
        "gauge",
        "bits",
        "Jensen-Shannon divergence of experts' shares from the baseline's; from 0, alike, to 1.",
        (*LAYER, "baseline", "phase"),
        MetricsLevel.LAYER_RANK,
    ),
    Family(
        "moescope_layer_new_dead_experts",
        "gauge",
        "experts",
        "Experts that got nothing, though at the baseline's share they would have.",
        (*LAYER, "baseline", "phase"),
        MetricsLevel.LAYER_RANK,
    ),
    Family(
        "moescope_layer_new_hot_experts",
        "gauge",
        "experts",
        "Experts with 3 times a fair share, and 1.5 times their share in the baseline.",
        (*LAYER, "baseline", "phase"),
        MetricsLevel.LAYER_RANK,
    ),
)
"""Balance, replicas and drift."""
