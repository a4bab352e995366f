"""What a metric family is; :mod:`moescope.service.metrics.catalogue` lists them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from moescope.service.settings import MetricsLevel

DEPLOYMENT: Final = ("server", "model")
DP: Final = (*DEPLOYMENT, "dp_rank")
EP: Final = (*DEPLOYMENT, "ep_rank")
LAYER: Final = (*DEPLOYMENT, "layer")
BASELINE: Final = (*DEPLOYMENT, "baseline", "phase")
STAGE: Final = (*DEPLOYMENT, "pp_rank")
WORKER: Final = (*DP, "pp_rank", "tp_rank")
PLACE: Final = ("pool", "role")
"""Labels that every series of a deployment has besides, if its workers name a pool or have a role."""

_LEVELS: Final = tuple(MetricsLevel)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family.

    Attributes:
        name: full name, with ``_total`` on counters.
        kind: its type.
        unit: base unit, which is the name's suffix (before ``_total``); empty for numbers without one.
        help: one sentence; what it counts, over what.
        labels: names of its labels; those of :data:`PLACE` are added where the family is by deployment.
        level: coarsest setting of ``metrics_level`` that shows it.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    level: MetricsLevel = MetricsLevel.RANK

    def shown(self, level: MetricsLevel) -> bool:
        """Whether it is shown at a level."""
        return self.rank <= _LEVELS.index(level)

    @property
    def by_deployment(self) -> bool:
        """Whether its series are of one deployment each."""
        return self.labels[: len(DEPLOYMENT)] == DEPLOYMENT

    @property
    def possible_labels(self) -> tuple[str, ...]:
        """All labels that a series of it may have."""
        return (*self.labels, *PLACE) if self.by_deployment else self.labels

    @property
    def rank(self) -> int:
        """Position of its level among the levels; coarser ones come first."""
        return _LEVELS.index(self.level)
