"""One deployment of a pool beside its siblings, and whether it stands out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from moescope.service.measures.chance import above_mean_by_chance
from moescope.service.windows.replica_window import Known, ReplicaWindow
from moescope.service.windows.routing_distance import Divergence

LEAST_SHARE: Final = 0.5
"""A replica stands out with tokens per second below so many times the mean of its role."""
MOST_SHARE: Final = 1.5
"""The same, above."""
FAR_RATIO: Final = 1.25
"""An imbalance ratio this many times its siblings' median stands out."""
FAR_MAX_VIO: Final = 1.0
"""A MaxVio this much above its siblings' median stands out: one more fair share on one expert."""
FAR_COST: Final = 0.1
"""A straggler cost this much above its siblings' median stands out."""
FAR_BITS: Final = 0.05
"""A median divergence from its siblings of so many bits stands out, if it is also beyond chance."""
CHANCE: Final = 2.0
"""Loads are enough to compare if so many times what chance makes of them is below the threshold."""
BEYOND_CHANCE: Final = 4.0
"""Multiple of the sampling noise from which a divergence is beyond chance."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One deployment beside its siblings.

    Attributes:
        own: what it counted.
        share: its tokens per second / the mean of its own and its siblings'.
        divergence: of its routing from theirs.
    """

    own: ReplicaWindow
    share: Known
    divergence: Divergence


@dataclass(frozen=True, slots=True)
class StandsOut:
    """A replica that is far from its siblings in a measure; ``siblings`` is what it was compared with."""

    server: str
    measure: str
    value: float
    siblings: float
    text: str


def stand_out_of(standings: Sequence[Standing]) -> list[StandsOut]:
    """Who is far from its siblings, in which measure; those that are left out are no siblings."""
    standings = [item for item in standings if item.own.left_out is None]
    found: list[StandsOut] = []
    shares = [(item, item.share.value) for item in standings if item.share.value is not None]
    for item, share in sorted(shares, key=lambda pair: abs(pair[1] - 1), reverse=True):
        if not LEAST_SHARE < share < MOST_SHARE:
            text = f"{share:.2f} times the mean tokens per second of its role"
            found.append(StandsOut(_server(item), "tokens_over_mean", share, 1.0, text))
    for measure in _MEASURES:
        found += _far(standings, measure)
    for item in standings:
        bits, noise = item.divergence.median, item.divergence.noise
        if bits is not None and noise is not None and bits >= max(FAR_BITS, BEYOND_CHANCE * noise):
            text = (
                f"its tokens choose other experts: median divergence {bits:.3f} bits, by chance {noise:.3f}"
            )
            found.append(StandsOut(_server(item), "divergence_bits", bits, noise, text))
    return found


def _server(item: Standing) -> str:
    return item.own.replica.deployment[0]


def _far(standings: Sequence[Standing], measure: _Measure) -> list[StandsOut]:
    """Who is far above its siblings in a measure, the furthest first; not with too few loads."""
    values = [(item, measure.of(item.own).value) for item in standings if measure.enough(item)]
    known = [(item, value) for item, value in values if value is not None]
    found = []
    for item, value in sorted(known, key=lambda pair: -pair[1]):
        others = [other for sibling, other in known if sibling is not item]
        if others and value >= measure.far(median(others)):
            text = f"{measure.title} {value:.2f}, its siblings' median {median(others):.2f}"
            found.append(StandsOut(_server(item), measure.name, value, median(others), text))
    return found


@dataclass(frozen=True, slots=True)
class _Measure:
    """A measure of a replica, and from which value on it stands out, given its siblings' median.

    ``enough`` says whether a replica has loads enough, so that it is not chance that makes it stand out.
    """

    name: str
    title: str
    of: Callable[[ReplicaWindow], Known]
    far: Callable[[float], float]
    enough: Callable[[Standing], bool]


def _enough_over_ep(item: Standing) -> bool:
    """In a layer of mean load: the measure is a ratio of sums of what chance makes of each layer."""
    by_layer = [int(layer.counts.sum()) for layer in item.own.routing.values()]
    layers = [slots for slots in by_layer if slots]
    slots = sum(layers) / len(layers) if layers else 0.0
    return CHANCE * above_mean_by_chance(slots, item.own.ep_size) <= FAR_RATIO - 1


def _enough_over_dp(item: Standing) -> bool:
    return CHANCE * above_mean_by_chance(item.own.tokens, item.own.dp_size) <= FAR_RATIO - 1


def _enough_over_experts(item: Standing) -> bool:
    worst = item.own.max_vio_layer
    if worst is None:
        return False
    slots = item.own.routing[worst].counts
    return CHANCE * above_mean_by_chance(int(slots.sum()), len(slots)) <= FAR_MAX_VIO


def _enough_in_steps(item: Standing) -> bool:
    """With far fewer tokens than its siblings its steps are small, which is what makes them uneven."""
    return item.share.value is not None and item.share.value > LEAST_SHARE


_MEASURES: Final = (
    _Measure(
        "ep_imbalance_ratio",
        "imbalance over EP ranks",
        lambda item: item.ep_imbalance,
        lambda siblings: FAR_RATIO * siblings,
        _enough_over_ep,
    ),
    _Measure(
        "dp_imbalance_ratio",
        "imbalance over DP ranks",
        lambda item: item.dp_imbalance,
        lambda siblings: FAR_RATIO * siblings,
        _enough_over_dp,
    ),
    _Measure(
        "max_vio",
        "MaxVio of its worst layer",
        lambda item: item.max_vio,
        lambda siblings: siblings + FAR_MAX_VIO,
        _enough_over_experts,
    ),
    _Measure(
        "straggler_cost",
        "straggler cost",
        lambda item: item.straggler_cost,
        lambda siblings: siblings + FAR_COST,
        _enough_in_steps,
    ),
)
