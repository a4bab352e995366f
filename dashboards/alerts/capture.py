"""Alerts about capture: what is not counted, and what can't be trusted."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.alerts.spec import (
    DEPLOYMENT,
    NAME,
    NUMBER,
    VALUE,
    VALUE_SHARE,
    Alert,
    Group,
    Minutes,
    Severity,
    ask,
    each,
    lately,
    most,
)

_BOARD: Final = "moescope-health"
_DROPS: Final = 'moescope_producer_drops_total{reason!="snapshots_put_off"'
_SPAN: Final = f"min by ({DEPLOYMENT}) ({lately('moescope_history_span_seconds')})"
_OLD: Final = (
    f"max by ({DEPLOYMENT}) (min by ({DEPLOYMENT}, dp_rank) ({lately('moescope_snapshot_age_seconds')})) > 15"
)
"""Where several services know a rank, the one that heard it last is right: a rank may move to another."""


def _of_capture(
    name: str, minutes: Minutes, expr: str, summary: str, description: str, *, inform: bool = False
) -> Alert:
    severity: Severity = "info" if inform else "warning"
    return Alert(name, DEPLOYMENT, expr, severity, "capture", minutes, summary, description, _BOARD)


def _ranks(gauge: str) -> str:
    """The DP rank with the largest value, and how many have any."""
    return ask(f"topk(1, {most(gauge, 'dp_rank', '{%s}')})", "DP rank {{ .Labels.dp_rank }}") + ask(
        f"count({most(gauge, 'dp_rank', '{%s}')} > 0)", f" ({NUMBER} of the DP ranks have any)"
    )


def _workers(state: str) -> str:
    """Workers in a state, as the service tells that has most of them."""
    gauge = lately("moescope_producers", f'{{state="{state}"}}')
    each_service = f"sum by ({DEPLOYMENT}, instance) ({gauge})"
    return f"max by ({DEPLOYMENT}) ({each_service}) > 0"


def _by_reason(counter: str) -> str:
    return each(
        f"topk(3, sum by (reason) (increase({counter}[15m])) > 0)",
        f" {{{{ .Labels.reason }}}}: about {NUMBER}.",
    )


CAPTURE: Final = Group(
    "moescope-capture-alerts",
    "What is not counted, or can't be trusted. vLLM serves on.",
    (
        _of_capture(
            "MoescopeUncoveredLayers",
            10,
            f"{most('moescope_uncovered_layers')} > 0",
            f"Layers of {NAME} can't be seen",
            f"The routing of {VALUE} MoE layers is not captured; /v1/ranks says why. Balance is that of "
            "the other "
            "layers.",
        ),
        _of_capture(
            "MoescopeAbsentLayers",
            2,
            f"{most('moescope_absent_layers')} > 0",
            f"MoE layers of {NAME} were not found",
            f"The model's config has at least {VALUE} MoE layers more than capture found; /v1/ranks says "
            "which and "
            "why. Nothing counts them.",
        ),
        _of_capture(
            "MoescopeUnseenLayers",
            10,
            f"{most('moescope_unseen_layers')} > 0",
            f"Covered layers of {NAME} report no tokens",
            f"{VALUE} MoE layers are covered and never saw a token, although tokens were computed: "
            "capture misses "
            "them.",
        ),
        _of_capture(
            "MoescopeConflictingLives",
            2,
            f"{most('moescope_conflicting_lives')} > 0",
            f"Several live processes claim ranks of {NAME}",
            f"{VALUE} claim {_ranks('moescope_conflicting_lives')}: several deployments report under one "
            "name, so that "
            "their counts can't be told apart. Rates are of all of them together, and balance is not "
            "known. /v1/ranks "
            "names their hosts and pids.",
        ),
        _of_capture(
            "MoescopeConservationMismatch",
            2,
            f"{most('moescope_conservation_mismatched_layers')} > 0",
            f"Counts of {NAME} don't add up",
            f"In {VALUE} layers of {_ranks('moescope_conservation_mismatched_layers')} slots are not rows "
            "x top-k, or "
            "the rows of all TP workers are not the tokens computed: something is missed or counted twice.",
        ),
        _of_capture(
            "MoescopeConservationUnknown",
            10,
            f"{most('moescope_conservation_unknown_stages')} > 0",
            f"It is not known whether counts of {NAME} add up",
            f"{VALUE} pipeline stages of {_ranks('moescope_conservation_unknown_stages')} can't be "
            "compared: a worker "
            "has not reported, fell silent, doesn't count, or sends no snapshots of the same steps. "
            "/v1/ranks says "
            "which.",
        ),
        _of_capture(
            "MoescopeStaleProducer",
            2,
            f"{_workers('stale')}\nand on ({DEPLOYMENT}) {_OLD}",
            f"Workers of {NAME} have fallen silent",
            f"{VALUE} of "
            + ask(
                f"max(sum by (instance) ({lately('moescope_producers', '{%s}')}))",
                f"{NUMBER} vLLM workers send no frames, ",
            )
            + ask(
                f"topk(1, min by (dp_rank) ({lately('moescope_snapshot_age_seconds', '{%s}')}))",
                "DP rank {{ .Labels.dp_rank }} for {{ .Value | humanizeDuration }}: ",
            )
            + "they ended, hang, or can't reach the service."
            + ask(
                'sum(increase(moescope_frames_total{result="refused"}[10m])) > 0',
                f" Services refused about {NUMBER} frames in ten minutes: see their logs.",
            ),
        ),
        _of_capture(
            "MoescopeCaptureDisabled",
            2,
            _workers("disabled"),
            f"Capture is off in workers of {NAME}",
            f"{VALUE} workers don't count: capture stopped for good, or never began; /v1/ranks has the "
            "reason. They "
            "serve on, uncounted.",
        ),
        _of_capture(
            "MoescopeMissingRanks",
            10,
            f"{most('moescope_missing_dp_ranks')} > 0",
            f"DP ranks of {NAME} never reported",
            f"{VALUE} DP ranks should exist and have sent no frame, so balance is that of a part: is "
            "MOESCOPE=1 (or "
            "--worker-cls) set on all nodes?",
        ),
        _of_capture(
            "MoescopeStepsNotJoined",
            15,
            "model:moescope_incomplete_steps:ratio_rate5m > 0.05",
            f"Steps of {NAME} are missing from the straggler cost",
            f"The loads of some DP rank did not come for {VALUE_SHARE} of the steps, so that they are not "
            "joined. "
            "Counts are not affected.",
            inform=True,
        ),
        _of_capture(
            "MoescopeProducerDrops",
            15,
            f"sum by ({DEPLOYMENT}) (increase({_DROPS}}}[15m])) > 10",
            f"Workers of {NAME} drop snapshots",
            "By reason, in 15 "
            f"minutes:{_by_reason(_DROPS + ',%s}')} Totals stay exact; resolution in time suffers.",
        ),
        _of_capture(
            "MoescopeTracesDropped",
            15,
            f"sum by ({DEPLOYMENT}) (increase(moescope_traces_dropped_total[15m])) > 0",
            f"Workers of {NAME} drop routing traces",
            f"By reason, in 15 minutes:{_by_reason('moescope_traces_dropped_total{%s}')} Counts are not "
            "affected.",
            inform=True,
        ),
        _of_capture(
            "MoescopeRestarts",
            0,
            # Counted, not extrapolated as by increase(). A counter that goes back: the service restarted.
            f"max by ({DEPLOYMENT}) (\n"
            "  changes(moescope_producer_restarts_total[1h]) - resets(moescope_producer_restarts_total[1h])\n"
            ") > 2",
            f"{NAME} restarts again and again",
            ask(
                "topk(1, max by (dp_rank) (changes(moescope_producer_restarts_total{%s}[1h]) "
                "- resets(moescope_producer_restarts_total{%s}[1h])))",
                "DP rank {{ .Labels.dp_rank }}",
                "$of",
            )
            + f" started again {VALUE} times within an hour"
            + ask(
                "count(max by (dp_rank) (changes(moescope_producer_restarts_total{%s}[1h]) > 0))",
                f"; {NUMBER} DP ranks started again at all",
            )
            + ".",
        ),
        _of_capture(
            "MoescopeShortHistory",
            10,
            # Gauges of drift look back five minutes, others as far as moescope_window_seconds says. A past
            # that grows as time passes is young, as after a restart, and not short.
            f"(\n  {_SPAN} < 300\n  or\n  {_SPAN}\n"
            f"  < on (cluster) group_left () max by (cluster) ({lately('moescope_window_seconds')})\n)\n"
            f"unless on ({DEPLOYMENT})\n"
            f"  {_SPAN} - min by ({DEPLOYMENT}) (moescope_history_span_seconds offset 5m) > 240",
            f"The remembered past of {NAME} is shorter than the windows asked of it",
            "Windows begin {{ $value | humanizeDuration }} ago at the earliest. Gauges and answers of "
            "longer windows "
            "are of a shorter time than they say. Counters are exact.",
        ),
    ),
)
