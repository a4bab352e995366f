"""The catalogue of health: that of capture in the workers, and that of the service itself."""

from __future__ import annotations

from typing import Final

from moescope.service.metrics.family import DEPLOYMENT, DP, WORKER, Family

HEALTH: Final = (
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
        "moescope_weights_version",
        "gauge",
        "",
        "How often the weights were changed since the DP rank's worker began to count: reload_weights, "
        "a weight transfer, load_weights of a trainer's extension. A new worker begins at 0.",
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
    Family(
        "moescope_store_ready",
        "gauge",
        "",
        "1 if what comes can be kept in the store, 0 while it can't; /readyz has the reason.",
    ),
    Family(
        "moescope_store_unreadable_total",
        "counter",
        "",
        "How often something was met in the store that can't be read and was left out, by what it is.",
        ("kind",),
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
"""Workers that report, and the service."""
