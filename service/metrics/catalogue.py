"""The catalogue of metrics: every family that ``/metrics`` can show, as data.

Per-step quantities are counters, so that a rate never loses the steps between two scrapes. Gauges are what
was true over the last window (setting ``window_s``); without a sample they have no series at all. The gauges
of measures of a layer are made from the measures' declarations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from moescope.service.measures.balance import GAUGES
from moescope.service.metrics.family import BASELINE, DEPLOYMENT, DP, EP, LAYER, STAGE, WORKER, Family
from moescope.service.settings import MetricsLevel


def _measure_families() -> Iterator[Family]:
    """The measures of each layer that are gauges, and the limits of those that have one."""
    for gauge in GAUGES.values():
        for item in (gauge, gauge.limit):
            if item is not None:
                unit = item.name.rpartition("_")[2]
                yield Family(item.name, "gauge", unit, item.help, LAYER, MetricsLevel.LAYER_RANK)


_FAMILIES: Final = (
    # What was counted
    Family(
        "moescope_tokens_total",
        "counter",
        "tokens",
        "Tokens computed for requests: no padding, no dummy steps. Nothing where capture is disabled. "
        "Counted since the service knows the worker, as all counters of deployments are.",
        DP,
    ),
    Family(
        "moescope_steps_total",
        "counter",
        "steps",
        "Steps in which the DP rank computed at least one token.",
        DP,
    ),
    Family(
        "moescope_idle_steps_total",
        "counter",
        "steps",
        "Dummy steps, run because another DP rank had work.",
        DP,
    ),
    Family(
        "moescope_phase_tokens_total",
        "counter",
        "tokens",
        "Tokens computed, by phase: prefill, decode, or unknown where the capturer did not tell it.",
        (*DP, "phase"),
    ),
    Family(
        "moescope_phase_steps_total",
        "counter",
        "steps",
        "Steps by the phases of the DP rank's tokens: prefill, decode, mixed, or unknown.",
        (*DP, "phase"),
    ),
    Family(
        "moescope_draft_tokens_total",
        "counter",
        "tokens",
        "Draft tokens of speculative decoding that were computed, by outcome: accepted, or rejected, which "
        "are computed in vain. Nothing where no tokens are drafted.",
        (*DP, "outcome"),
    ),
    Family(
        "moescope_ep_rank_slots_total",
        "counter",
        "slots",
        "Slots (token, chosen expert) that went to experts on the EP rank, over all layers.",
        EP,
    ),
    Family(
        "moescope_layer_ep_rank_slots_total",
        "counter",
        "slots",
        "Slots that went to experts on the EP rank; a replicated expert's are split evenly over its copies. "
        "Nothing where some DP rank's tokens are not all seen in the layer.",
        (*LAYER, "ep_rank"),
        MetricsLevel.LAYER_RANK,
    ),
    Family(
        "moescope_layer_unplaced_slots_total",
        "counter",
        "slots",
        "Slots counted while it was not known where the experts are.",
        LAYER,
        MetricsLevel.LAYER_RANK,
    ),
    Family(
        "moescope_layer_dp_rank_slots_total",
        "counter",
        "slots",
        "Slots of the DP rank's tokens in the layer, where all of them are seen.",
        (*LAYER, "dp_rank"),
        MetricsLevel.LAYER_RANK,
    ),
    Family(
        "moescope_layer_expert_slots_total",
        "counter",
        "slots",
        "Slots that chose the logical expert.",
        (*LAYER, "expert"),
        MetricsLevel.LAYER_EXPERT,
    ),
    # Straggler cost: 1 - rate of mean / rate of max; sums, so that several services add up
    Family(
        "moescope_straggler_max_slots_total",
        "counter",
        "slots",
        "Slots of the busiest EP rank, summed over joined steps and layers.",
        DEPLOYMENT,
    ),
    Family(
        "moescope_straggler_mean_slots_total",
        "counter",
        "slots",
        "Mean slots of the EP ranks, summed over joined steps and layers.",
        DEPLOYMENT,
    ),
    Family(
        "moescope_straggler_hottest_layer_steps_total",
        "counter",
        "steps",
        "(Layer, joined step) pairs in which the EP rank was the busiest; those that tie share it.",
        EP,
    ),
    Family(
        "moescope_straggler_joined_steps_total",
        "counter",
        "steps",
        "Steps of which the loads of all ranks of the pipeline stage are known.",
        STAGE,
    ),
    Family(
        "moescope_straggler_incomplete_steps_total",
        "counter",
        "steps",
        "Steps that were given up, as the loads of some rank did not come.",
        STAGE,
    ),
    Family(
        "moescope_straggler_pending_steps",
        "gauge",
        "steps",
        "Steps that wait for the loads of some rank.",
        STAGE,
    ),
    Family(
        "moescope_layer_straggler_max_slots_total",
        "counter",
        "slots",
        "Slots of the busiest EP rank in the layer, summed over joined steps.",
        LAYER,
        MetricsLevel.LAYER_RANK,
    ),
    Family(
        "moescope_layer_straggler_mean_slots_total",
        "counter",
        "slots",
        "Mean slots of the EP ranks in the layer, summed over joined steps.",
        LAYER,
        MetricsLevel.LAYER_RANK,
    ),
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
    # Health of capture
    Family("moescope_producers", "gauge", "", "vLLM workers that report, by state.", (*DEPLOYMENT, "state")),
    Family(
        "moescope_missing_dp_ranks",
        "gauge",
        "",
        "DP ranks that should exist and never reported.",
        DEPLOYMENT,
    ),
    Family(
        "moescope_conflicting_lives",
        "gauge",
        "",
        "Live processes that claim the DP rank, where several do; 0: no conflict.",
        DP,
    ),
    Family(
        "moescope_snapshot_age_seconds",
        "gauge",
        "seconds",
        "Time since the newest frame of the DP rank's longest silent producer.",
        DP,
    ),
    Family("moescope_covered_layers", "gauge", "layers", "MoE layers whose routing is counted.", DP),
    Family("moescope_uncovered_layers", "gauge", "layers", "MoE layers whose routing can't be seen.", DP),
    Family(
        "moescope_absent_layers",
        "gauge",
        "layers",
        "MoE layers that the model's config has and that were not found; 1 where it isn't known which.",
        DP,
    ),
    Family(
        "moescope_unseen_layers",
        "gauge",
        "layers",
        "MoE layers that are covered and never saw a token, although tokens were computed.",
        DP,
    ),
    Family(
        "moescope_conservation_mismatched_layers",
        "gauge",
        "layers",
        "MoE layers whose slots are not rows x top-k, or whose rows, added up over TP workers, are not the "
        "tokens computed, in all or in one phase.",
        DP,
    ),
    Family(
        "moescope_conservation_unknown_stages",
        "gauge",
        "stages",
        "Pipeline stages of which it isn't known whether rows add up to the tokens computed.",
        DP,
    ),
    Family(
        "moescope_placement_version",
        "gauge",
        "",
        "Version of the placement of experts; rises with each rearrangement.",
        DP,
    ),
    Family(
        "moescope_rearrangements_total",
        "counter",
        "",
        "Rearrangements of experts, as by EPLB: rises of the placement's version that the service saw.",
        DEPLOYMENT,
    ),
    Family(
        "moescope_producer_start_time_seconds",
        "gauge",
        "seconds",
        "When the DP rank's newest producer began to count, Unix time on the service's clock.",
        DP,
    ),
    Family(
        "moescope_producer_restarts_total",
        "counter",
        "",
        "Starts of the DP rank after the first: the most of any of its producers, which start together.",
        DP,
    ),
    Family(
        "moescope_producer_drops_total",
        "counter",
        "",
        "What producers lost or put off, by reason; never counts of tokens.",
        (*DP, "reason"),
    ),
    # Each worker's own, since its start: a sum over workers of which one restarts would look like a reset.
    Family("moescope_traces_captured_total", "counter", "", "Routing traces that were begun.", WORKER),
    Family("moescope_traces_delivered_total", "counter", "", "Routing traces that the service took.", WORKER),
    Family(
        "moescope_traces_dropped_total",
        "counter",
        "",
        "Routing traces that were lost, by reason; captured - delivered - dropped are in flight.",
        (*WORKER, "reason"),
    ),
    # Health of the service
    Family("moescope_frames_total", "counter", "", "Frames that came, by result.", ("result", "reason")),
    Family("moescope_ingest_bytes_total", "counter", "bytes", "Bodies of frames that came."),
    Family(
        "moescope_ingest_duration_seconds",
        "histogram",
        "seconds",
        "Time to decode and account for a frame, without waiting for its body.",
    ),
    Family("moescope_history_bytes", "gauge", "bytes", "Memory that past snapshots take."),
    Family("moescope_history_snapshots", "gauge", "", "Past snapshots in memory."),
    Family(
        "moescope_history_span_seconds",
        "gauge",
        "seconds",
        "How far back the windows of the deployment can begin; its whole life, while nothing is forgotten.",
        DEPLOYMENT,
    ),
    Family(
        "moescope_scrape_duration_seconds",
        "histogram",
        "seconds",
        "Time to collect and write these metrics, of the scrapes before this one.",
    ),
    Family("moescope_exposed_series", "gauge", "series", "Series of this scrape."),
    Family("moescope_max_exposed_series", "gauge", "series", "Most series of a scrape (metrics_max_series)."),
    Family(
        "moescope_overflowed_series_total",
        "counter",
        "series",
        "Series left out of scrapes, because their whole family did not fit under the limit.",
        ("family",),
    ),
    Family(
        "moescope_scrape_part_success",
        "gauge",
        "",
        "1 if the part of the metrics could be collected.",
        ("part",),
    ),
    Family("moescope_build_info", "gauge", "", "Versions; the value is 1.", ("version", "wire")),
)

CATALOGUE: Final[Mapping[str, Family]] = {family.name: family for family in _FAMILIES}
