"""GET /v1/advice/rearrangements: what each rearrangement by EPLB promised, and what it gave."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from moescope.service.advice.achieved import rearrangements
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import MinTokensParam, ModelParam, ServerParam, choose
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
        min_tokens: MinTokensParam = None,
    ) -> Rearrangements:
        """Predicted against achieved balance of each change of the experts' placement, newest first.

        The service remembers the last 64 placements since its own start.
        """
        deployment = choose(state, server, model)
        gate = settings.min_tokens if min_tokens is None else min_tokens
        return Rearrangements(
            server=deployment[0],
            model=deployment[1],
            rearrangements=[
                RearrangementOut(**asdict(item)) for item in rearrangements(state, deployment, gate)
            ],
        )

    return router
