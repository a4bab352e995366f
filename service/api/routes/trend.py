"""GET /v1/trend: tokens per second and imbalance over time."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Final

import numpy as np
from fastapi import APIRouter, Query, Response

from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import ModelParam, PhaseParam, ServerParam, choose
from moescope.service.api.problems import documented
from moescope.service.api.schemas.compact import answer, compact_absent, described
from moescope.service.api.schemas.trend import Trend
from moescope.service.counts.phase_split import Phase, phase_work, tokens_and_steps
from moescope.service.counts.rank_work import work_of
from moescope.service.live.producers import Deployment, ProducerSpan
from moescope.service.live.state import LiveState
from moescope.service.measures.loads import max_and_mean
from moescope.service.measures.summary import Summary, summarise
from moescope.service.windows.conflicts import why_conflicting
from moescope.service.windows.doubts import doubts_of
from moescope.service.windows.health import absent_layers
from moescope.service.windows.phase_window import merge_spans_of_phase
from moescope.service.windows.step_window import is_whole

StepParam = Annotated[float, Query(ge=1, le=86400, description="Length of an interval, seconds.")]
PointsParam = Annotated[
    int,
    Query(
        ge=1,
        le=240,
        description="How many intervals; the last one ends at the last whole multiple of `step`.",
    ),
]
_REMEMBERED: Final = 4096
_SETTLED_S: Final = 60.0
"""Seconds after an interval's end until later frames change nothing in it: who fell silent, a broken law."""
_NO_SAMPLE: Final = Summary()


@dataclass(frozen=True, slots=True)
class _Point:
    """One interval.

    Older snapshots in memory are thinned, so an interval may have none of a producer that was alive. What
    that producer counted in it is in the next interval's difference, which is shared evenly over both
    intervals (see :func:`_filled`).

    Attributes:
        rates: tokens per second of the DP ranks that have a snapshot in the interval: its tokens over the
            interval's length, so that intervals add up. If it is of one phase, only of those whose tokens'
            phases are known.
        waiting: DP ranks that were alive and have no snapshot in the interval.
        unknown: DP ranks whose tokens are not known, or not those of the phase.
        imbalance: over EP ranks, of all producers; None where none has a snapshot in the interval.
        broken: layers that it leaves out because their rows don't add up to the tokens.
        conflict: why it has no imbalance because lives were in conflict, or None.
    """

    rates: Mapping[int, float]
    waiting: frozenset[int]
    unknown: frozenset[int]
    imbalance: Summary | None
    broken: frozenset[int] = frozenset()
    conflict: str | None = None


class _Cache:
    """Intervals that are long over, so that they stay as they are; at most 4,096, then the oldest goes."""

    def __init__(self) -> None:
        self._points: dict[tuple[Deployment, Phase | None, float, float], _Point] = {}
        self._lock = threading.Lock()

    def point(
        self, state: LiveState, deployment: Deployment, phase: Phase | None, start: float, end: float
    ) -> _Point:
        key = (deployment, phase, start, end)
        found = self._points.get(key)
        if found is None:
            found = _point(state.spans(deployment, start, end), phase, start, end)
            with self._lock:
                if end + _SETTLED_S < state.now():
                    self._points[key] = found
                while len(self._points) > _REMEMBERED:
                    del self._points[next(iter(self._points))]
        return found


def _absent(state: LiveState, deployment: Deployment) -> dict[int | None, str]:
    """The deployment's absent layers, by the newest frames."""
    return absent_layers(
        item.latest for item in state.producers() if item.latest.producer.key[:2] == deployment
    )


