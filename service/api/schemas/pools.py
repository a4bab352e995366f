"""What /v1/pools and /v1/pools/{pool} answer, as types."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from moescope.service.api.schemas.common import Window

RoleName = Literal["prefill", "decode"] | None
_ROLE = "What it computes where prefill and decode are computed apart; null: both, or it isn't known."
_STATE = (
    "counting: all its ranks do. partial: some of them don't count, or never reported. disabled, stale: none "
    "counts. conflict: several live processes claim one of its ranks (see /v1/ranks). gone: it has ended."
)


class KnownOut(BaseModel):
    """A number, or the reason why it isn't known."""

    value: float | None
    reason: str | None


class PhaseTokensOut(BaseModel):
    """Tokens by phase."""

    prefill: int
    decode: int


class SumOut(BaseModel):
    """Tokens of several deployments in a window."""

    tokens: int | None = Field(description="null for tokens_reason.")
    tokens_reason: str | None = Field(description="Why the tokens of some deployment aren't known, or null.")
    known_tokens: int = Field(description="Those that are known, also where `tokens` is null.")
    tokens_per_second: KnownOut
    phases: PhaseTokensOut | None = Field(description="null for phases_reason.")
    phases_reason: str | None


class RoleSum(SumOut):
    """Tokens of the deployments of one role."""

    role: RoleName = Field(description=_ROLE)
    servers: list[str] = Field(description="The deployments of the role.")


class Member(BaseModel):
    """A deployment of a pool, in the window."""

    server: str
    role: RoleName = Field(description=_ROLE)
    state: Literal["counting", "partial", "disabled", "stale", "conflict", "gone"] = Field(description=_STATE)
    dp_size: int
    ep_size: int
    missing_dp_ranks: list[int] = Field(description="DP ranks that should exist and never reported.")
    tokens: int | None = Field(description="Tokens computed in the window; null for tokens_reason.")
    tokens_reason: str | None
    tokens_per_second: KnownOut


class DivergenceOut(BaseModel):
    """Jensen-Shannon divergence of the experts' shares from those of the siblings together, bits."""

    median: float | None = Field(description="Over layers; null for reason.")
    worst: float | None = Field(description="The largest among layers.")
    worst_layer: int | None
    noise: float | None = Field(description="Median over layers of what sampling alone would show.")
    reason: str | None


class ReplicaOut(Member):
    """A deployment of a pool beside its siblings, which are the others of its role."""

    phases: PhaseTokensOut | None = Field(description="Its tokens by phase; null for phases_reason.")
    phases_reason: str | None
    tokens_over_mean: KnownOut = Field(
        description="Its tokens per second / the mean of all deployments of its role; 1 is a fair share."
    )
    ep_imbalance_ratio: KnownOut = Field(
        description="Sum over layers of the busiest EP rank's slots / sum of the mean; 1 is best."
    )
    worst_layer_imbalance_ratio: KnownOut = Field(description="Largest max / mean over EP ranks.")
    worst_layer: int | None = Field(description="The layer of worst_layer_imbalance_ratio.")
    dp_imbalance_ratio: KnownOut = Field(description="Max / mean of tokens over DP ranks; 1 is best.")
    max_vio: KnownOut = Field(description="Largest MaxVio over experts among layers; 0 is best.")
    max_vio_layer: int | None
    hot_experts: KnownOut = Field(description="Experts with 3 times a fair share or more, over all layers.")
    straggler_cost: KnownOut = Field(description="From joined steps, as in /v1/stragglers; 0 is best.")
    divergence: DivergenceOut


class StandsOutOut(BaseModel):
    """A deployment that is far from its siblings in one measure."""

    server: str
    measure: Literal[
        "tokens_over_mean",
        "ep_imbalance_ratio",
        "dp_imbalance_ratio",
        "max_vio",
        "straggler_cost",
        "divergence_bits",
    ]
    value: float
    siblings: float = Field(
        description="What it was compared with: the mean of its role (1), its siblings' median, or the "
        "divergence to expect by chance."
    )
    text: str = Field(description="The same in words.")


class PhaseLayerOut(BaseModel):
    """One layer: all prefill instances of the pool against all its decode instances."""

    layer: int
    prefill_tokens: int = Field(description="Tokens that the prefill instances had seen in the layer.")
    decode_tokens: int
    divergence: float | None = Field(
        description="Jensen-Shannon divergence of the experts' shares, bits; null for reason."
    )
    noise: float | None = Field(description="What sampling alone would show, bits.")
    reason: str | None


class PoolOut(SumOut):
    """A pool in a window: the sum of its live deployments and of those that counted in it."""

    pool: str
    model: str
    silent: list[str] = Field(description="Deployments that fell silent.")
    partial: list[str] = Field(description="Deployments some of whose ranks don't count or never reported.")
    disabled: list[str] = Field(description="Deployments whose capture is off.")
    conflict: list[str] = Field(
        description="Deployments with a rank that several live processes claim (see /v1/ranks)."
    )
    gone: list[str] = Field(description="Deployments that counted in the window and have shut down in order.")
    deployments: list[Member]


class Pools(BaseModel):
    """All pools that deployments name: live ones, and those that counted in the window that was asked."""

    start: float | None = Field(description="Asked begin of the window, Unix seconds; null: since the start.")
    end: float | None = Field(description="Asked end; null: now.")
    pools: list[PoolOut]
    without_pool: list[str] = Field(description="Live deployments that name no pool, by server.")


class PoolDetail(SumOut):
    """A pool in a window: its sum, its deployments beside each other, its phases layer by layer."""

    pool: str
    model: str
    window: Window
    min_tokens: int = Field(description="Fewer tokens than this are no sample of balance.")
    silent: list[str] = Field(description="Deployments that fell silent.")
    partial: list[str] = Field(description="Deployments some of whose ranks don't count or never reported.")
    disabled: list[str] = Field(description="Deployments whose capture is off.")
    conflict: list[str] = Field(
        description="Deployments with a rank that several live processes claim (see /v1/ranks)."
    )
    gone: list[str] = Field(description="Deployments that counted in the window and have shut down in order.")
    roles: list[RoleSum]
    deployments: list[ReplicaOut]
    stand_out: list[StandsOutOut] = Field(
        description="Deployments that are far from their siblings: docs/measures.md says how far that is."
    )
    layers: list[PhaseLayerOut] = Field(
        description="Prefill against decode, layer by layer; empty unless there are instances of both."
    )
