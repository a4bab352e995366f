"""GET /v1/requests/histogram: slots of traced requests, apart by LoRA adapter."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response

from moescope.service.api.limits.downloads import Downloads
from moescope.service.api.limits.progress import answer_telling, described_lines
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.api.params.query import LayerParam, check_known
from moescope.service.api.params.requests import RequestFilter, RequestFilterParam, only_model
from moescope.service.api.params.stored import existing
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.adapters import AdapterHistogram, AdapterHistograms, AdapterLayer
from moescope.service.api.schemas.requests import ComparedOut
from moescope.service.api.schemas.windows import read_window
from moescope.service.live.state import LiveState
from moescope.service.store.interface import Store
from moescope.service.traces.adapters import OfAdapter, by_adapter
from moescope.service.traces.asking import Asker, layers_of
from moescope.service.traces.slot_table import Reading

MAX_ADAPTERS: Final = 100
MAX_COUNTS: Final = 1_000_000
"""Most counts in an answer: adapters x experts of all layers."""

AdaptersParam = Annotated[
    int,
    Query(
        ge=0,
        le=MAX_ADAPTERS,
        description="Adapters with a histogram of their own, those of most tokens; all others are one.",
    ),
]


def requests_by_adapter_router(
    state: LiveState, store: Store | None, asker: Asker | None, turns: Turns, downloads: Downloads
) -> APIRouter:
    """The route over traces in ``store``, beside which the tokens in ``state`` are told."""
    router = APIRouter(tags=["traces"], route_class=CheckedRoute)

    @router.get(
        "/v1/requests/histogram",
        response_class=Response,
        responses={
            **described_lines(AdapterHistograms, "The histograms."),
            **documented(400, 404, 422, 503),
        },
    )
    async def requests_histogram(
        request: Request,
        wanted: RequestFilterParam,
        layer: LayerParam = None,
        adapters: AdaptersParam = 20,
    ) -> Response:
        """Slots per expert of the traced requests that match, apart by LoRA adapter.

        It is exact for the requests that were traced, and `counted_tokens` says how many tokens there were
        at all. `Accept: application/x-ndjson` is as for `/v1/requests/unusual`.
        """

        def question() -> Generator[Reading, None, AdapterHistograms]:
            listed, asking = existing(store).listed(wanted.query(state.now())), existing(asker)
            model = only_model(listed)
            compared = yield from asking.gather(listed)
            if compared.groups:
                check_known("layer", layer or [], layers_of(compared.groups))
            found = [_out(item, layer) for item in by_adapter(compared.groups, listed, adapters)]
            _check_size(found)
            return AdapterHistograms(
                model=model,
                compared=ComparedOut.of(compared, listed),
                counted_tokens=_counted(state, wanted, {(item.server, item.model) for item in listed}),
                adapters=found,
            )

        return await answer_telling(request, question, turns, downloads, MAX_COUNTS)

    return router


def _out(item: OfAdapter, layers: list[int] | None) -> AdapterHistogram:
    return AdapterHistogram(
        lora=item.lora,
        adapters=item.adapters,
        requests=item.requests,
        tokens=item.tokens,
        layers=[
            AdapterLayer(
                layer=shape.layer,
                num_experts=shape.num_experts,
                top_k=shape.top_k,
                counts=item.slots[shape].tolist(),
            )
            for shape in sorted(item.slots, key=lambda shape: (shape.layer, shape.num_experts, shape.top_k))
            if layers is None or shape.layer in layers
        ],
    )


def _check_size(found: Sequence[AdapterHistogram]) -> None:
    """Check that the answer has not too many counts.

    Raises:
        ProblemError: it has (400).
    """
    counts = sum(len(layer.counts) for item in found for layer in item.layers)
    if counts > MAX_COUNTS:
        raise ProblemError(
            400,
            "too-many-numbers",
            "The answer would be too large",
            f"It would list {counts} counts, {MAX_COUNTS} are allowed: ask for fewer layers or adapters.",
        )


def _counted(state: LiveState, wanted: RequestFilter, deployments: set[tuple[str, str]]) -> int | None:
    """The tokens that deployments computed in the window; None: not known, or only some of them are meant."""
    if not wanted.of_all or not deployments or not deployments <= set(state.deployments()):
        return None
    bounds, found = wanted.bounds(state.now()), 0
    for server, model in deployments:
        tokens = read_window(state, server, model, bounds).known_tokens
        if tokens is None:
            return None
        found += tokens
    return found
