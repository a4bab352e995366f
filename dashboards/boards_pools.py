"""The board Pools: the replicas of a pool side by side, and prefill beside decode."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.measures import RATIO_THRESHOLDS
from moescope.dashboards.spec import (
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

_REPLICA: Final = "cluster, pool, role, server, model"
_ROLE: Final = "cluster, pool, role, model"
_NAME: Final = "{{pool}} {{role}} {{server}}"
_ROLE_NAME: Final = "{{pool}} {{role}} {{model}}"
_SHOWN: Final = f'{POOL},server=~"$replica"'
_REPORTING: Final = f"on ({_REPLICA}) (moescope_snapshot_age_seconds{{{POOL}}} < 60)"
_TOKENS: Final = f"({rate('moescope_tokens_total', POOL, _REPLICA)} and {_REPORTING})"
"""Tokens per second of the replicas that report: one that is gone has series for a while."""
_COMPARED: Final = f"({_TOKENS} unless on ({_REPLICA}) (moescope_conflicting_lives{{{POOL}}} > 0))"
_TOKENS_SHOWN: Final = f"({rate('moescope_tokens_total', _SHOWN, _REPLICA)} and {_REPORTING})"
_COMPARED_SHOWN: Final = f"({_COMPARED} and on ({_REPLICA}) {_TOKENS_SHOWN})"
"""Without those whose ranks several live processes claim: each of these is several deployments."""
_TO_MODEL: Final = (
    "/d/moescope-model?${datasource:queryparam}&${job:queryparam}&${instance:queryparam}"
    "&var-cluster=${__data.fields.cluster}&var-server=${__data.fields.server}"
    "&var-model=${__data.fields.model}&${__url_time_range}"
)


def _of_mean(expr: str, shown: str) -> str:
    """By replica that is shown, as a multiple of the mean of all replicas of its role."""
    return f"{shown} / on ({_ROLE}) group_left () (avg by ({_ROLE}) ({expr}) > 0)"


def _in_row(expr: str) -> str:
    """As a column of a table; a series without a cluster gets All, which Grafana takes for no choice."""
    return f'label_replace({expr}, "cluster", "All", "cluster", "")'


POOLS_BOARD: Final = Board(
    "moescope-pools",
    "moescope / Pools",
    "The replicas of a pool side by side: which of them is the problem? Pools are named by MOESCOPE_POOL.",
    (*SERVICE_VARIABLES, *POOL_VARIABLES),
    (
        Row(
            "Now",
            (
                stat(
                    "Replicas",
                    "Deployments of the pools with a worker that counts.",
                    Query(
                        f'count(count by ({_REPLICA}) (moescope_producers{{{POOL},state="counting"}} > 0))'
                    ),
                ),
                stat(
                    "Tokens per second",
                    "Tokens computed for requests, over all replicas.",
                    Query(f"sum(rate(moescope_tokens_total{{{POOL}}}[$__rate_interval]))"),
                ),
                stat(
                    "Least share of the tokens",
                    "The least tokens per second of a replica / the mean of its role's replicas; 1 is fair.",
                    Query(f"min({_of_mean(_COMPARED, _COMPARED_SHOWN)})"),
                ),
                stat(
                    "Workers that don't count",
                    "Workers that are silent, or whose capture is off: see Capture health.",
                    Query(f'sum(moescope_producers{{{POOL},state!="counting"}})'),
                    thresholds=((1, "red"),),
                ),
            ),
        ),
        Row(
            "Replicas",
            (
                Panel(
                    "table",
                    "Balance by replica",
                    "Max / mean over the service's window (1 is best): of slots over EP ranks, as a ratio of "
                    "sums over layers and in the worst layer, and of tokens over DP ranks. Click a value to "
                    "open the replica on board Model.",
                    (
                        Query(_in_row(most("moescope_ep_imbalance_ratio", _SHOWN, _REPLICA)), "EP imbalance"),
                        Query(
                            _in_row(most("moescope_ep_worst_layer_imbalance_ratio", _SHOWN, _REPLICA)),
                            "worst layer",
                        ),
                        Query(_in_row(most("moescope_dp_imbalance_ratio", _SHOWN, _REPLICA)), "DP imbalance"),
                    ),
                    width=24,
                    thresholds=RATIO_THRESHOLDS,
                    link=_TO_MODEL,
                ),
                Panel(
                    "timeseries",
                    "Tokens per second by replica",
                    "Tokens computed for requests: no padding, no dummy steps.",
                    (Query(_TOKENS_SHOWN, _NAME),),
                ),
                Panel(
                    "timeseries",
                    "Share of the tokens",
                    "Tokens per second of a replica / the mean of the replicas of its role; 1 is fair.",
                    (Query(_of_mean(_COMPARED, _COMPARED_SHOWN), _NAME),),
                ),
                Panel(
                    "timeseries",
                    "Imbalance ratio over EP ranks by replica",
                    "Sum over layers of the busiest EP rank's slots / sum over layers of the EP ranks' mean; "
                    "1 is best.",
                    (Query(most("moescope_ep_imbalance_ratio", _SHOWN, _REPLICA), _NAME),),
                    thresholds=RATIO_THRESHOLDS,
                ),
                Panel(
                    "timeseries",
                    "Straggler cost by replica",
                    "Share of MoE work time that EP ranks wait for the busiest, from single steps.",
                    (Query(most("moescope_straggler_cost_ratio", _SHOWN, _REPLICA), _NAME),),
                    unit="percentunit",
                ),
                Panel(
                    "timeseries",
                    "Hot experts by replica",
                    "Experts with 3 times a fair share of slots or more, over all layers.",
                    (
                        Query(
                            f"sum by ({_REPLICA}) (max by ({_REPLICA}, layer) "
                            f"(moescope_layer_hot_experts{{{_SHOWN}}}))",
                            _NAME,
                        ),
                    ),
                ),
                Panel(
                    "timeseries",
                    "Divergence from the siblings",
                    "Median over layers of the Jensen-Shannon divergence (bits) of the experts' shares from "
                    "those of the other replicas of the role; and what chance alone would show.",
                    (
                        Query(most("moescope_replica_divergence_bits", _SHOWN, _REPLICA), _NAME),
                        Query(
                            most("moescope_replica_sampling_noise_bits", _SHOWN, _REPLICA),
                            f"{_NAME} by chance",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Roles",
            (
                Panel(
                    "timeseries",
                    "Tokens per second by role",
                    "Prefill and decode instances, where a pool has them; all together else.",
                    (Query(rate("moescope_tokens_total", POOL, _ROLE), _ROLE_NAME),),
                ),
                Panel(
                    "timeseries",
                    "Tokens per second by role and phase",
                    "A decode instance that computes prefill tokens computed prompts itself.",
                    (
                        Query(
                            rate("moescope_phase_tokens_total", POOL, f"{_ROLE}, phase"),
                            f"{_ROLE_NAME} {{{{phase}}}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
    POOL,
)
