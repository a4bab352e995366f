"""GET /v1/requests/unusual and /similar: traced requests compared with each other."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from moescope.service.api.limits.downloads import Downloads
from moescope.service.api.limits.progress import answer_telling, described_lines
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.api.params.query import LayerParam, check_known
from moescope.service.api.params.requests import (
    LikeModelParam,
    LikeParam,
    LikeServerParam,
    RequestFilterParam,
    RequestLimitParam,
    only_model,
    request_named,
)
from moescope.service.api.params.stored import existing
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.requests import (
    ComparedOut,
    SimilarOut,
    SimilarRequests,
    TellingOut,
    UnusualOut,
    UnusualRequests,
    request_out,
)
from moescope.service.live.state import LiveState
from moescope.service.store.interface import Store
from moescope.service.traces.asking import Asker, layers_of
from moescope.service.traces.similar import similar
from moescope.service.traces.slot_table import Reading
from moescope.service.traces.unusual import SurpriseName, unusual

ByParam = Annotated[SurpriseName, Query(description="What ranks them; docs/measures.md defines all three.")]


def requests_router(
    state: LiveState, store: Store | None, asker: Asker | None, turns: Turns, downloads: Downloads
) -> APIRouter:
    """The routes over traces in ``store``; with a store there is an ``asker`` of it."""
    router = APIRouter(tags=["traces"], route_class=CheckedRoute)
    _add_unusual(router, state, store, asker, turns, downloads)
    _add_similar(router, state, store, asker, turns, downloads)
    return router


def _add_unusual(
    router: APIRouter,
    state: LiveState,
    store: Store | None,
    asker: Asker | None,
    turns: Turns,
    downloads: Downloads,
) -> None:
    @router.get(
        "/v1/requests/unusual",
        response_class=Response,
        responses={
            **described_lines(UnusualRequests, "The most unusual requests."),
            **documented(400, 404, 422, 503),
        },
    )
    async def unusual_requests(
        request: Request,
        wanted: RequestFilterParam,
        layer: LayerParam = None,
        by: ByParam = "surprise_score",
        limit: RequestLimitParam = 20,
    ) -> Response:
        """The requests whose routing is most unusual under the histogram of all that match.

        The first question reads their traces from the store, which takes seconds for a million tokens; with
        `Accept: application/x-ndjson` the answer tells how far it is. Later ones read what is new.
        """

        def question() -> Generator[Reading, None, UnusualRequests]:
            listed, asking = existing(store).listed(wanted.query(state.now())), existing(asker)
            model = only_model(listed)
            compared = yield from asking.gather(listed)
            if compared.groups:
                check_known("layer", layer or [], layers_of(compared.groups))
            found = unusual(compared.groups, by, layer, limit)
            requests = asking.requests(item.number for item in found)
            return UnusualRequests(
                model=model,
                compared=ComparedOut.of(compared, listed),
                requests=[
                    UnusualOut(
                        request=request_out(requests[item.number]),
                        surprise_score=item.surprise_score,
                        divergence_bits=item.divergence_bits,
                        surprise_bits=item.surprise_bits,
                        telling=[
                            TellingOut.model_validate(one, from_attributes=True) for one in item.telling
                        ],
                    )
                    for item in found
                    if item.number in requests
                ],
            )

        return await answer_telling(request, question, turns, downloads)


def _add_similar(
    router: APIRouter,
    state: LiveState,
    store: Store | None,
    asker: Asker | None,
    turns: Turns,
    downloads: Downloads,
) -> None:
    @router.get(
        "/v1/requests/similar",
        response_class=Response,
        responses={
            **described_lines(SimilarRequests, "The most similar requests."),
            **documented(400, 404, 409, 422, 503),
        },
    )
    async def similar_requests(
        request: Request,
        like: LikeParam,
        wanted: RequestFilterParam,
        like_server: LikeServerParam = None,
        like_model: LikeModelParam = None,
        layer: LayerParam = None,
        limit: RequestLimitParam = 20,
    ) -> Response:
        """The requests of the same model whose shares of slots are most like those of one request.

        `Accept: application/x-ndjson` is as for `/v1/requests/unusual`.
        """

        def question() -> Generator[Reading, None, SimilarRequests]:
            query, kept, asking = wanted.query(state.now()), existing(store), existing(asker)
            one = request_named(kept, like, like_server, like_model)
            if wanted.model not in (None, one.model):
                raise ProblemError(
                    400, "another-model", "Another model", f"{like} is of model {one.model}: leave out model."
                )
            slots = asking.slots_of(one.number)
            if slots is None:
                raise ProblemError(404, "no-such-trace", "No such trace", f"{like} was just removed.")
            check_known("layer", layer or [], layers_of([slots]))
            listed = kept.listed(replace(query, model=one.model))
            compared = yield from asking.gather(listed)
            found = similar(compared.groups, slots, layer, limit)
            requests = asking.requests(item.number for item in found)
            return SimilarRequests(
                like=request_out(one),
                compared=ComparedOut.of(compared, listed),
                requests=[
                    SimilarOut(
                        request=request_out(requests[item.number]),
                        similarity=item.similarity,
                        layers=item.layers,
                    )
                    for item in found
                    if item.number in requests
                ],
            )

        return await answer_telling(request, question, turns, downloads)
