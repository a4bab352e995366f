"""GET /v1/stragglers: what waiting for the busiest EP rank costs, from single steps."""

from __future__ import annotations

from typing import Final

import numpy as np
from fastapi import APIRouter

from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    EndParam,
    LayerParam,
    ModelParam,
    PoolParam,
    ServerParam,
    StartParam,
    StepParam,
    check_known,
    choose,
    parse_bounds,
    parse_step,
)
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.stragglers import StageOut, StragglerInterval, StragglerLayer, Stragglers
from moescope.service.api.schemas.windows import (
    absent_out,
    known_layers,
    layers_now,
    partial_of,
    window_out,
)
from moescope.service.live.producers import ProducerSpan, heard_last, why_unavailable
from moescope.service.live.state import LiveState
from moescope.service.live.step_stage import Status
from moescope.service.live.walk import OneByOne
from moescope.service.measures.loads import max_and_mean
from moescope.service.windows.conflicts import conflicts_of
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.step_series import Interval, intervals_of
from moescope.service.windows.step_window import (
    Cost,
    LayerCost,
    StageSteps,
    cost_of,
    is_whole,
    straggler_cost,
    windowed_sums,
)
from moescope.service.windows.window import ModelWindow, merge_spans

MAX_WORK: Final = 1 << 16  # producers x intervals of a series
MAX_CELLS: Final = 1 << 23  # intervals x layers x EP ranks
_NO_COST: Final = Cost((), {})
_NO_LOADS: Final = (
    "no capturer tells the loads of single steps: they need expert parallelism over ranks, a known placement "
    "that stays (no EPLB), and moescope with wire 1.3 in vLLM's environment"
)


def stragglers_router(state: LiveState, turns: Turns) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["queries"], route_class=turns.route)

    @router.get("/v1/stragglers", responses=documented(400, 404, 422, 503))
    def stragglers(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        layer: LayerParam = None,
        start: StartParam = None,
        end: EndParam = None,
        step: StepParam = None,
    ) -> Stragglers:
        """Which share of MoE work time ranks wait for the busiest one, and which rank that was how often.

        It is computed from the steps of which the loads of all DP ranks are known. Beside it stands the share
        that the window's sums give.
        """
        now = state.now()
        bounds = parse_bounds(start, end, now)
        instants = parse_step(step, bounds, now)
        deployment = choose(state, server, model, pool)
        if instants:
            mine = state.producers(deployment)
            layers, ep_size = len(layers_now(state, deployment)), heard_last(mine).ep_size
            _check_size(len(mine), layers, ep_size, len(instants) - 1)
        ends, one_by_one = state.one_by_one(deployment, (bounds.start, *instants[1:-1], bounds.end))
        spans = [ProducerSpan(item, memory.whole()) for item, memory in ends]
        window, cost = merge_spans(spans), cost_of(spans)
        known = {item.shape.layer: item for item in window.layers}
        if layer:
            check_known("layer", layer, known_layers(window))
        joins = state.joins(deployment)
        stages = _stages(cost, joins)
        if window.conflict is not None:
            cost = _NO_COST
        costs = {item.layer: item for item in cost.layers}
        most, mean = cost.sums
        hottest = cost.hottest
        return Stragglers(
            server=window.server,
            model=window.model,
            window=window_out(window, bounds),
            ep_size=window.ep_size,
            partial=partial_of(state, window),
            stages=stages,
            straggler_cost=straggler_cost(most, mean),
            max_slots=most,
            mean_slots=mean,
            windowed_straggler_share=straggler_cost(*windowed_sums(window)),
            hottest=hottest.tolist(),
            caused=cost.caused.tolist(),
            hottest_rank=int(np.argmax(hottest)) if hottest.any() else None,
            layers=[
                _layer(item, costs.get(number))
                for number, item in known.items()
                if not layer or number in layer
            ],
            absent=absent_out(window),
            reason=_reason(window, cost, joins, why_unavailable((item.producer for item in spans), "steps")),
            series=_series(one_by_one, len(ends), window, instants) if instants else None,
        )

    return router


