"""The catalogue of metrics: every family that ``/metrics`` can show, as data.

Per-step quantities are counters, so that a rate never loses the steps between two scrapes. Gauges are what
was true over the last window (setting ``window_s``); without a sample they have no series at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from moescope.service.settings import MetricsLevel

_DEPLOYMENT: Final = ("server", "model")
_DP: Final = (*_DEPLOYMENT, "dp_rank")
_EP: Final = (*_DEPLOYMENT, "ep_rank")
_LAYER: Final = (*_DEPLOYMENT, "layer")


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family.

    Attributes:
        name: full name, with ``_total`` on counters.
        kind: its type.
        unit: base unit, which is the name's suffix (before ``_total``); empty for numbers without one.
        help: one sentence; what it counts, over what.
        labels: names of its labels.
        level: coarsest setting of ``metrics_level`` that shows it.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    level: MetricsLevel = MetricsLevel.RANK


_LEVELS: Final = tuple(MetricsLevel)


def shown(family: Family, level: MetricsLevel) -> bool:
    """Whether a family is shown at a level."""
    return _LEVELS.index(family.level) <= _LEVELS.index(level)


_FAMILIES: Final = (
    # What was counted
    Family(
        "moescope_tokens_total",
        "counter",
        "tokens",
        "Tokens computed for requests: no padding, no dummy steps.",
        _DP,
    ),
    Family(
        "moescope_steps_total",
        "counter",
        "steps",
        "Steps in which the DP rank computed at least one token.",
        _DP,
    ),
    Family(
        "moescope_idle_steps_total",
        "counter",
        "steps",
        "Dummy steps, run because another DP rank had work.",
        _DP,
    ),
    Family(
        "moescope_ep_rank_slots_total",
        "counter",
        "slots",
        "Slots (token, chosen expert) that went to experts on the EP rank, over all layers.",
        _EP,
    ),
    Family(
        "moescope_layer_ep_rank_slots_total",
        "counter",
        "slots",
        "Slots that went to experts on the EP rank; a replicated expert's are split evenly over its copies.",
        (*_LAYER, "ep_rank"),
        MetricsLevel.LAYER_RANK,
    ),
    Family(
        "moescope_layer_unplaced_slots_total",
        "counter",
        "slots",
        "Slots counted while it was not known where the experts are.",
        _LAYER,
        MetricsLevel.LAYER_RANK,
    ),
    Family(
        "moescope_layer_dp_rank_slots_total",
        "counter",
        "slots",
        "Slots of the DP rank's tokens in the layer.",
        (*_LAYER, "dp_rank"),
        MetricsLevel.LAYER_RANK,
    ),
    Family(
        "moescope_layer_expert_slots_total",
        "counter",
        "slots",
        "Slots that chose the logical expert.",
        (*_LAYER, "expert"),
        MetricsLevel.LAYER_EXPERT,
    ),
    # Balance over the last window
    Family("moescope_window_seconds", "gauge", "seconds", "Length of the window of the balance gauges."),
    Family(
        "moescope_ep_imbalance_ratio",
        "gauge",
        "ratio",
        "Sum over layers of the busiest EP rank's slots / sum over layers of the mean; 1 is best.",
        _DEPLOYMENT,
    ),
    Family(
        "moescope_ep_worst_layer_imbalance_ratio",
        "gauge",
        "ratio",
        "Largest max / mean of slots over EP ranks among the layers; 1 is best.",
        _DEPLOYMENT,
    ),
    Family(
        "moescope_dp_imbalance_ratio",
        "gauge",
        "ratio",
        "Max / mean of tokens over DP ranks; 1 is best.",
        _DEPLOYMENT,
    ),
    Family(
        "moescope_layer_ep_imbalance_ratio",
        "gauge",
        "ratio",
        "Max / mean of slots over EP ranks; 1 is best.",
        _LAYER,
        MetricsLevel.LAYER_RANK,
    ),
    Family(
        "moescope_layer_max_vio_ratio",
        "gauge",
        "ratio",
        "MaxVio, (max - mean) / mean of slots over experts; 0 is best.",
        _LAYER,
        MetricsLevel.LAYER_RANK,
    ),
    Family(
        "moescope_layer_normalised_entropy_ratio",
        "gauge",
        "ratio",
        "exp(H) / N of slots over experts; 1 is best.",
        _LAYER,
        MetricsLevel.LAYER_RANK,
    ),
    Family(
        "moescope_layer_dead_experts",
        "gauge",
        "experts",
        "Experts that no token chose.",
        _LAYER,
        MetricsLevel.LAYER_RANK,
    ),
    # Health of capture
    Family("moescope_producers", "gauge", "", "vLLM workers that report, by state.", (*_DEPLOYMENT, "state")),
    Family(
        "moescope_missing_dp_ranks",
        "gauge",
        "",
        "DP ranks that should exist and never reported.",
        _DEPLOYMENT,
    ),
    Family(
        "moescope_snapshot_age_seconds",
        "gauge",
        "seconds",
        "Time since the newest frame of the DP rank's longest silent producer.",
        _DP,
    ),
    Family("moescope_uncovered_layers", "gauge", "layers", "MoE layers whose routing can't be seen.", _DP),
    Family(
        "moescope_unseen_layers",
        "gauge",
        "layers",
        "MoE layers that are covered and never saw a token, although tokens were computed.",
        _DP,
    ),
    Family(
        "moescope_conservation_mismatched_layers",
        "gauge",
        "layers",
        "MoE layers whose slots are not rows x top-k, or whose rows are not the tokens computed.",
        _DP,
    ),
    Family(
        "moescope_placement_version",
        "gauge",
        "",
        "Version of the placement of experts; rises with each rearrangement.",
        _DP,
    ),
    Family(
        "moescope_producer_restarts_total",
        "counter",
        "",
        "Starts of the DP rank's producers after the first.",
        _DP,
    ),
    Family(
        "moescope_producer_drops_total",
        "counter",
        "",
        "What producers lost or put off, by reason; never counts of tokens.",
        (*_DP, "reason"),
    ),
    # Health of the service
    Family("moescope_frames_total", "counter", "", "Frames that came, by result.", ("result", "reason")),
    Family("moescope_history_bytes", "gauge", "bytes", "Memory that past snapshots take."),
    Family("moescope_history_snapshots", "gauge", "", "Past snapshots in memory."),
    Family(
        "moescope_scrape_duration_seconds", "gauge", "seconds", "Time that it took to collect these metrics."
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
