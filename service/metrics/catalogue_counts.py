"""The catalogue of what was counted: counters of steps, tokens and slots, and of joined steps."""

from __future__ import annotations

from typing import Final

from moescope.service.metrics.family import DEPLOYMENT, DP, EP, LAYER, STAGE, Family
from moescope.service.settings import MetricsLevel

COUNTS: Final = (
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
        "Slots that went to experts on the EP rank. A replicated expert's are split evenly over its copies "
        "where the worker doesn't count which of them a slot went to (moescope_layer_estimated_slots_total). "
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
        "moescope_layer_estimated_slots_total",
        "counter",
        "slots",
        "Slots whose EP rank is an estimate: they are split evenly over copies on several EP ranks, because "
        "the worker doesn't count which copy they went to.",
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
        "moescope_straggler_caused_slots_total",
        "counter",
        "slots",
        "Waiting that the EP rank caused: max - mean of the layers and steps in which it was the busiest.",
        EP,
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
)
"""What was counted, and what stragglers cost."""
