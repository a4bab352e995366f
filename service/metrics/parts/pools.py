"""The parts of the catalogue about pools: what a deployment is beside its siblings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from moescope.service.live.pools import Replica
from moescope.service.metrics.parts.ranks import Found
from moescope.service.metrics.samples import Pairs, Sample
from moescope.service.windows.replica_window import LayerRouting
from moescope.service.windows.routing_distance import divergences_of


def labels_of(replica: Replica) -> Pairs:
    """The labels that series of a deployment have besides those of their family.

    To Prometheus a label without a value is no label. So who names no pool and no role sees none.
    """
    found = ("pool", replica.pool), ("role", replica.role)
    return tuple((name, value) for name, value in found if value)


def replica_gauges(routings: Sequence[tuple[Replica, Mapping[int, LayerRouting]]]) -> Iterable[Found]:
    """How far each deployment's routing is from that of its siblings; nothing for those without any.

    Args:
        routings: the deployments that are in a pool, each with what its tokens of the window chose.
    """
    siblings: dict[tuple[str, str, str], list[tuple[Replica, Mapping[int, LayerRouting]]]] = {}
    for replica, routing in routings:
        key = (replica.pool, replica.deployment[1], replica.role)
        siblings.setdefault(key, []).append((replica, routing))
    for members in siblings.values():
        found = divergences_of([routing for _, routing in members])
        for (replica, _), divergence in zip(members, found, strict=True):
            if divergence.median is not None and divergence.noise is not None:
                labels = replica.deployment
                yield Sample("moescope_replica_divergence_bits", labels, divergence.median)
                yield Sample("moescope_replica_sampling_noise_bits", labels, divergence.noise)
