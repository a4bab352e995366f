"""GET /v1/advice/placement: a placement of experts as a map to use elsewhere."""

from __future__ import annotations

from fastapi import APIRouter

from moescope.service.advice import export
from moescope.service.advice.advise import PlacementWish
from moescope.service.advice.whole import Whole, whole_placement
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.advice import (
    DEFAULT_START,
    AdviceStartParam,
    FormParam,
    GroupsParam,
    NodesParam,
    PolicyParam,
    PpRankParam,
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
    choose,
    parse_bounds,
)
from moescope.service.api.problems import documented
from moescope.service.api.schemas.advice import AscendMap, DoubleOut, PlacementMap, left_out_of
from moescope.service.api.schemas.windows import absent_out, partial_of, partial_over_stages, window_out
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
        policy: PolicyParam = "moescope",
        redundant: RedundantParam = 0,
        form: FormParam = "map",
        pp_rank: PpRankParam = None,
        min_tokens: MinTokensParam = None,
    ) -> PlacementMap | AscendMap:
        """A placement as a map to use elsewhere, fitted on the whole window."""
        deployment = choose(state, server, model, pool)
        bounds = parse_bounds(start, end, state.now())
        wish = PlacementWish(
            ranks=ranks,
            nodes=nodes,
            groups=groups,
            redundant=(redundant,),
            min_tokens=settings.min_tokens if min_tokens is None else min_tokens,
        )
        with answerable():
            whole = whole_placement(
                state,
                deployment,
                bounds.start,
                bounds.end,
                wish,
                strategy=strategy,
                policy=policy,
                pp_rank=pp_rank,
            )
            if form == "vllm-ascend":
                export.check_ascend(whole)
                return AscendMap(**export.ascend_map(whole.placement))
        return PlacementMap(
            server=deployment[0],
            model=deployment[1],
            strategy=strategy,
            policy=policy if strategy == "eplb" else None,
            redundant=redundant if strategy == "eplb" else 0,
            window=window_out(whole.window, bounds),
            partial=partial_over_stages(partial_of(state, whole.window), whole.silent_stages),
            left_out=left_out_of(whole.left_out),
            absent=absent_out(whole.window),
            doubles=_doubles(whole),
            **export.placement_map(whole.layers, whole.placement),
        )

    return router


def _doubles(whole: Whole) -> list[DoubleOut]:
    return [
        DoubleOut(layer=whole.layers[item.row], ep_rank=item.rank, expert=item.expert, copies=item.copies)
        for item in whole.placement.doubles()
    ]
