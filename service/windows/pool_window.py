"""A pool in a window: the sums of its deployments, and which of them is not as its siblings are.

Siblings are the deployments of one role. What they have in common does not single one out: each is compared
with the others, never with an ideal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moescope.service.live.pools import Role
from moescope.service.windows.replica_window import Known, PhaseTokens, ReplicaWindow
from moescope.service.windows.routing_distance import PhaseLayer, divergences_of, phase_layers
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
    both = "prefill" in by_role and "decode" in by_role
    return PoolWindow(
        standings=tuple(found[id(item)] for item in replicas),
        sum=sum_of(replicas),
        roles={role: sum_of(by_role[role]) for role in sorted(by_role)},
        stand_out=tuple(stand_out),
        layers=tuple(phase_layers(by_role["prefill"], by_role["decode"])) if both else (),
    )


def sum_of(replicas: Sequence[ReplicaWindow]) -> TokenSum:
    """Tokens of several deployments."""
    unknown = {item.replica.deployment[0]: item.reason for item in replicas if item.reason}
    rates = [item.tokens_per_second for item in replicas if item.takes_part]
    lacking = next((rate.reason for rate in rates if rate.value is None), None)
    known = [rate.value for rate in rates if rate.value is not None]
    unphased = {item.replica.deployment[0]: item.phase_reason for item in replicas if item.phases is None}
    phases = [item.phases for item in replicas if item.phases is not None]
    both = PhaseTokens(sum(item.prefill for item in phases), sum(item.decode for item in phases))
    return TokenSum(
        tokens=sum(item.tokens for item in replicas),
        reason=_partial("the tokens", unknown),
        per_second=Known(sum(known)) if lacking is None else Known(None, lacking),
        phases=None if unphased else both,
        phase_reason=_partial("the phases", unphased),
    )


def _partial(what: str, unknown: Mapping[str, str | None]) -> str | None:
    if not unknown:
        return None
    why = next(iter(unknown.values()))
    return f"partial: {what} of {', '.join(sorted(unknown))} are not known ({why})"


def _standings(members: Sequence[ReplicaWindow]) -> list[Standing]:
    rates = [item.tokens_per_second.value for item in members if item.takes_part]
    known = [rate for rate in rates if rate is not None]
    mean = sum(known) / len(known) if known else 0.0
    divergences = divergences_of([item.routing for item in members])
    return [
        Standing(item, _share(item, mean, len(known)), divergence)
        for item, divergence in zip(members, divergences, strict=True)
    ]


def _share(item: ReplicaWindow, mean: float, number: int) -> Known:
    rate = item.tokens_per_second
    if not item.takes_part:
        return Known(None, "it is silent and computed nothing in the window")
    if rate.value is None:
        return rate
    if number < 2:
        return Known(None, "no sibling: no other deployment of the pool has its role and known tokens")
    return Known(rate.value / mean) if mean else Known(None, "idle: no tokens in the window")
