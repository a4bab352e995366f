"""/v1/baselines: routing pinned under a name, to compare later routing with."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool

from moescope.service.api.limits.keeping import Keeper
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.api.params.query import ModelParam, ServerParam, choose, parse_bounds
from moescope.service.api.params.stored import find_baseline
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.drift import (
    BaselineDetail,
    BaselineLayer,
    BaselineOut,
    Baselines,
    PinBaseline,
)
from moescope.service.api.schemas.windows import bounds_of_weights
from moescope.service.counts.phase_split import Phase
from moescope.service.drift.baseline import (
    PREVIOUS_HOUR,
    Baseline,
    BaselineBook,
    BaselineError,
    baseline_of,
    removal,
)
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.phase_window import merge_spans_of_phase
from moescope.service.windows.weights import changed_at


def baselines_router(
    state: LiveState, settings: Settings, book: BaselineBook, keeper: Keeper, turns: Turns
) -> APIRouter:
    """The routes over ``book``, which pin windows of ``state`` in a turn and keep them with ``keeper``."""
    router = APIRouter(tags=["drift"], route_class=CheckedRoute)

    @router.post("/v1/baselines", status_code=201, responses=documented(400, 401, 404, 409, 422, 503))
    async def pin(wanted: PinBaseline) -> BaselineOut:
        """Pin the routing of a window as a baseline; one of the same name is replaced.

        Needs a token with the scope admin, if the service asks for any. Kept in the store, if there is one.
        """
        async with turns.one():
            baseline = await run_in_threadpool(_baseline, state, book, wanted, settings.min_tokens)
        await keeper.keep([baseline.document()])
        book.pin(baseline)
        return _out(baseline)

    @router.get("/v1/baselines", responses=documented(422))
    def list_baselines(server: ServerParam = None, model: ModelParam = None) -> Baselines:
        """All pinned baselines, or those of some deployments."""
        found = [item for item in book.all() if server in (None, item.server) and model in (None, item.model)]
        return Baselines(baselines=[_out(item) for item in found])

    @router.get("/v1/baselines/{name}", responses=documented(400, 404, 422))
    def get_baseline(name: str, server: ServerParam = None, model: ModelParam = None) -> BaselineDetail:
        """A pinned baseline with its slots per expert."""
        found = find_baseline(book, name, server, model)
        slots = found.slots()
        assert slots is not None, "of both phases it is always known"
        return BaselineDetail(
            **_out(found).model_dump(),
            histogram=[
                BaselineLayer(
                    layer=layer.layer,
                    num_experts=layer.num_experts,
                    tokens=slots.rows[layer.layer],
                    counts=slots.counts[layer.layer].tolist(),
                )
                for layer in found.layers
            ],
        )

    @router.delete("/v1/baselines/{name}", status_code=204, responses=documented(400, 401, 404, 422, 503))
    async def remove(name: str, server: ServerParam = None, model: ModelParam = None) -> Response:
        """Remove a baseline; its metrics go with the next refresh."""
        found = find_baseline(book, name, server, model)
        await keeper.keep([removal(found.deployment, name)])
        book.remove(found.deployment, name)
        return Response(status_code=204)

    return router


def _baseline(state: LiveState, book: BaselineBook, wanted: PinBaseline, min_tokens: int) -> Baseline:
    """The baseline of the window that is to be pinned.

    Raises:
        ProblemError: the name is reserved, the window can't be a baseline (400), or there are too many (409).
    """
    if wanted.name == PREVIOUS_HOUR:
        raise ProblemError(
            400,
            "reserved-name",
            "This name is taken",
            f"{PREVIOUS_HOUR} stands for the hour before a window: give another name.",
        )
    deployment = choose(state, wanted.server, wanted.model)
    asked = parse_bounds(wanted.start, wanted.end, state.now())
    bounds = bounds_of_weights(state, deployment, asked, wanted.weights)
    spans = state.spans(deployment, bounds.start, bounds.end)
    window, decode = merge_spans_of_phase(spans, None), merge_spans_of_phase(spans, Phase.DECODE)
    try:
        book.check_room(deployment, wanted.name)
        changed = changed_at(item.span.last for item in spans)
        return baseline_of(window, decode, wanted.name, wanted.note, state.now(), min_tokens, changed)
    except BaselineError as error:
        status = 409 if error.kind == "too-many-baselines" else 400
        raise ProblemError(status, error.kind, "This can't be pinned", str(error)) from None


def _out(item: Baseline) -> BaselineOut:
    return BaselineOut(
        name=item.name,
        server=item.server,
        model=item.model,
        note=item.note,
        start=item.start,
        end=item.end,
        pinned_at=item.pinned_at,
        tokens=item.tokens,
        layers=[layer.layer for layer in item.layers],
        by_phase=item.decode_counts is not None,
    )
