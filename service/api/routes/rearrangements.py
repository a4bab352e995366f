"""GET /v1/advice/rearrangements: what each rearrangement by EPLB promised, and what it gave."""

from __future__ import annotations

import math
from dataclasses import asdict

from fastapi import APIRouter

from moescope.service.advice.achieved import rearrangements
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    EndParam,
    MinTokensParam,
    ModelParam,
    PoolParam,
    ServerParam,
    StartParam,
    choose,
    parse_bounds,
)
from moescope.service.api.problems import documented
from moescope.service.api.schemas.advice import RearrangementOut, Rearrangements
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings


def rearrangements_router(state: LiveState, settings: Settings, turns: Turns) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["advice"], route_class=turns.route)

    @router.get("/v1/advice/rearrangements", responses=documented(400, 404, 422, 503))
    def get_rearrangements(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        start: StartParam = None,
        end: EndParam = None,
        min_tokens: MinTokensParam = None,
    ) -> Rearrangements:
        """Predicted against achieved balance of each change of the experts' placement, newest first.

        A window chooses those that the first worker reported in it. The service remembers the last 64
        placements since its own start.
        """
        deployment = choose(state, server, model, pool)
        bounds = parse_bounds(start, end, state.now())
        first, last = bounds.start or 0.0, math.inf if bounds.end is None else bounds.end
        gate = settings.min_tokens if min_tokens is None else min_tokens
        return Rearrangements(
            server=deployment[0],
            model=deployment[1],
            rearrangements=[
                RearrangementOut(**asdict(item))
                for item in rearrangements(state, deployment, gate)
                if first <= item.at <= last
            ],
        )

    return router
