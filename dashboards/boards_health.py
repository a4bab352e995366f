"""The board Capture health: can the other boards be trusted?"""

from __future__ import annotations

from typing import Final

from moescope.dashboards.spec import (
    MODEL,
    MODEL_VARIABLES,
    SERVICE,
    Board,
    Panel,
    Query,
    Row,
    most,
    or_none,
    rate,
)

_RANK: Final = "server, model, dp_rank"
_RANK_NAME: Final = "{{server}} DP {{dp_rank}}"
_BAD: Final = ((1.0, "red"),)
_SHOULD_BE_0: Final = {
    "uncovered layers": "moescope_uncovered_layers",
    "absent layers": "moescope_absent_layers",
    "unseen layers": "moescope_unseen_layers",
    "layers that break conservation": "moescope_conservation_mismatched_layers",
    "stages not compared": "moescope_conservation_unknown_stages",
    "live processes of one rank": "moescope_conflicting_lives",
}


def _gauge(title: str, text: str, metric: str) -> Panel:
    """Two numbers of a gauge by DP rank, red from 1 on, as it should be 0; however many ranks there are."""
    ranks = most(metric, MODEL, _RANK)
    queries = (
        Query(f"max({ranks})", "most of a DP rank"),
        Query(f"count({ranks} > 0) or on () vector(0)", "DP ranks above 0"),
    )
    return Panel("stat", title, text, queries, "short", 6, 6, _BAD)


def _above() -> str:
    """The DP ranks of which a gauge that should be 0 isn't, a hundred a gauge at most."""
    found = [
        f'label_replace(topk(100, {most(metric, MODEL, _RANK)} > 0), "what", "{what}", "", "")'
        for what, metric in _SHOULD_BE_0.items()
    ]
    return or_none(" or ".join(found), "what")


def _slowest(metric: str) -> str:
    """The 99th percentile of a histogram of seconds, by service."""
    return f"histogram_quantile(0.99, {rate(f'{metric}_bucket', SERVICE, 'instance, le')})"


