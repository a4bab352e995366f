"""GET /v1/coactivation: which experts of a layer the same tokens take, from stored traces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

from fastapi import APIRouter, Query

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import ExpertArray
from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    LARGEST,
    Bounds,
    DpRankParam,
    EndParam,
    ModelParam,
    PoolParam,
    ServerParam,
    StartParam,
    choose,
    parse_bounds,
)
from moescope.service.api.params.stored import existing
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.coactivation import MAX_MATRIX, Coactivation, PairOut
from moescope.service.api.schemas.windows import read_window
from moescope.service.live.producers import Deployment
from moescope.service.live.state import LiveState
from moescope.service.store.interface import Store
from moescope.service.store.records import DamagedError, TraceQuery
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.traces.coactivation import MAX_EXPERTS, count_together, strongest
from moescope.service.wanted import check_wanted

_AT_ONCE: Final = 8192  # tokens


def coactivation_router(state: LiveState, store: Store | None, turns: Turns) -> APIRouter:
    """The route over traces in ``store``."""
    router = APIRouter(tags=["traces"], route_class=turns.route)

    @router.get("/v1/coactivation", responses=documented(400, 404, 422, 503))
    def coactivation(
        layer: Annotated[int, Query(ge=0, le=LARGEST, description="Decoder layer.")],
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        dp_rank: DpRankParam = None,
        start: StartParam = None,
        end: EndParam = None,
        max_traces: Annotated[int, Query(ge=1, le=10_000, description="Newest traces counted.")] = 1000,
        pairs: Annotated[int, Query(ge=0, le=1000, description="Pairs listed.")] = 20,
        min_tokens: Annotated[
            int, Query(ge=1, le=LARGEST, description="Pairs of fewer tokens are not listed.")
        ] = 10,
    ) -> Coactivation:
        """Which experts the same tokens took together: counts, and the pairs that do most above chance."""
        kept, bounds = existing(store), parse_bounds(start, end, state.now())
        deployment = choose(state, server, model, pool)
        query = TraceQuery(
            server=deployment[0],
            model=deployment[1],
            dp_rank=dp_rank,
            start=bounds.start,
            end=bounds.end,
            limit=max_traces + 1,
            taken_over=False,
        )
        numbers = [found.number for found in kept.traced_requests(query)]
        rows = _Rows(kept, numbers[:max_traces], layer)
        if rows.shape.num_experts > MAX_EXPERTS:
            raise ProblemError(
                400,
                "too-many-experts",
                "Too many experts",
                f"Layer {layer} has {rows.shape.num_experts} experts; pairs are counted of {MAX_EXPERTS} at "
                "most. GET /v1/traces/{id} has the routing of a request.",
            )
        counts, tokens = count_together(rows, rows.shape.num_experts)
        found = strongest(counts, tokens, pairs, min_tokens)
        return Coactivation(
            server=deployment[0],
            model=deployment[1],
            layer=layer,
            num_experts=rows.shape.num_experts,
            traces=rows.traces,
            truncated=len(numbers) > max_traces,
            tokens=tokens,
            counts=counts.tolist() if len(counts) <= MAX_MATRIX else None,
            not_conserved=_not_conserved(state, deployment, bounds, layer),
            pairs=[
                PairOut(first=item.first, second=item.second, tokens=item.tokens, lift=item.lift)
                for item in found
            ],
        )

    return router


def _not_conserved(state: LiveState, deployment: Deployment, bounds: Bounds, layer: int) -> str | None:
    window = read_window(state, *deployment, bounds)
    return next((item.not_conserved for item in window.layers if item.shape.layer == layer), None)


class _Rows:
    """Experts of one layer in some requests, read one after the other, some tokens at a time.

    It ends when its client leaves. It holds the runs of no trace, and at any time the ids of
    :data:`_AT_ONCE` tokens and one segment of the store.

    Raises:
        ProblemError: no trace has this layer.
    """

    def __init__(self, store: Store, numbers: list[int], layer: int) -> None:
        self.traces = 0
        self._store = store
        self._numbers = numbers
        self._layer = layer
        self.shape = self._first_shape()

    def __iter__(self) -> Iterator[ExpertArray]:
        for number in self._numbers:
            check_wanted()
            # An earlier model of the same name may have had another shape.
            found = [worker for worker in self._workers(number) if self.shape in worker.layers]
            self.traces += bool(found)
            for worker in found:
                yield from self._of_worker(worker)

    def _of_worker(self, worker: WorkerTrace) -> Iterator[ExpertArray]:
        place = worker.layers.index(self.shape)
        for start in range(0, worker.tokens, _AT_ONCE):
            check_wanted()
            yield worker.read(start, min(start + _AT_ONCE, worker.tokens))[place]

    def _workers(self, number: int) -> list[WorkerTrace]:
        """The traces of a request; none of one that is damaged, which asked for alone says so."""
        try:
            return self._store.traces(number, [self._layer])
        except DamagedError:
            return []

    def _first_shape(self) -> MoeLayer:
        for number in self._numbers:
            check_wanted()
            for worker in self._workers(number):
                for shape in worker.layers:
                    return shape
        raise ProblemError(
            404,
            "no-traces",
            "No trace has this layer",
            f"None of {len(self._numbers)} traces has layer {self._layer}: GET /v1/traces lists them, "
            "MOESCOPE_TRACE_RATE makes more.",
        )
