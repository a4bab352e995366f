"""The board Fleet: all deployments of all clusters."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from moescope.dashboards.measures import RATIO_THRESHOLDS
from moescope.dashboards.spec import (
    NAME,
    POOL,
    POOL_VARIABLES,
    SERVICE_VARIABLES,
    Board,
    Panel,
    Query,
    Row,
    most,
    rate,
    stat,
)

_DEPLOYMENT: Final = "cluster, server, model"
# The link to board Model: data source, job and instance as chosen here, the deployment as in the table's row.
# Where a row lacks a field, Grafana leaves its placeholder as it is written.
_TO_MODEL: Final = (
    "/d/moescope-model?${datasource:queryparam}&${job:queryparam}&${instance:queryparam}"
    "&var-cluster=${__data.fields.cluster}&var-server=${__data.fields.server}"
    "&var-model=${__data.fields.model}&${__url_time_range}"
)


def _in_row(metric: str) -> str:
    """A gauge by deployment; a series without a cluster gets All, which Grafana takes for no choice."""
    return f'label_replace({most(metric, POOL)}, "cluster", "All", "cluster", "")'


FLEET_BOARD: Final = Board(
    "moescope-fleet",
    "moescope / Fleet",
    "All deployments of all clusters: who serves how much, and how evenly.",
    (*SERVICE_VARIABLES, *(replace(each, all_value=".*") for each in POOL_VARIABLES[:2])),  # of no pool too
    (
        Row(
            "Now",
            (
                stat(
                    "Deployments",
                    "Deployments (server and model) that report.",
                    Query(f"count(count by ({_DEPLOYMENT}) (moescope_producers{{{POOL}}}))"),
                ),
                stat(
                    "Tokens per second",
                    "Tokens computed for requests, over all deployments.",
                    Query(f"sum(rate(moescope_tokens_total{{{POOL}}}[$__rate_interval]))"),
                ),
                stat(
                    "Workers that count",
                    "vLLM workers whose capture works.",
                    Query(f'sum(moescope_producers{{{POOL},state="counting"}})'),
                ),
                stat(
                    "Workers that don't",
                    "Workers that are silent, or whose capture is off: see Capture health.",
                    Query(f'sum(moescope_producers{{{POOL},state!="counting"}})'),
                    thresholds=((1, "red"),),
                ),
            ),
        ),
        Row(
            "Deployments",
            (
                Panel(
                    "table",
                    "Balance by deployment",
                    "Max / mean over the service's window (1 is best): of slots over EP ranks, as a ratio of "
                    "sums over layers and in the worst layer, and of tokens over DP ranks. Click a value to "
                    "open the deployment on board Model.",
                    (
                        Query(_in_row("moescope_ep_imbalance_ratio"), "EP imbalance"),
                        Query(_in_row("moescope_ep_worst_layer_imbalance_ratio"), "worst layer"),
                        Query(_in_row("moescope_dp_imbalance_ratio"), "DP imbalance"),
                    ),
                    width=24,
                    thresholds=RATIO_THRESHOLDS,
                    link=_TO_MODEL,
                ),
                Panel(
                    "timeseries",
                    "Tokens per second",
                    "Tokens computed for requests: no padding, no dummy steps.",
                    (Query(rate("moescope_tokens_total", POOL, _DEPLOYMENT), NAME),),
                ),
                Panel(
                    "timeseries",
                    "Imbalance ratio over EP ranks",
                    "Sum over layers of the busiest EP rank's slots / sum over layers of the EP ranks' mean; "
                    "1 is best.",
                    (Query(most("moescope_ep_imbalance_ratio", POOL), NAME),),
                    thresholds=RATIO_THRESHOLDS,
                ),
            ),
        ),
    ),
    POOL,
)
