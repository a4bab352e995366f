"""GET /v1/pools: replicas of one model side by side; which of them is the problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fastapi import APIRouter

from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    Bounds,
    EndParam,
    MinTokensParam,
    ModelParam,
    StartParam,
    parse_bounds,
)
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.common import Span, Window
from moescope.service.api.schemas.pools import (
    DivergenceOut,
    KnownOut,
    Member,
    PhaseLayerOut,
    PhaseTokensOut,
    PoolDetail,
    PoolOut,
    Pools,
    ReplicaOut,
    RoleSum,
    StandsOutOut,
)
from moescope.service.live.pools import Replica, known_replicas, pools_of
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.pool_window import PoolWindow, TokenSum, pool_window, sum_of
from moescope.service.windows.replica_window import Known, PhaseTokens, ReplicaWindow, replica_window
from moescope.service.windows.standing import Standing


def pools_router(state: LiveState, settings: Settings, turns: Turns) -> APIRouter:
    """The routes over ``state``."""
    router = APIRouter(tags=["queries"], route_class=turns.route)

    @router.get("/v1/pools", responses=documented(400, 422, 503))
    def pools(model: ModelParam = None, start: StartParam = None, end: EndParam = None) -> Pools:
        """All pools: the sums of their deployments, and who is in them."""
        bounds = parse_bounds(start, end, state.now())
        known = _in_window(state, bounds)
        found = []
        for (pool, named), members in pools_of(known).items():
            if model in (None, named):
                windows = _windows(state, members, bounds, settings.min_tokens)
                found.append(_pool(pool, named, windows))
        without = [item for item in known if not item.pool and model in (None, item.deployment[1])]
        return Pools(
            start=bounds.start,
            end=bounds.end,
            pools=found,
            without_pool=sorted(item.deployment[0] for item in without),
        )

    @router.get("/v1/pools/{pool:path}", responses=documented(400, 404, 422, 503))
    def one_pool(
        pool: str,
        model: ModelParam = None,
        start: StartParam = None,
        end: EndParam = None,
        min_tokens: MinTokensParam = None,
    ) -> PoolDetail:
        """One pool: its deployments beside each other, and its phases where instances compute only one."""
        bounds = parse_bounds(start, end, state.now())
        named, members = _chosen(state, pool, model, bounds)
        gate = settings.min_tokens if min_tokens is None else min_tokens
        windows = _windows(state, members, bounds, gate)
        return _detail(pool, named, windows, bounds, gate)

    return router


def _in_window(state: LiveState, bounds: Bounds) -> list[Replica]:
    """The live deployments; in a window with a begin or an end also the others of a pool that counted in it.

    So a past window stays as it is when one of them ends.
    """
    unbounded = bounds.start is None and bounds.end is None
    return [
        item
        for item in known_replicas(state.producers())
        if item.live or (item.pool and not unbounded and _has_counted(state, item, bounds))
    ]


def _has_counted(state: LiveState, replica: Replica, bounds: Bounds) -> bool:
    spans = [item.span for item in state.spans(replica.deployment, bounds.start, bounds.end)]
    return any(span.last.tokens > span.tokens_before for span in spans)


def _chosen(state: LiveState, pool: str, model: str | None, bounds: Bounds) -> tuple[str, list[Replica]]:
    """The model and the deployments of the pool that is meant.

    Raises:
        ProblemError: there is no such pool (404), or it has several models (400).
    """
    known = pools_of(_in_window(state, bounds))
    found = {key: members for key, members in known.items() if key[0] == pool and model in (None, key[1])}
    if len(found) == 1:
        [((_, named), members)] = found.items()
        return named, members
    listing = ", ".join(f"pool={name} model={named}" for name, named in found or known)
    if found:
        raise ProblemError(
            400, "several-pools", "The pool has several models", f"Choose one by model: {listing}."
        )
    if known:
        raise ProblemError(404, "no-such-pool", "No such pool", f"There are: {listing}.")
    raise ProblemError(
        404,
        "no-pools",
        "No deployment names a pool",
        "Set MOESCOPE_POOL in the environment of vLLM to one name for all replicas of a model.",
    )


def _windows(
    state: LiveState, members: Sequence[Replica], bounds: Bounds, min_tokens: int
) -> list[ReplicaWindow]:
    """Each deployment in the window: one after the other, since each takes much memory for a moment."""
    now = state.now()
    end = now if bounds.end is None else min(bounds.end, now)
    found = []
    for replica in members:
        spans = state.spans(replica.deployment, bounds.start, bounds.end)
        if spans:
            found.append(replica_window(replica, spans, end, min_tokens))
    return found


def _pool(pool: str, model: str, windows: Sequence[ReplicaWindow]) -> PoolOut:
    members = [Member(**_member(item)) for item in windows]
    return PoolOut(pool=pool, model=model, deployments=members, **_sum(sum_of(windows)), **_states(windows))


def _detail(
    pool: str, model: str, windows: Sequence[ReplicaWindow], bounds: Bounds, min_tokens: int
) -> PoolDetail:
    found = pool_window(windows)
    return PoolDetail(
        pool=pool,
        model=model,
        window=_window(windows, bounds),
        min_tokens=min_tokens,
        roles=_roles(found),
        deployments=[_replica(item) for item in found.standings],
        stand_out=[StandsOutOut.model_validate(item, from_attributes=True) for item in found.stand_out],
        layers=[PhaseLayerOut.model_validate(item, from_attributes=True) for item in found.layers],
        **_sum(found.sum),
        **_states(windows),
    )


def _roles(found: PoolWindow) -> list[RoleSum]:
    return [
        RoleSum(
            role=role or None,
            servers=[_server(item.own) for item in found.standings if item.own.replica.role == role],
            **_sum(total),
        )
        for role, total in found.roles.items()
    ]


def _server(item: ReplicaWindow) -> str:
    return item.replica.deployment[0]


_STATES: Final = (
    ("silent", "stale"),
    ("partial", "partial"),
    ("disabled", "disabled"),
    ("conflict", "conflict"),
    ("gone", "gone"),
)


def _states(windows: Sequence[ReplicaWindow]) -> dict[str, Any]:
    """The deployments that don't count whole."""
    return {
        name: [_server(item) for item in windows if item.replica.state == state] for name, state in _STATES
    }


