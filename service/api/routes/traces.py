"""GET /v1/traces lists stored routing traces."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    LARGEST,
    DpRankParam,
    EndParam,
    ModelParam,
    ServerParam,
    StartParam,
    parse_bounds,
)
from moescope.service.api.params.stored import existing, parse_cursor
from moescope.service.api.params.traced import (
    TracedPoolParam,
)
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.traces import TracePage, trace_out
from moescope.service.live.state import LiveState
from moescope.service.store.interface import Store
from moescope.service.store.records import TracedRequest, TraceQuery

RequestIdParam = Annotated[str | None, Query(description="Any id that finds it.")]
MinTokensParam = Annotated[int, Query(ge=1, le=LARGEST, description="Only with so many tokens computed.")]
HitLayerParam = Annotated[
    int | None, Query(ge=0, le=LARGEST, description="With expert: the layer it was taken in.")
]
HitExpertParam = Annotated[
    int | None, Query(ge=0, le=LARGEST, description="Only those that took this expert.")
]
WeightsVersionParam = Annotated[
    int | None,
    Query(ge=0, le=LARGEST, description="Only those that this version of the weights computed a token of."),
]
LimitParam = Annotated[int, Query(ge=1, le=1000, description="Size of a page.")]
CursorParam = Annotated[str | None, Query(description="next_cursor of the page before.")]


def traces_router(state: LiveState, store: Store | None, turns: Turns) -> APIRouter:
    """The route that answers from ``store``; ``state`` tells the time."""
    router = APIRouter(tags=["traces"], route_class=turns.route)

    @router.get("/v1/traces", responses=documented(400, 404, 422, 503))
    def traces(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: TracedPoolParam = None,
        dp_rank: DpRankParam = None,
        request_id: RequestIdParam = None,
        start: StartParam = None,
        end: EndParam = None,
        min_tokens: MinTokensParam = 1,
        layer: HitLayerParam = None,
        expert: HitExpertParam = None,
        weights_version: WeightsVersionParam = None,
        limit: LimitParam = 100,
        cursor: CursorParam = None,
    ) -> TracePage:
        """Traced requests, newest first, by when they were stored."""
        if (layer is None) != (expert is None):
            raise ProblemError(400, "half-a-hit", "Only half of a hit", "Give layer and expert together.")
        bounds = parse_bounds(start, end, state.now())
        query = TraceQuery(
            server=server,
            model=model,
            pool=pool,
            dp_rank=dp_rank,
            name=request_id,
            start=bounds.start,
            end=bounds.end,
            min_tokens=min_tokens,
            layer=layer,
            expert=expert,
            before=parse_cursor(cursor),
            weights_version=weights_version,
            taken_over=False,
            limit=limit + 1,  # one more tells whether there is a next page
        )
        return _page(existing(store).traced_requests(query), limit)

    return router


def _page(found: list[TracedRequest], limit: int) -> TracePage:
    """The first ``limit`` of the requests found; if there are more, with a cursor to go on."""
    more = str(found[limit - 1].number) if len(found) > limit else None
    return TracePage(traces=[trace_out(item) for item in found[:limit]], next_cursor=more)
