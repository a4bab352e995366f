"""GET /v1/trend: tokens per second and imbalance over time."""

from __future__ import annotations

import math
import threading
from typing import Annotated

import msgspec
import numpy as np
from fastapi import APIRouter, Query, Response

from moescope.service.api.compact import answer, described
from moescope.service.api.params import ModelParam, ServerParam, choose
from moescope.service.api.problems import documented
from moescope.service.balance import max_and_mean, summarise
from moescope.service.state import Deployment, LiveState, ProducerSpan
from moescope.service.window import merge

StepParam = Annotated[float, Query(ge=1, le=86400, description="Length of an interval, seconds.")]
PointsParam = Annotated[int, Query(ge=1, le=240, description="How many intervals, the last one until now.")]
_REMEMBERED = 4096


class TrendPoint(msgspec.Struct):
    """One interval; null is no sample."""

    tokens_per_second: dict[int, float]
    ratio_of_sums: float | None
    worst: float | None
    worst_layer: int | None


class Trend(msgspec.Struct):
    """Intervals of `step` seconds that end at the instants `at` (Unix seconds), parallel.

    `tokens_per_second` is by DP rank of `dp_ranks`. `ratio_of_sums` and `worst` are of the imbalance ratio
    (max / mean) over EP ranks, as in /v1/balance.
    """

    server: str
    model: str
    step: float
    dp_ranks: list[int]
    at: list[float]
    tokens_per_second: list[list[float | None]]
    ratio_of_sums: list[float | None]
    worst: list[float | None]
    worst_layer: list[int | None]


class _Cache:
    """Intervals that are over; their totals don't change any more. Bounded: the oldest goes."""

    def __init__(self) -> None:
        self._points: dict[tuple[Deployment, float, float], TrendPoint] = {}
        self._lock = threading.Lock()

    def point(self, state: LiveState, deployment: Deployment, start: float, end: float) -> TrendPoint:
        key = (deployment, start, end)
        found = self._points.get(key)
        if found is None:
            found = _point(state.spans(deployment, start, end))
            with self._lock:
                if end < state.now():
                    self._points[key] = found
                while len(self._points) > _REMEMBERED:
                    del self._points[next(iter(self._points))]
        return found


def trend_router(state: LiveState) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["queries"])
    cache = _Cache()

    @router.get("/v1/trend", responses=documented(400, 404, 422) | {200: described(Trend)})
    def trend(
        server: ServerParam = None,
        model: ModelParam = None,
        step: StepParam = 5.0,
        points: PointsParam = 60,
    ) -> Response:
        """Tokens per second of each DP rank and the imbalance over EP ranks, interval by interval."""
        deployment = choose(state, server, model)
        last = math.floor(state.now() / step) * step
        ends = [last - step * i for i in reversed(range(points))]
        found = [cache.point(state, deployment, end - step, end) for end in ends]
        ranks = sorted({rank for point in found for rank in point.tokens_per_second})
        result = Trend(
            server=deployment[0],
            model=deployment[1],
            step=step,
            dp_ranks=ranks,
            at=ends,
            tokens_per_second=[[point.tokens_per_second.get(rank) for point in found] for rank in ranks],
            ratio_of_sums=[point.ratio_of_sums for point in found],
            worst=[point.worst for point in found],
            worst_layer=[point.worst_layer for point in found],
        )
        return answer(result)

    return router


def _point(spans: list[ProducerSpan]) -> TrendPoint:
    """One interval, without producers whose past doesn't reach it."""
    known = [item for item in spans if not item.span.truncated and item.span.end > item.span.start]
    if not known:
        return TrendPoint({}, None, None, None)
    window = merge(known)
    rates: dict[int, float] = {}
    for item in known:
        rank = item.producer.latest.producer.dp_rank
        rate = item.span.delta.tokens / (item.span.end - item.span.start)
        rates[rank] = max(rates.get(rank, 0.0), rate)
    layers = [layer for layer in window.layers if not (layer.ep_reason or layer.not_seen or layer.missing)]
    loads = [max_and_mean(layer.ep_slots) for layer in layers]
    summary = summarise(
        [layer.shape.layer for layer in layers],
        np.array([float(most) for most, _ in loads]),
        np.array([float(mean) for _, mean in loads]),
    )
    return TrendPoint(rates, summary.ratio_of_sums, summary.worst, summary.worst_layer)