def _sum(total: TokenSum) -> dict[str, Any]:
    return {
        "tokens": None if total.reason else total.tokens,
        "tokens_reason": total.reason,
        "known_tokens": total.tokens,
        "tokens_per_second": _known(total.per_second),
        "phases": _phases(total.phases),
        "phases_reason": total.phase_reason,
    }


def _member(item: ReplicaWindow) -> dict[str, Any]:
    return {
        "server": _server(item),
        "role": item.replica.role or None,
        "state": item.replica.state,
        "dp_size": item.dp_size,
        "ep_size": item.ep_size,
        "missing_dp_ranks": item.replica.missing_dp_ranks,
        "tokens": None if item.reason else item.tokens,
        "tokens_reason": item.reason,
        "tokens_per_second": _known(item.tokens_per_second),
    }


def _replica(item: Standing) -> ReplicaOut:
    own = item.own
    return ReplicaOut(
        **_member(own),
        phases=_phases(own.phases),
        phases_reason=own.phase_reason,
        tokens_over_mean=_known(item.share),
        ep_imbalance_ratio=_known(own.ep_imbalance),
        worst_layer_imbalance_ratio=_known(own.worst_layer_imbalance),
        worst_layer=own.worst_layer,
        dp_imbalance_ratio=_known(own.dp_imbalance),
        max_vio=_known(own.max_vio),
        max_vio_layer=own.max_vio_layer,
        hot_experts=_known(own.hot_experts),
        straggler_cost=_known(own.straggler_cost),
        divergence=DivergenceOut.model_validate(item.divergence, from_attributes=True),
    )


def _known(found: Known) -> KnownOut:
    return KnownOut(value=found.value, reason=found.reason)


def _phases(found: PhaseTokens | None) -> PhaseTokensOut | None:
    return None if found is None else PhaseTokensOut(prefill=found.prefill, decode=found.decode)


def _window(windows: Sequence[ReplicaWindow], bounds: Bounds) -> Window:
    used = [item.used for item in windows]
    return Window(
        start=bounds.start,
        end=bounds.end,
        used_start=Span(
            earliest=min(item.start_earliest for item in used),
            latest=max(item.start_latest for item in used),
        ),
        used_end=Span(
            earliest=min(item.end_earliest for item in used),
            latest=max(item.end_latest for item in used),
        ),
        truncated=any(item.truncated for item in used),
        weights=next((item.weights for item in windows if item.weights), None),
    )