HEALTH_BOARD: Final = Board(
    "moescope-health",
    "moescope / Capture health",
    "Whether every token is seen and counted once, and how the service does.",
    MODEL_VARIABLES,
    (
        Row(
            "Workers",
            (
                Panel(
                    "timeseries",
                    "Workers by state",
                    "Workers that count; that are stale, silent for longer than the service's stale_after_s; "
                    "and whose capture is disabled.",
                    (Query(f"sum by (state) (moescope_producers{{{MODEL}}})", "{{state}}"),),
                    width=8,
                ),
                Panel(
                    "timeseries",
                    "Snapshot age",
                    "Time since the newest frame of a DP rank's longest silent worker: the ten with the "
                    "most.",
                    (Query(f"topk(10, {most('moescope_snapshot_age_seconds', MODEL, _RANK)})", _RANK_NAME),),
                    "s",
                    8,
                    thresholds=((15, "red"),),
                ),
                Panel(
                    "timeseries",
                    "Restarts",
                    "Starts of DP ranks' workers after the first: the ten DP ranks with the most.",
                    (
                        Query(
                            f"topk(10, sum by ({_RANK}) "
                            f"(increase(moescope_producer_restarts_total{{{MODEL}}}[$__rate_interval])))",
                            _RANK_NAME,
                        ),
                    ),
                    width=8,
                ),
            ),
        ),
        Row(
            "Is everything counted, once?",
            (
                _gauge(
                    "Uncovered layers",
                    "MoE layers whose routing can't be seen.",
                    "moescope_uncovered_layers",
                ),
                _gauge(
                    "Absent layers",
                    "MoE layers that the model's config has and that were not found.",
                    "moescope_absent_layers",
                ),
                _gauge(
                    "Unseen layers",
                    "Covered layers that never saw a token, although tokens were computed.",
                    "moescope_unseen_layers",
                ),
                _gauge(
                    "Layers that break conservation",
                    "Layers whose slots are not rows x top-k, or whose rows over all TP workers are not the "
                    "tokens computed.",
                    "moescope_conservation_mismatched_layers",
                ),
                _gauge(
                    "Stages not compared",
                    "Pipeline stages of which it isn't known whether rows add up to the tokens computed.",
                    "moescope_conservation_unknown_stages",
                ),
                Panel(
                    "stat",
                    "Missing DP ranks",
                    "DP ranks that should exist and never reported.",
                    (Query(most("moescope_missing_dp_ranks", MODEL), "{{server}}"),),
                    width=6,
                    height=6,
                    thresholds=_BAD,
                ),
                Panel(
                    "timeseries",
                    "Drops of workers",
                    "What workers lost or put off, by reason; never counts of tokens.",
                    (Query(rate("moescope_producer_drops_total", MODEL, "reason"), "{{reason}}"),),
                    "ops",
                ),
                Panel(
                    "timeseries",
                    "Routing traces dropped",
                    "Routing traces that workers lost, by reason. It is 0, too, where nothing is traced.",
                    (
                        Query(
                            or_none(rate("moescope_traces_dropped_total", MODEL, "reason"), "reason"),
                            "{{reason}}",
                        ),
                    ),
                    "ops",
                ),
                Panel(
                    "timeseries",
                    "Covered layers and placement version",
                    "MoE layers that are counted, and the version of the placement of experts: the least and "
                    "the most of all DP ranks, which should be equal.",
                    tuple(
                        Query(
                            f"{word} by (server, model) ({most(metric, MODEL, _RANK)})",
                            f"{name} ({word}) {{{{server}}}}",
                        )
                        for name, metric in (
                            ("covered", "moescope_covered_layers"),
                            ("placement", "moescope_placement_version"),
                        )
                        for word in ("min", "max")
                    ),
                ),
                Panel(
                    "table",
                    "DP ranks with any of this",
                    "The DP ranks of which one of these numbers is not 0. moescope ranks gives the reasons.",
                    (Query(_above(), "number"),),
                    width=24,
                ),
            ),
        ),
        Row(
            "The service",
            (
                Panel(
                    "timeseries",
                    "Frames",
                    "Frames that came, by result and reason.",
                    (
                        Query(
                            rate("moescope_frames_total", SERVICE, "result, reason"), "{{result}} {{reason}}"
                        ),
                    ),
                    "ops",
                    8,
                ),
                Panel(
                    "timeseries",
                    "Bytes of frames",
                    "Bodies of frames that came.",
                    (Query(rate("moescope_ingest_bytes_total", SERVICE, "instance"), "{{instance}}"),),
                    "Bps",
                    8,
                ),
                Panel(
                    "timeseries",
                    "Time of ingest and of scrapes (p99)",
                    "99th percentile of the time to account for a frame, and of the time to collect and "
                    "write the metrics.",
                    (
                        Query(_slowest("moescope_ingest_duration_seconds"), "ingest {{instance}}"),
                        Query(_slowest("moescope_scrape_duration_seconds"), "scrape {{instance}}"),
                    ),
                    "s",
                    8,
                ),
                Panel(
                    "timeseries",
                    "Series",
                    "Series of a scrape, and the limit above which whole families are left out.",
                    (
                        Query(f"moescope_exposed_series{{{SERVICE}}}", "{{instance}}"),
                        Query(f"moescope_max_exposed_series{{{SERVICE}}}", "limit {{instance}}"),
                    ),
                    width=8,
                ),
                Panel(
                    "timeseries",
                    "Series left out, by family",
                    "Series that did not fit under the limit; there should be none.",
                    (
                        Query(
                            or_none(
                                "sum by (family) (increase("
                                f"moescope_overflowed_series_total{{{SERVICE}}}[$__rate_interval])) > 0",
                                "family",
                            ),
                            "{{family}}",
                        ),
                    ),
                    width=8,
                    thresholds=_BAD,
                ),
                Panel(
                    "timeseries",
                    "History in memory",
                    "Memory that past snapshots take.",
                    (Query(f"moescope_history_bytes{{{SERVICE}}}", "{{instance}}"),),
                    "bytes",
                    8,
                ),
                Panel(
                    "table",
                    "Versions",
                    "Versions of the services and of the wire. Click a value to open the service's own page.",
                    (
                        Query(
                            f"sum by (instance, version, wire) (moescope_build_info{{{SERVICE}}})", "services"
                        ),
                    ),
                    width=12,
                    height=6,
                    link="http://${__data.fields.instance}/",
                ),
                Panel(
                    "table",
                    "Parts of the metrics",
                    "1 if the part could be collected in the last scrape.",
                    (
                        Query(
                            f"min by (instance, part) (moescope_scrape_part_success{{{SERVICE}}})", "success"
                        ),
                    ),
                    width=12,
                    height=6,
                ),
            ),
        ),
    ),
    MODEL,
)
