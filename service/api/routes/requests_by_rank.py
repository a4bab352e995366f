"""GET /v1/requests/concentrated: which traced requests load one EP rank most."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request, Response

from moescope.capture.wire import MoeLayer, PlacementTable
from moescope.service.api.limits.downloads import Downloads
from moescope.service.api.limits.progress import answer_telling, described_lines
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.checked import CheckedRoute
from moescope.service.api.params.query import LayerParam, check_known, choose
from moescope.service.api.params.requests import RequestFilterParam, RequestLimitParam
from moescope.service.api.params.stored import existing
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.requests import (
    ComparedOut,
    ConcentratedOut,
    ConcentratedRequests,
    request_out,
)
from moescope.service.live.producers import heard_last
from moescope.service.live.state import LiveState
from moescope.service.store.interface import Store
from moescope.service.store.records import TracedRequest
from moescope.service.traces.asking import Asker
from moescope.service.traces.concentrated import concentrated
from moescope.service.traces.slot_table import Reading
from moescope.service.windows.placement_now import PlacedLayer, placement_now


def requests_by_rank_router(
    state: LiveState, store: Store | None, asker: Asker | None, turns: Turns, downloads: Downloads
) -> APIRouter:
    """The route over traces in ``store`` and the placements in ``state``."""
    router = APIRouter(tags=["traces"], route_class=CheckedRoute)

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

        def question() -> Generator[Reading, None, ConcentratedRequests]:
            query, kept, asking = wanted.query(state.now()), existing(store), existing(asker)
            server, model = choose(state, wanted.server, wanted.model)
            placement = _Placement.of(state, (server, model), layer)
            listed = kept.listed(replace(query, server=server, model=model))
            compared = yield from asking.gather(listed)
            found = concentrated(compared.groups, placement.tables, placement.ep_size, limit)
            requests = asking.requests(item.number for item in found)
            return ConcentratedRequests(
                server=server,
                model=model,
                ep_size=placement.ep_size,
                placed_since=placement.since,
                partial=placement.partial,
                unplaced_layers=placement.unplaced,
                compared=ComparedOut.of(compared, listed),
                requests=[
                    ConcentratedOut(
                        request=request_out(requests[item.number]),
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

    return router


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
