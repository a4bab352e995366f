"""GET /v1/requests/unusual, /concentrated and /similar: questions about many traced requests."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response

from moescope.capture.wire import MoeLayer, PlacementTable
from moescope.service.api.limits.downloads import Downloads
from moescope.service.api.limits.progress import Progress, answer_telling, described_lines
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.api.params.query import LayerParam, check_known, choose
from moescope.service.api.params.requests import (
    MAX_COMPARED,
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
    ConcentratedOut,
    ConcentratedRequests,
    SimilarOut,
    SimilarRequests,
    TellingOut,
    UnusualOut,
    UnusualRequests,
)
from moescope.service.api.schemas.traces import TraceOut
from moescope.service.live.producers import heard_last
from moescope.service.live.state import LiveState
from moescope.service.store.interface import Store
from moescope.service.store.records import TracedRequest, TraceQuery
from moescope.service.store.slots import ListedRequest, RequestSlots, slots_of_workers
from moescope.service.traces.questions import SurpriseName, concentrated, similar, unusual
from moescope.service.traces.slot_table import Compared, Group, Reading, SlotTable
from moescope.service.wanted import check_wanted
from moescope.service.windows.placement_now import PlacedLayer, placement_now

_PIECE_S: Final = 0.25
"""How long a question reads before it tells how far it is."""

ByParam = Annotated[
    SurpriseName, Query(description="What they are ranked by; docs/measures.md defines both.")
]


def requests_router(
    state: LiveState, store: Store | None, table: SlotTable | None, turns: Turns, downloads: Downloads
) -> APIRouter:
    """The routes over traces in ``store``; ``table`` keeps their slots, and there is one with every store."""
    router = APIRouter(tags=["traces"], route_class=CheckedRoute)
    asking = _Asking(state, store, table)

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

        def question() -> Generator[Progress, None, UnusualRequests]:
            listed = asking.listed(wanted.query(state.now()))
            model = only_model(listed)
            compared = yield from asking.gather(listed)
            _check_layers(layer, compared.groups)
            found = unusual(compared.groups, by, layer, limit)
            requests = asking.requests(item.number for item in found)
            return UnusualRequests(
                model=model,
                compared=_compared_out(compared, listed),
                requests=[
                    UnusualOut(
                        request=_out(requests[item.number]),
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

    @router.get(
        "/v1/requests/concentrated",
        response_class=Response,
        responses={
            **described_lines(ConcentratedRequests, "The most concentrated requests."),
            **documented(400, 404, 422, 503),
        },
    )
    async def concentrated_requests(
        request: Request,
        wanted: RequestFilterParam,
        layer: LayerParam = None,
        limit: RequestLimitParam = 20,
    ) -> Response:
        """The requests of a deployment of whose slots one EP rank has the highest share.

        Experts are where the present placement has them; the slots of one with several copies are shared out
        evenly. `Accept: application/x-ndjson` is as for `/v1/requests/unusual`.
        """

        def question() -> Generator[Progress, None, ConcentratedRequests]:
            query = wanted.query(state.now())
            asking.check_store()
            deployment = choose(state, wanted.server, wanted.model)
            placement = _Placement.of(state, deployment, layer)
            listed = asking.listed(replace(query, server=deployment[0], model=deployment[1]))
            compared = yield from asking.gather(listed)
            found = concentrated(compared.groups, placement.tables, placement.ep_size, limit)
            requests = asking.requests(item.number for item in found)
            return ConcentratedRequests(
                server=deployment[0],
                model=deployment[1],
                ep_size=placement.ep_size,
                placed_since=placement.since,
                partial=placement.partial,
                unplaced_layers=placement.unplaced,
                compared=_compared_out(compared, listed),
                requests=[
                    ConcentratedOut(
                        request=_out(requests[item.number]),
                        busiest_ep_rank=item.busiest_ep_rank,
                        busiest_ep_rank_share=item.busiest_ep_rank_share,
                        slots=item.slots,
                        earlier_placement=placement.is_after(requests[item.number]),
                    )
                    for item in found
                    if item.number in requests
                ],
            )

        return await answer_telling(request, question, turns, downloads)

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
        layer: LayerParam = None,
        limit: RequestLimitParam = 20,
    ) -> Response:
        """The requests of the same model whose shares of slots are most like those of one request.

        `Accept: application/x-ndjson` is as for `/v1/requests/unusual`.
        """

        def question() -> Generator[Progress, None, SimilarRequests]:
            query = wanted.query(state.now())
            one = request_named(asking.check_store(), like, like_server)
            if wanted.model not in (None, one.model):
                raise ProblemError(
                    400, "another-model", "Another model", f"{like} is of model {one.model}: leave out model."
                )
            slots = asking.slots_of(one)
            _check_layers(layer, [slots])
            listed = asking.listed(replace(query, model=one.model))
            compared = yield from asking.gather(listed)
            found = similar(compared.groups, slots, layer, limit)
            requests = asking.requests(item.number for item in found)
            return SimilarRequests(
                like=_out(one),
                compared=_compared_out(compared, listed),
                requests=[
                    SimilarOut(
                        request=_out(requests[item.number]), similarity=item.similarity, layers=item.layers
                    )
                    for item in found
                    if item.number in requests
                ],
            )

        return await answer_telling(request, question, turns, downloads)

    return router


class _Asking:
    """What all these questions ask of the store; each of them in one thread."""

    def __init__(self, state: LiveState, store: Store | None, table: SlotTable | None) -> None:
        self._state = state
        self._store = store
        self._table = table

    def check_store(self) -> Store:
        """The store.

        Raises:
            ProblemError: there is none (404).
        """
        return existing(self._store)

    def listed(self, query: TraceQuery) -> list[ListedRequest]:
        """The requests that match, newest first: one more than are compared, if there are more."""
        return self.check_store().listed(query)

    def gather(self, listed: Sequence[ListedRequest]) -> Generator[Progress, None, Compared]:
        """Their slots; it yields how far it is while it reads."""
        assert self._table is not None  # there is a store
        total: int | None = None
        while True:
            found = self._table.gather(listed[:MAX_COMPARED], _PIECE_S, total)
            if not isinstance(found, Reading):
                return found
            total = found.total
            yield Progress(read=found.read, total=found.total)

    def requests(self, numbers: Iterable[int]) -> Mapping[int, TracedRequest]:
        """The requests of these numbers; one that left the store meanwhile is not there."""
        wanted = tuple(numbers)
        query = TraceQuery(numbers=wanted, limit=max(1, len(wanted)))
        return {item.number: item for item in self.check_store().traced_requests(query)}

    def slots_of(self, one: TracedRequest) -> RequestSlots:
        """The slots of a request that need not be among those compared.

        Raises:
            ProblemError: it has gone meanwhile (404).
        """
        workers = self.check_store().traces(one.number, None)
        found = slots_of_workers(one.number, workers, check_wanted)
        if found is None:
            raise ProblemError(404, "no-such-trace", "No such trace", f"{one.request_id} was just removed.")
        return found


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where the experts of a deployment are now, in the layers that count.

    Attributes:
        tables: of the layers whose placement is known.
        unplaced: the others.
        since: when the youngest of these placements began; None: before the service's own start.
        partial: why it may not be so everywhere, or None.
    """

    tables: Mapping[MoeLayer, PlacementTable]
    unplaced: list[int]
    ep_size: int
    since: float | None
    partial: str | None

    @classmethod
    def of(cls, state: LiveState, deployment: tuple[str, str], layers: list[int] | None) -> _Placement:
        """That of a deployment, in some layers or in all.

        Raises:
            ProblemError: there is no such layer, or no layer's placement is known (404).
        """
        placed = placement_now(state, deployment).layers
        check_known("layer", layers or [], [item.shape.layer for item in placed])
        wanted = [item for item in placed if not layers or item.shape.layer in layers]
        tables = {item.shape: item.table for item in wanted if item.table is not None}
        if not tables:
            raise ProblemError(404, "no-placement", "No placement is known", _why_unplaced(wanted))
        return cls(
            tables=tables,
            unplaced=[item.shape.layer for item in wanted if item.table is None],
            ep_size=heard_last(state.producers(deployment)).ep_size,
            since=max((item.since for item in wanted if item.since is not None), default=None),
            partial=next((item.partial for item in wanted if item.partial is not None), None),
        )

    def is_after(self, request: TracedRequest) -> bool:
        """Whether it began when the request had ended already."""
        return self.since is not None and request.ended_at < self.since


def _why_unplaced(wanted: Sequence[PlacedLayer]) -> str:
    reason = next((item.reason for item in wanted if item.reason is not None), None)
    return f"It is not known on which EP rank any expert is: {reason or 'no layer is counted'}."


def _check_layers(wanted: list[int] | None, groups: Sequence[Group | RequestSlots]) -> None:
    """Check that the layers wanted are in some of the groups, if there are any.

    Raises:
        ProblemError: one is in none (404).
    """
    if groups:
        check_known("layer", wanted or [], sorted({one.layer for group in groups for one in group.layers}))


def _compared_out(compared: Compared, listed: Sequence[ListedRequest]) -> ComparedOut:
    return ComparedOut(
        requests=compared.requests,
        tokens=compared.tokens,
        left_out=compared.left_out,
        truncated=len(listed) > MAX_COMPARED,
        unreadable=compared.unreadable,
    )


def _out(found: TracedRequest) -> TraceOut:
    return TraceOut.model_validate(found, from_attributes=True)
