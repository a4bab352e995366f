"""Which alerts of ``dashboards/rules`` need more of ``/metrics`` than its coarsest level."""

from __future__ import annotations

from typing import Final

from moescope.service.settings import MetricsLevel

# Written down here because a service may run without the rules. A test compares it with their expressions.
ALERT_LEVELS: Final = {
    "MoescopeRankImbalance": MetricsLevel.LAYER_RANK,
    "MoescopeHotExpert": MetricsLevel.LAYER_RANK,
    "MoescopeNewDeadExperts": MetricsLevel.LAYER_RANK,
    "MoescopeOneRankHottest": MetricsLevel.LAYER_RANK,
    "MoescopeReplicaImbalance": MetricsLevel.LAYER_RANK,
}
"""Alert to the coarsest level at which it can fire; all others can at each."""


def silent_alerts(level: MetricsLevel) -> list[str]:
    """The alerts that can't fire at a level, since a metric that they need is not shown."""
    levels = list(MetricsLevel)
    return [name for name, needed in ALERT_LEVELS.items() if levels.index(needed) > levels.index(level)]


def what_is_silent(level: MetricsLevel) -> str:
    """The alerts of :func:`silent_alerts` in words for the operator; empty if all alerts can fire."""
    names = silent_alerts(level)
    return f"at {level.value} these alerts can't fire: {', '.join(names)}" if names else ""
