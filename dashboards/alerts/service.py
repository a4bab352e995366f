"""Alerts about the service's own process, one of each kind an instance."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.alerts.spec import NUMBER, SERVICE, VALUE, Alert, Group, ask, each, lately

_BOARD: Final = "moescope-health"

SERVICES: Final = Group(
    "moescope-service-alerts",
    "moescope itself.",
    (
        Alert(
            "MoescopeDown",
            SERVICE,
            # The job called moescope, and what answered as a moescope within the last day.
            f'max by ({SERVICE}) (up{{job="moescope"}}) == 0\n'
            f"or max by ({SERVICE}) (up) == 0 and on ({SERVICE}) last_over_time(moescope_build_info[1d])",
            "critical",
            "service",
            3,
            "moescope at {{ $labels.instance }} can't be scraped",
            "Nobody sees balance now, and no other alert of its deployments can fire. vLLM serves on, and "
            "totals come "
            "back with the next frames; history of the time in between is lost.",
            _BOARD,
        ),
        Alert(
            "MoescopeRefusedFrames",
            SERVICE,
            f'sum by ({SERVICE}) (increase(moescope_frames_total{{result="refused"}}[10m])) > 0 '
            f"unless on ({SERVICE}) sum by ({SERVICE}) "
            f"""({lately("moescope_producers", '{state="stale"}')}) > 0""",
            "warning",
            "service",
            10,
            "moescope at {{ $labels.instance }} refuses frames",
            f"About {VALUE} in ten minutes:"
            + each(
                'topk(3, sum by (reason) (increase(moescope_frames_total{result="refused",%s}[10m])) > 0)',
                f" {{{{ .Labels.reason }}}} ({NUMBER}).",
            )
            + " A wrong token, another version, or two deployments under one name. The service's log says "
            "which.",
            _BOARD,
        ),
        Alert(
            "MoescopeScrapePartFailed",
            SERVICE,
            f"count by ({SERVICE}) ({lately('moescope_scrape_part_success')} == 0)",
            "warning",
            "service",
            5,
            "moescope at {{ $labels.instance }} can't collect all of its metrics",
            "Parts that failed:"
            + each(f"{lately('moescope_scrape_part_success', '{%s}')} == 0", " {{ .Labels.part }}.")
            + " Families of a part are missing from /metrics, or some of their series; the service's log "
            "says why.",
            _BOARD,
        ),
        Alert(
            "MoescopeSeriesOverflow",
            SERVICE,
            f"count by ({SERVICE}) (increase(moescope_overflowed_series_total[10m]) > 0)",
            "warning",
            "service",
            5,
            "Families of metrics are left out of /metrics of {{ $labels.instance }}",
            f"{VALUE} families don't fit under metrics_max_series, such as "
            + ask(
                "topk(1, increase(moescope_overflowed_series_total{%s}[10m]))",
                "{{ .Labels.family }}",
            )
            + ": raise that, or choose a coarser --metrics-level.",
            _BOARD,
        ),
    ),
)
