"""Alerts about drift from pinned baselines."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.alerts.spec import (
    DEPLOYMENT,
    NAME,
    NUMBER,
    RATIO,
    VALUE,
    Alert,
    Group,
    ask,
    lately,
    most,
)

_PINNED: Final = '{baseline!="previous_hour"}'
"""Not the hour before: after any change, one for the better too, routing differs from it for an hour."""
_OF_PINNED: Final = '{%s,baseline!="previous_hour"}'
_DRIFT: Final = "model:moescope_median_layer_drift:bits"
_BOARD: Final = "moescope-model"
_BASE: Final = "{{ .Labels.baseline }} (phase: {{ .Labels.phase }})"


def _in_worst_layer(gauge: str) -> str:
    return ask(
        f"topk(1, {lately(gauge, _OF_PINNED)})",
        f"Most are in layer {{{{ .Labels.layer }}}} ({NUMBER}). ",
    )


DRIFT: Final = Group(
    "moescope-baseline-drift-alerts",
    "Causes too: routing is another than it was.",
    (
        Alert(
            "MoescopeRoutingDrift",
            DEPLOYMENT,
            f"max by ({DEPLOYMENT}) (\n"
            f"  {_DRIFT}{_PINNED} > 0.03 and model:moescope_drift_over_noise:ratio > 3\n"
            ")",
            "info",
            "cause",
            15,
            f"Routing of {NAME} has drifted",
            ask(
                f"topk(1, {_DRIFT}{_OF_PINNED} and model:moescope_drift_over_noise:ratio > 3)",
                f"The experts' shares are {RATIO} bits (Jensen-Shannon, median layer) from those of "
                f"{_BASE}. ",
            )
            + "A placement made from the earlier load may no longer fit.",
            _BOARD,
        ),
        Alert(
            "MoescopeNewHotExperts",
            DEPLOYMENT,
            f"{most('moescope_new_hot_experts', matchers=_PINNED)} > 0",
            "info",
            "cause",
            15,
            f"{NAME} has new hot experts",
            f"{VALUE} experts of all layers have over 3 times a fair share that had much less in "
            + ask(f"topk(1, {lately('moescope_new_hot_experts', _OF_PINNED)})", _BASE)
            + f". {_in_worst_layer('moescope_layer_new_hot_experts')}/v1/drift names them.",
            _BOARD,
            keep_minutes=5,
        ),
        Alert(
            "MoescopeExpertsDied",
            DEPLOYMENT,
            f"{most('moescope_new_dead_experts', matchers=_PINNED)} > 0",
            "info",
            "cause",
            15,
            f"Experts of {NAME} have died",
            f"{VALUE} experts of all layers get no token that had a share in "
            + ask(f"topk(1, {lately('moescope_new_dead_experts', _OF_PINNED)})", _BASE)
            + f". {_in_worst_layer('moescope_layer_new_dead_experts')}/v1/drift names them.",
            _BOARD,
            keep_minutes=5,
        ),
    ),
)
