"""GET /v1/verdict: what is the matter, in words, and what to do."""

from __future__ import annotations

from fastapi import APIRouter

from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    EndParam,
    ModelParam,
    PoolParam,
    ServerParam,
    StartParam,
    choose,
    parse_bounds,
)
from moescope.service.api.problems import documented
from moescope.service.api.schemas.verdict import Verdicts, verdict_out
from moescope.service.api.schemas.windows import partial_of, partial_over_stages
from moescope.service.drift.watch import DriftWatch
from moescope.service.live.pools import Replica, known_replicas
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.verdict.desk import Firsts, VerdictDesk
from moescope.service.verdict.model import SEVERITIES, Verdict
from moescope.service.windows.health import silent_stages
from moescope.service.windows.window import ModelWindow

_NOBODY = (
    "No deployment has reported yet: start vLLM with moescope installed beside it, MOESCOPE=1 and "
    "MOESCOPE_ENDPOINT set to the address of this service."
)


def verdict_router(state: LiveState, settings: Settings, drift: DriftWatch, turns: Turns) -> APIRouter:
    """The route over ``state``."""

    def partial(window: ModelWindow) -> str | None:
        silent = silent_stages(state.producers((window.server, window.model)))
        return partial_over_stages(partial_of(state, window), silent)

    desk = VerdictDesk(state, drift, settings.min_tokens, partial)
    router = APIRouter(tags=["queries"], route_class=turns.route)

    @router.get("/v1/verdict", responses=documented(400, 404, 422, 503))
    def verdict(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        start: StartParam = None,
        end: EndParam = None,
    ) -> Verdicts:
        """What is the matter with each deployment, what that rests on, and what to do.

        Without `start` the window is as long as that of the gauges (`window_s`, a minute). Deployments that
        are no longer there are left out unless they are named, or there is no other. What advice says is made
        for two deployments at a time; of the others a verdict says that it is being made.
        """
        now = state.now()
        bounds = parse_bounds(start, end, now)
        begin = bounds.start
        if not start:
            begin = max(0.0, (now if bounds.end is None else min(bounds.end, now)) - settings.window_s)
        firsts = Firsts()
        found = [
            desk.verdict(
                item.deployment, begin, bounds.end, (item.deployment, start or "", end or ""), firsts
            )
            for item in _meant(state, server, model, pool)
        ]
        found.sort(key=lambda item: (-SEVERITIES.index(item.finding.severity), item.server, item.model))
        return Verdicts(
            now=now,
            severity=found[0].finding.severity if found else "info",
            words=_line(found),
            verdicts=[verdict_out(item) for item in found],
        )

    return router


def _meant(state: LiveState, server: str | None, model: str | None, pool: str | None) -> list[Replica]:
    """The deployments that a question is about.

    Raises:
        ProblemError: none has these names (404).
    """
    known = [
        item
        for item in known_replicas(state.producers())
        if server in (None, item.deployment[0])
        and model in (None, item.deployment[1])
        and pool in (None, item.pool)
    ]
    if not known and (server, model, pool) != (None, None, None):
        choose(state, server, model, pool)
    return [item for item in known if item.live] or known


def _line(found: list[Verdict]) -> str:
    if not found:
        return _NOBODY
    first = found[0]
    others = f" ({len(found) - 1} more)" if len(found) > 1 else ""
    return f"{first.model} on {first.server}: {first.finding.words}{others}"
