"""A pool in a window: the sums of its deployments, and which of them is not as its siblings are.

Siblings are the deployments of one role. What they have in common does not single one out: each is compared
with the others, never with an ideal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moescope.service.live.pools import Role
from moescope.service.windows.replica_window import Known, PhaseTokens, ReplicaWindow
from moescope.service.windows.routing_distance import Divergence, PhaseLayer, divergences_of, phase_layers
from moescope.service.windows.standing import Standing, StandsOut, stand_out_of


@dataclass(frozen=True, slots=True)
class TokenSum:
    """Tokens of several deployments, as far as they are known; the reasons say why not all of them are."""

    tokens: int
    reason: str | None
    per_second: Known
    phases: PhaseTokens | None
    phase_reason: str | None


@dataclass(frozen=True, slots=True)
class PoolWindow:
    """A pool in a window.

    ``roles`` has the roles that there are; ``layers`` is empty unless the pool has both prefill and decode
    instances. ``stand_out`` has what is furthest from its siblings first within each measure.
    """

    standings: tuple[Standing, ...]
    sum: TokenSum
    roles: Mapping[Role, TokenSum]
    stand_out: tuple[StandsOut, ...]
    layers: tuple[PhaseLayer, ...]


def pool_window(replicas: Sequence[ReplicaWindow]) -> PoolWindow:
    """Compare the deployments of one pool and model; one at least."""
    by_role: dict[Role, list[ReplicaWindow]] = {}
    for item in replicas:
        by_role.setdefault(item.replica.role, []).append(item)
    found: dict[int, Standing] = {}
    stand_out: list[StandsOut] = []
    for members in by_role.values():
        standings = _standings(members)
        found.update({id(item.own): item for item in standings})
        stand_out += stand_out_of(standings)
    seconds = _longest(replicas)
    both = "prefill" in by_role and "decode" in by_role
    return PoolWindow(
        standings=tuple(found[id(item)] for item in replicas),
        sum=sum_of(replicas),
        roles={role: _sum(by_role[role], seconds) for role in sorted(by_role)},
        stand_out=tuple(stand_out),
        layers=tuple(phase_layers(by_role["prefill"], by_role["decode"])) if both else (),
    )


def sum_of(replicas: Sequence[ReplicaWindow]) -> TokenSum:
    """Tokens of all deployments of a pool."""
    return _sum(replicas, _longest(replicas))


def _longest(replicas: Sequence[ReplicaWindow]) -> float:
    return max((item.seconds for item in replicas), default=0.0)


def _sum(replicas: Sequence[ReplicaWindow], seconds: float) -> TokenSum:
    """Tokens of several deployments; ``seconds`` is the longest time in which one of the pool counted."""
    unknown = {item.replica.deployment[0]: item.reason for item in replicas if item.reason}
    tokens = sum(item.tokens for item in replicas)
    unphased = {item.replica.deployment[0]: item.phase_reason for item in replicas if item.phases is None}
    phases = [item.phases for item in replicas if item.phases is not None]
    both = PhaseTokens(sum(item.prefill for item in phases), sum(item.decode for item in phases))
    return TokenSum(
        tokens=tokens,
        reason=_partial("the tokens", unknown),
        per_second=_per_second(tokens, seconds, next(iter(unknown.values()), None)),
        phases=None if unphased else both,
        phase_reason=_partial("the phases", unphased),
    )


def _per_second(tokens: int, seconds: float, unknown: str | None) -> Known:
    if unknown is not None:
        return Known(None, unknown)
    if seconds <= 0:
        return Known(None, "no time: its deployments reported once, or not in the window")
    return Known(tokens / seconds)


def _partial(what: str, unknown: Mapping[str, str | None]) -> str | None:
    if not unknown:
        return None
    why = next(iter(unknown.values()))
    return f"partial: {what} of {', '.join(sorted(unknown))} are not known ({why})"


def _standings(members: Sequence[ReplicaWindow]) -> list[Standing]:
    compared = [item for item in members if item.left_out is None]
    rates = [item.tokens_per_second.value for item in compared]
    known = [rate for rate in rates if rate is not None]
    mean = sum(known) / len(known) if known else 0.0
    found = divergences_of([item.routing for item in compared])
    divergences = {id(item): divergence for item, divergence in zip(compared, found, strict=True)}
    return [
        Standing(item, _share(item, mean, len(known)), divergences.get(id(item)) or _no_divergence(item))
        for item in members
    ]


def _no_divergence(item: ReplicaWindow) -> Divergence:
    return Divergence(None, None, None, None, {}, item.left_out)


def _share(item: ReplicaWindow, mean: float, number: int) -> Known:
    rate = item.tokens_per_second
    if item.left_out is not None:
        return Known(None, item.left_out)
    if rate.value is None:
        return rate
    if number < 2:
        return Known(None, "no sibling: no other deployment of the pool has its role and known tokens")
    return Known(rate.value / mean) if mean else Known(None, "idle: no tokens in the window")