def trend_router(state: LiveState, turns: Turns) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["queries"], route_class=turns.route)
    cache = _Cache()

    @router.get("/v1/trend", responses=documented(400, 404, 422, 503) | {200: described(Trend)})
    def trend(
        server: ServerParam = None,
        model: ModelParam = None,
        phase: PhaseParam = None,
        step: StepParam = 5.0,
        points: PointsParam = 60,
    ) -> Response:
        """Tokens per second of each DP rank and the imbalance over EP ranks, interval by interval."""
        deployment = choose(state, server, model)
        last = math.floor(state.now() / step) * step
        cuts = [last - step * i for i in reversed(range(points + 1))]
        found = _filled([cache.point(state, deployment, phase, *ends) for ends in pairwise(cuts)])
        ranks = sorted({rank for point in found for rank in (*point.rates, *point.unknown)})
        summaries = [point.imbalance or _NO_SAMPLE for point in found]
        result = Trend(
            server=deployment[0],
            model=deployment[1],
            step=step,
            phase=phase,
            dp_ranks=ranks,
            at=cuts[1:],
            tokens_per_second=[[point.rates.get(rank) for point in found] for rank in ranks],
            ratio_of_sums=[item.ratio_of_sums for item in summaries],
            worst=[item.worst for item in summaries],
            worst_layer=[item.worst_layer for item in summaries],
            not_conserved=sorted(frozenset().union(*(point.broken for point in found))),
            absent=compact_absent(_absent(state, deployment)),
            conflict=next((point.conflict for point in reversed(found) if point.conflict), None),
        )
        return answer(result)

    return router


def _point(spans: list[ProducerSpan], phase: Phase | None, start: float, end: float) -> _Point:
    """One interval, of the producers that were alive in it and whose past reaches it."""
    alive = [
        item
        for item in spans
        if item.producer.received_at > start and item.span.start < end and not item.span.truncated
    ]
    by_rank: dict[int, list[ProducerSpan]] = {}
    for item in spans:
        by_rank.setdefault(_rank(item), []).append(item)
    ended = {rank: work_of(item.span.last for item in members) for rank, members in by_rank.items()}
    doubts = doubts_of(by_rank, ended)
    rates: dict[int, float] = {}
    unknown: set[int] = set()
    here = set(map(_rank, alive))
    heard = {_rank(item) for item in spans if _arrived(item, end)} & here
    for rank in sorted(heard):
        work = ended[rank].minus(work_of(item.span.first for item in by_rank[rank]))
        known = phase is None or phase_work(work) is not None
        if not known or (rank in doubts and doubts[rank].reason):
            unknown.add(rank)
            continue
        tokens, _ = tokens_and_steps(work, phase)
        rates[rank] = tokens / (_intervals(by_rank[rank], start, end) * (end - start))
    imbalance, broken = None, frozenset[int]()
    if any(_arrived(item, end) for item in alive):
        imbalance, broken = _imbalance(spans, phase)
    conflict = why_conflicting(spans)
    return _Point(rates, frozenset(here - heard), frozenset(unknown), imbalance, broken, conflict)


def _arrived(item: ProducerSpan, end: float) -> bool:
    """Whether a frame of a worker arrived in the interval; the first that is remembered moves no boundary."""
    span = item.span
    return span.end > span.start or (span.truncated and span.end <= end)


def _intervals(workers: list[ProducerSpan], start: float, end: float) -> int:
    """How many intervals the tokens of this one are of: those before it without an arrival count too."""
    before = [item.span.start for item in workers if item.span.start <= start]
    return 1 + (math.floor((start - max(before)) / (end - start) + 1e-9) if before else 0)


def _rank(item: ProducerSpan) -> int:
    return item.producer.latest.producer.dp_rank


def _imbalance(spans: list[ProducerSpan], phase: Phase | None) -> tuple[Summary, frozenset[int]]:
    """The imbalance ratio over EP ranks, across the layers that were seen whole; those that don't add up."""
    window = merge_spans_of_phase(spans, phase)
    layers = [layer for layer in window.layers if is_whole(layer)]
    loads = [max_and_mean(layer.ep_slots) for layer in layers]
    summary = summarise(
        [layer.shape.layer for layer in layers],
        np.array([float(most) for most, _ in loads]),
        np.array([float(mean) for _, mean in loads]),
    )
    return summary, frozenset(layer.shape.layer for layer in window.layers if layer.not_conserved)


def _filled(points: list[_Point]) -> list[_Point]:
    """The points, with the next interval's values wherever something was alive without a snapshot."""
    result = points[-1:]
    for point in reversed(points[:-1]):
        following = result[-1]
        borrowed = {rank: following.rates[rank] for rank in point.waiting if rank in following.rates}
        imbalance = point.imbalance
        if imbalance is None and (point.waiting or point.rates):
            imbalance = following.imbalance
        result.append(
            replace(
                point,
                rates={**borrowed, **point.rates},
                waiting=point.waiting - borrowed.keys(),
                imbalance=imbalance,
            )
        )
    return result[::-1]