def _stages(cost: Cost, joins: dict[int, Status]) -> list[StageOut]:
    nothing = StageSteps(joined=0, incomplete=0)
    return [
        StageOut(
            pp_rank=rank,
            joined=cost.stages.get(rank, nothing).joined,
            incomplete=cost.stages.get(rank, nothing).incomplete,
            pending=joins[rank].pending if rank in joins else 0,
            reason=joins[rank].reason if rank in joins else None,
        )
        for rank in sorted({*cost.stages, *joins})
    ]


def _layer(layer: LayerWindow, cost: LayerCost | None) -> StragglerLayer:
    windowed = None
    if is_whole(layer):
        most, mean = max_and_mean(layer.ep_slots)
        windowed = None if np.isnan(most) else straggler_cost(float(most), float(mean))
    return StragglerLayer(
        layer=layer.shape.layer,
        steps=0 if cost is None else cost.busy_steps,
        max_slots=0 if cost is None else cost.max_slots,
        mean_slots=0.0 if cost is None else cost.mean_slots,
        straggler_cost=None if cost is None else straggler_cost(cost.max_slots, cost.mean_slots),
        windowed_straggler_share=windowed,
        hottest=[] if cost is None else cost.hottest.tolist(),
        caused=[] if cost is None else cost.caused.tolist(),
        hottest_rank=int(np.argmax(cost.hottest)) if cost is not None and cost.busy_steps else None,
        not_conserved=layer.not_conserved,
    )


def _reason(window: ModelWindow, cost: Cost, joins: dict[int, Status], told: str | None) -> str | None:
    """Why there is no cost, or None; `told`: why a worker can't tell the loads of its steps."""
    if window.conflict is not None:
        return window.conflict
    if cost.sums[0]:
        return None
    if window.ep_size == 1:
        return "ep_size is 1: the experts are not spread over ranks, so nobody waits"
    if told is not None:
        return f"no loads of single steps: {told}"
    if not joins and not cost.stages:
        return _NO_LOADS
    stuck = next((status.reason for status in joins.values() if status.reason), None)
    if stuck:
        return stuck
    if any(rank.tokens for rank in window.dp_ranks):
        return "no step of the window was joined, though tokens were computed: no loads of its steps came"
    return "idle: no step with tokens was joined in the window"


def _series(
    boundaries: OneByOne, producers: int, window: ModelWindow, instants: list[float]
) -> list[StragglerInterval]:
    """The window cut at the instants, each interval over the layers that are seen whole in the window.

    Raises:
        ProblemError: there would be too much to add up, with layers that only its past has.
    """
    whole = [layer.shape.layer for layer in window.layers if is_whole(layer)]
    _check_size(producers, len(whole), window.ep_size, len(instants) - 1)
    found = intervals_of(boundaries(), len(instants), whole, window.ep_size)
    conflicts = [None] * len(found) if window.conflict is None else conflicts_of(boundaries(), len(found))
    return [
        _interval(start, end, item, conflict)
        for start, end, item, conflict in zip(instants[:-1], instants[1:], found, conflicts, strict=True)
    ]


def _check_size(producers: int, layers: int, ep_size: int, intervals: int) -> None:
    """Check that there is not too much to add up.

    Raises:
        ProblemError: there is (400).
    """
    at_most = min(MAX_WORK // producers, MAX_CELLS // max(1, layers * ep_size))
    if intervals > at_most:
        raise ProblemError(
            400,
            "too-many-steps",
            "The series would take too long",
            f"{producers} producers, {ep_size} EP ranks, {intervals} intervals: ask for {at_most} intervals "
            "at most.",
        )


def _interval(start: float, end: float, found: Interval, conflict: str | None) -> StragglerInterval:
    cost = found.cost if conflict is None else _NO_COST
    hottest = cost.hottest
    return StragglerInterval(
        start=start,
        end=end,
        truncated=found.truncated,
        joined=sum(stage.joined for stage in found.cost.stages.values()),
        incomplete=sum(stage.incomplete for stage in found.cost.stages.values()),
        straggler_cost=straggler_cost(*cost.sums),
        windowed_straggler_share=straggler_cost(*found.windowed),
        hottest_rank=int(np.argmax(hottest)) if hottest.any() else None,
    )
