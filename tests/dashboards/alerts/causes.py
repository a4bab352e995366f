"""Causes that the simulator plants, one a deployment, and the one alert that each of them is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moescope.service.simulation.faults import Faults
from moescope.service.simulation.plan import Outage, Plan
from moescope.service.simulation.routing import Habits, Shape

EVEN = Habits(skew=0.0, drift=0.0, decode_shift=0.0)
STANDING = 1e9
"""Seconds until the hot expert moves: it doesn't."""
HEALTHY = Plan(
    ranks=2,
    shape=Shape(layers=2, experts=16, top_k=2),
    habits=EVEN,
    tokens_per_s=100.0,
    steps_per_s=0.5,
)
"""Layers 3 and 4. A fair share of an expert is an eighth of the tokens."""


@dataclass(frozen=True)
class Cause:
    """A deployment with something wrong.

    Attributes:
        alert: the one that is notified.
        plan: of the deployment, or of the replicas of a pool; the names are those of the causes.
        severity: of the notification.
        pinned: whether a baseline is pinned while all is well.
        fresh: whether it was never well.
        replicas: further deployments of its pool, which do well.
    """

    alert: str
    plan: Plan
    severity: str = "warning"
    pinned: bool = False
    fresh: bool = False
    replicas: int = 0

    @property
    def well(self) -> Plan:
        """The same deployment without the cause."""
        plan = self.plan
        return replace(HEALTHY, ranks=plan.ranks, shape=plan.shape, pool=plan.pool)

    def group(self, name: str) -> str:
        """The value of the label that the notification is grouped by: the deployment's name or the pool's."""
        of_pool = self.alert in ("MoescopeReplicaTokens", "MoescopeReplicaRouting")
        return self.plan.pool if of_pool else name


def _habits(**changed: float) -> Plan:
    return replace(HEALTHY, habits=replace(EVEN, **changed))


def _faults(**faulty: object) -> Plan:
    return replace(HEALTHY, faults=Faults(**faulty))  # type: ignore[arg-type]


HOT_FLEET = replace(
    HEALTHY,
    ranks=32,
    shape=Shape(layers=4, experts=64, top_k=4),
    habits=replace(EVEN, hot=0.5, hot_moves_s=STANDING),
)
"""In each of four layers half of the tokens choose one expert, eight times a fair share."""
BALANCE: dict[str, Cause] = {
    "hot-rank": Cause("MoescopeRankImbalance", replace(HEALTHY, ranks=4, hot_rank=2.0), "critical"),
    "slightly-hot-rank": Cause("MoescopeOneRankHottest", replace(HEALTHY, hot_rank=1.2), "info"),
    "crash-loop": Cause("MoescopeRestarts", _faults(restart_s=240.0)),
    "hot-in-single-steps": Cause("MoescopeStragglerCost", replace(HEALTHY, ranks=4, alternate=3.0)),
    "uneven-dp": Cause("MoescopeDpImbalance", replace(HEALTHY, ranks=4, rank_imbalance=3.0), "critical"),
    "hot-but-alone": Cause(
        "MoescopeHotExpert", replace(_habits(hot=0.8, hot_moves_s=STANDING), ranks=1), "info", pinned=True
    ),
    "newly-hot": Cause("MoescopeNewHotExperts", _habits(hot=0.44, hot_moves_s=STANDING), "info", pinned=True),
    "died": Cause("MoescopeExpertsDied", replace(_habits(dead=4), ranks=1), "info", pinned=True),
    "newly-dead": Cause("MoescopeNewDeadExperts", replace(_habits(dead=4), ranks=1), "info"),
    "drifted": Cause("MoescopeRoutingDrift", replace(_habits(shift=0.5), ranks=1), "info", pinned=True),
}
CAPTURE: dict[str, Cause] = {
    "uncovered": Cause("MoescopeUncoveredLayers", replace(HEALTHY, uncovered=(9,))),
    "absent": Cause("MoescopeAbsentLayers", replace(HEALTHY, absent=(9,))),
    "unseen": Cause("MoescopeUnseenLayers", _faults(unseen=(4,))),
    "miscounted": Cause("MoescopeConservationMismatch", _faults(miscounted=(4,))),
    "untold": Cause("MoescopeConservationUnknown", _faults(silent_tp=True)),
    "two-lives": Cause("MoescopeConflictingLives", _faults(twice=(1,))),
    "silent-rank": Cause("MoescopeStaleProducer", replace(HEALTHY, outages=(Outage(1, 300.0),))),
    "silent-fleet": Cause(
        "MoescopeStaleProducer", replace(HEALTHY, outages=(Outage(0, 300.0), Outage(1, 300.0)))
    ),
    "disabled": Cause("MoescopeCaptureDisabled", _faults(disabled=(1,))),
    "missing": Cause("MoescopeMissingRanks", _faults(missing=(1,)), fresh=True),
    "lost-steps": Cause("MoescopeStepsNotJoined", replace(_faults(no_loads=(1,)), steps_per_s=15.0), "info"),
    "dropping": Cause("MoescopeProducerDrops", _faults(drops_per_s=0.5)),
    "traces-lost": Cause("MoescopeTracesDropped", _faults(trace_drops_per_s=0.5), "info"),
}
REPLICAS: dict[str, Cause] = {
    "hot-expert": Cause("MoescopeRankImbalance", HOT_FLEET, "critical", pinned=True),
    "busy-replica": Cause(
        "MoescopeReplicaTokens",
        replace(HEALTHY, pool="shares", tokens_per_s=300.0),
        "critical",
        replicas=2,
    ),
    "uneven-replica": Cause(
        "MoescopeReplicaImbalance", replace(HEALTHY, pool="evenness", hot_rank=1.27), "info", replicas=2
    ),
    "other-replica": Cause(
        "MoescopeReplicaRouting",
        replace(_habits(shift=0.8), pool="routing", ranks=1),
        "info",
        replicas=2,
    ),
}
