"""GET /v1/advice/placement: a placement of experts as a map to use elsewhere."""

from __future__ import annotations

from fastapi import APIRouter

from moescope.service.advice import export
from moescope.service.advice.advise import PlacementWish, whole_placement
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.advice import (
    DEFAULT_START,
    AdviceStartParam,
    FormParam,
    GroupsParam,
    NodesParam,
    RanksParam,
    RedundantParam,
    StrategyParam,
    answerable,
)
from moescope.service.api.params.query import (
    EndParam,
    MinTokensParam,
    ModelParam,
    PoolParam,
    ServerParam,
    WeightsParam,
    choose,
    parse_bounds,
)
from moescope.service.api.problems import documented
from moescope.service.api.schemas.advice import AscendMap, PlacementMap, left_out_of
from moescope.service.api.schemas.windows import bounds_of_weights, window_out
from moescope.service.counts.weights import WeightsWish
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings


def placement_router(state: LiveState, settings: Settings, turns: Turns) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["advice"], route_class=turns.route)

    @router.get("/v1/advice/placement", responses=documented(400, 404, 422, 503))
    def get_placement(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        start: AdviceStartParam = DEFAULT_START,
        end: EndParam = None,
        ranks: RanksParam = None,
        nodes: NodesParam = None,
        groups: GroupsParam = 1,
        strategy: StrategyParam = "eplb",
        redundant: RedundantParam = 0,
        form: FormParam = "map",
        min_tokens: MinTokensParam = None,
        weights: WeightsParam = WeightsWish.LATEST,
    ) -> PlacementMap | AscendMap:
        """A placement as a map to use elsewhere, fitted on the whole window."""
        deployment = choose(state, server, model, pool)
        bounds = bounds_of_weights(state, deployment, parse_bounds(start, end, state.now()), weights)
        wish = PlacementWish(
            ranks=ranks,
            nodes=nodes,
            groups=groups,
            redundant=(redundant,),
            min_tokens=settings.min_tokens if min_tokens is None else min_tokens,
        )
        with answerable():
            window, layers, left_out, placement = whole_placement(
                state, deployment, bounds.start, bounds.end, wish, strategy
            )
        if form == "vllm-ascend":
            return AscendMap(**export.ascend_map(placement))
        return PlacementMap(
            server=deployment[0],
            model=deployment[1],
            strategy=strategy,
            redundant=redundant if strategy == "eplb" else 0,
            window=window_out(window, bounds),
            left_out=left_out_of(left_out),
            **export.placement_map(layers, placement),
        )

    return router
