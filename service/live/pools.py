"""Pools: the live deployments of one model that an operator regards as one, by the name that they carry.

A name is never guessed: a deployment whose workers told none is in no pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from moescope.capture.wire import Producer
from moescope.service.live.producers import Deployment, ProducerState, heard_last, of_present_start

Role = Literal["", "prefill", "decode"]
"""What a deployment computes where prefill and decode are computed apart; empty: both, or it isn't known."""
ReplicaState = Literal["counting", "partial", "disabled", "stale", "conflict", "gone"]


@dataclass(frozen=True, slots=True)
class Replica:
    """One deployment, and where its operator put it.

    Attributes:
        deployment: (server, model).
        pool: name of its pool; empty: none.
        role: see :data:`Role`.
        producers: its workers, sorted by key; one at least.
    """

    deployment: Deployment
    pool: str
    role: Role
    producers: tuple[ProducerState, ...]

    @property
    def state(self) -> ReplicaState:
        """``counting``; ``partial``: some of its ranks don't count; ``disabled``, ``stale``: none does.
        ``conflict``: several live processes claim one of its ranks. ``gone``: it has shut down in order.

        Workers of a former start are left out, so a DP rank that has no other doesn't count.
        """
        if any(item.conflict is not None for item in self.producers):
            return "conflict"
        if all(item.gone for item in self.producers):
            return "gone"
        present = of_present_start([item for item in self.producers if item.gone is None])
        if all(item.state == "stale" for item in present):
            return "stale"
        counting = {item.latest.producer.dp_rank for item in present if item.state == "counting"}
        if not counting:
            return "disabled"
        whole = all(item.state == "counting" for item in present) and self._dp_ranks <= counting
        return "counting" if whole else "partial"

    @property
    def live(self) -> bool:
        """Whether it has a worker that has neither expired nor gone: one that shut down in order is gone."""
        return not all(item.expired or item.gone for item in self.producers)

    @property
    def missing_dp_ranks(self) -> list[int]:
        """DP ranks that should exist and never reported."""
        return sorted(self._dp_ranks - {item.latest.producer.dp_rank for item in self.producers})

    @property
    def _dp_ranks(self) -> set[int]:
        """The DP ranks that should exist."""
        return set(range(heard_last(self.producers).dp_size))

    @property
    def heard_at(self) -> float:
        """When the newest frame of its workers came, seconds of Unix time on the service's clock."""
        return max(item.received_at for item in self.producers)


def told_last(producers: Sequence[ProducerState]) -> Producer:
    """The worker of a deployment whose start is the newest: pool and role are what it says.

    They can't change while a worker lives. All workers of a start should say the same. If they don't, the
    word of the one that began last holds, so that it doesn't change with each frame.
    """
    newest = max(producers, key=lambda item: (item.started_at, item.latest.producer.key))
    return newest.latest.producer


def replica_of(producers: Sequence[ProducerState]) -> Replica:
    """One deployment.

    Args:
        producers: all its workers, one at least.
    """
    who = told_last(producers)
    return Replica(who.key[:2], who.pool, who.role, tuple(producers))


def known_replicas(producers: Iterable[ProducerState]) -> list[Replica]:
    """All deployments, those that are no longer live too.

    Args:
        producers: those of all deployments, sorted by key.
    """
    groups = groupby(producers, key=lambda item: item.latest.producer.key[:2])
    return [replica_of(list(group)) for _, group in groups]


def live_replicas(producers: Iterable[ProducerState]) -> list[Replica]:
    """The deployments that are live; see :func:`known_replicas`."""
    return [item for item in known_replicas(producers) if item.live]


def pools_of(replicas: Iterable[Replica]) -> dict[tuple[str, str], list[Replica]]:
    """(pool, model) to its deployments, both sorted; deployments without a pool are left out."""
    found: dict[tuple[str, str], list[Replica]] = {}
    for replica in replicas:
        if replica.pool:
            found.setdefault((replica.pool, replica.deployment[1]), []).append(replica)
    return {key: sorted(found[key], key=lambda item: item.deployment) for key in sorted(found)}
