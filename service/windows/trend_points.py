"""Points of a trend: the rates of DP ranks and the imbalance over EP ranks, interval by interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from moescope.service.counts.phase_split import Phase, phase_work, tokens_and_steps
from moescope.service.counts.rank_work import work_of
from moescope.service.live.producers import Deployment, ProducerSpan
from moescope.service.measures.loads import max_and_mean
from moescope.service.measures.summary import Summary, summarise
from moescope.service.windows.conflicts import why_conflicting
from moescope.service.windows.doubts import doubts_of
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.phase_window import merge_spans_of_phase
from moescope.service.windows.step_window import is_whole


@dataclass(frozen=True, slots=True)
class TrendWish:
    """What a trend is of; None: everything.

    ``layers`` bounds what is over EP ranks, since tokens have no layer. ``ep_ranks``: whether the load of
    each EP rank is asked for.
    """

    deployment: Deployment
    phase: Phase | None
    dp_rank: int | None
    layers: frozenset[int] | None
    ep_ranks: bool = False


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """One interval.

    Older snapshots in memory are thinned, so an interval may have none of a producer that was alive. What
    that producer counted in it is in the next interval's difference, which is shared evenly over both
    intervals (see :func:`filled`).

    Attributes:
        rates: tokens per second of the DP ranks that have a snapshot in the interval: its tokens over the
            interval's length, so that intervals add up. If it is of one phase, only of those whose tokens'
            phases are known.
        waiting: DP ranks that were alive and have no snapshot in the interval.
        unknown: DP ranks whose tokens are not known, or not those of the phase.
        imbalance: over EP ranks, of all producers; None where none has a snapshot in the interval.
        ep_loads: slots of each EP rank over those layers as a multiple of a fair share, float32 [R] as bytes,
            since many points are kept; empty: not known, or not asked for.
        broken: layers that it leaves out because their rows don't add up to the tokens.
        conflict: why it has no imbalance because lives were in conflict, or None.
    """

    rates: Mapping[int, float]
    waiting: frozenset[int]
    unknown: frozenset[int]
    imbalance: Summary | None
    ep_loads: bytes = b""
    broken: frozenset[int] = frozenset()
    conflict: str | None = None


def point_of(spans: list[ProducerSpan], wanted: TrendWish, start: float, end: float) -> TrendPoint:
    """One interval, of the producers that were alive in it and whose past reaches it."""
    phase = wanted.phase
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
    here = {rank for rank in map(_rank, alive) if wanted.dp_rank in (None, rank)}
    heard = {_rank(item) for item in spans if _arrived(item, end)} & here
    for rank in sorted(heard):
        work = ended[rank].minus(work_of(item.span.first for item in by_rank[rank]))
        known = phase is None or phase_work(work) is not None
        if not known or (rank in doubts and doubts[rank].reason):
            unknown.add(rank)
            continue
        tokens, _ = tokens_and_steps(work, phase)
        rates[rank] = tokens / (_intervals(by_rank[rank], start, end) * (end - start))
    point = TrendPoint(
        rates=rates,
        waiting=frozenset(here - heard),
        unknown=frozenset(unknown),
        imbalance=None,
        conflict=why_conflicting(spans),
    )
    return _with_imbalance(point, spans, wanted) if any(_arrived(item, end) for item in alive) else point


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


def _with_imbalance(point: TrendPoint, spans: list[ProducerSpan], wanted: TrendWish) -> TrendPoint:
    """With what is over EP ranks, across the layers that were seen whole; those that don't add up."""
    window = merge_spans_of_phase(spans, wanted.phase, wanted.dp_rank)
    asked = [layer for layer in window.layers if not wanted.layers or layer.shape.layer in wanted.layers]
    layers = [layer for layer in asked if is_whole(layer)]
    loads = [max_and_mean(layer.ep_slots) for layer in layers]
    summary = summarise(
        [layer.shape.layer for layer in layers],
        np.array([float(most) for most, _ in loads]),
        np.array([float(mean) for _, mean in loads]),
    )
    broken = frozenset(layer.shape.layer for layer in asked if layer.not_conserved)
    ep_loads = _ep_loads(layers) if wanted.ep_ranks else b""
    return replace(point, imbalance=summary, ep_loads=ep_loads, broken=broken)


def _ep_loads(layers: list[LayerWindow]) -> bytes:
    """Slots of each EP rank over layers, as a multiple of a fair share; empty: there are none."""
    total = np.zeros(max((len(layer.ep_slots) for layer in layers), default=0))
    for layer in layers:
        total[: len(layer.ep_slots)] += layer.ep_slots
    return (total / total.mean()).astype(np.float32).tobytes() if total.any() else b""


def filled(points: list[TrendPoint]) -> list[TrendPoint]:
    """The points, with the next interval's values wherever something was alive without a snapshot."""
    result = points[-1:]
    for point in reversed(points[:-1]):
        following = result[-1]
        borrowed = {rank: following.rates[rank] for rank in point.waiting if rank in following.rates}
        over_ep = following if point.imbalance is None and (point.waiting or point.rates) else point
        result.append(
            replace(
                point,
                rates={**borrowed, **point.rates},
                waiting=point.waiting - borrowed.keys(),
                imbalance=over_ep.imbalance,
                ep_loads=over_ep.ep_loads,
            )
        )
    return result[::-1]
