"""GET /v1/trend: tokens per second and imbalance over time."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Annotated, Final, Literal

import numpy as np
from fastapi import APIRouter, Query, Response
from pydantic import Field

from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    Bounds,
    DpRankParam,
    EndParam,
    LayerParam,
    ModelParam,
    PhaseParam,
    PoolParam,
    ServerParam,
    StartParam,
    check_dp_rank,
    check_known,
    choose,
    parse_bounds,
    parse_length,
)
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.compact import answer, compact_absent, described
from moescope.service.api.schemas.trend import Trend
from moescope.service.api.schemas.windows import layers_now, partial_now
from moescope.service.live.producers import Deployment, heard_last
from moescope.service.live.state import LiveState
from moescope.service.measures.summary import Summary
from moescope.service.windows.health import absent_layers
from moescope.service.windows.trend_points import TrendPoint, TrendWish, filled, point_of

MAX_POINTS: Final = 240
DEFAULT_POINTS: Final = 60
SHORTEST_S: Final = 1.0
LONGEST_S: Final = 86400.0
StepParam = Annotated[
    str,
    Query(description="Length of an interval: `5s`, `1m`, or seconds; a second to a day.", examples=["5s"]),
]
PointsParam = Annotated[
    int | None,
    Query(
        ge=1,
        le=MAX_POINTS,
        description="How many intervals, instead of `start`; the last one ends at the last whole multiple of "
        f"`step` before `end`. Absent, without `start`: {DEFAULT_POINTS}.",
    ),
]
PartsParam = Annotated[
    list[Literal["ep_ranks"]] | None,
    Query(description="What to add: `ep_ranks`, the load of each EP rank, interval by interval."),
]
EpRankParam = Annotated[
    list[Annotated[int, Field(ge=0)]] | None,
    Query(
        description="The load of this EP rank, interval by interval; may be repeated. Absent, with "
        "`parts=ep_ranks`: those of all EP ranks, if there are not too many."
    ),
]
MAX_LOADS: Final = 1 << 16
"""Loads of EP ranks in an answer: ranks x intervals."""
_REMEMBERED: Final = 4096
_REMEMBERED_RATES: Final = 1 << 18
"""Of DP and EP ranks, over all intervals that are remembered: some 16 MiB."""
_FLOAT32: Final = 4
"""Bytes of a load that is remembered."""
_SETTLED_S: Final = 60.0
"""Seconds after an interval's end until later frames change nothing in it: who fell silent, a broken law."""
_NO_SAMPLE: Final = Summary()
_Key = tuple[TrendWish, float, float]
"""What is wanted of an interval, its begin and its end."""


class KnownIntervals:
    """Intervals that are long over, so that they stay as they are; then the oldest goes.

    Args:
        most: how many, at most.
        most_rates: of how many DP and EP ranks in all of them together, at most.
    """

    def __init__(self, most: int = _REMEMBERED, most_rates: int = _REMEMBERED_RATES) -> None:
        self._most, self._most_rates = most, most_rates
        self._rates = 0
        self._points: dict[_Key, TrendPoint] = {}
        self._lock = threading.Lock()

    def points(self, state: LiveState, wanted: TrendWish, cuts: Sequence[float]) -> list[TrendPoint]:
        """The intervals between neighbouring cuts. Those that aren't known are of one look, read in order.

        Raises:
            StoreError: the archive can't be read.
        """
        keys = [(wanted, *ends) for ends in pairwise(cuts)]
        found = {key: self._points.get(key) for key in keys}
        for known, run in groupby(keys, key=lambda key: found[key] is not None):
            if not known:
                found |= self._read(state, wanted, list(run))
        return [point for point in found.values() if point is not None]

    def _read(self, state: LiveState, wanted: TrendWish, keys: Sequence[_Key]) -> dict[_Key, TrendPoint]:
        """Intervals that follow each other, each of whose boundaries is read once."""
        instants = [keys[0][1], *(end for _, _, end in keys)]
        found = {}
        for key, spans in zip(keys, state.walk(wanted.deployment, instants), strict=True):
            _, start, end = key
            point = found[key] = point_of(spans, wanted, start, end)
            if end + _SETTLED_S < state.now():
                self._remember(key, point)
        return found

    def _remember(self, key: _Key, point: TrendPoint) -> None:
        with self._lock:
            if key not in self._points:
                self._points[key] = point
                self._rates += _rates_of(point)
            while len(self._points) > self._most or self._rates > self._most_rates:
                self._rates -= _rates_of(self._points.pop(next(iter(self._points))))


def _rates_of(point: TrendPoint) -> int:
    """DP ranks of which an interval knows something, or that it isn't known, and EP ranks with a load."""
    return len(point.rates) + len(point.waiting) + len(point.unknown) + len(point.ep_loads) // _FLOAT32


def _absent(state: LiveState, deployment: Deployment) -> dict[int | None, str]:
    """The deployment's absent layers, by the newest frames."""
    return absent_layers(item.latest for item in state.producers(deployment) if item.outgrown is None)


def trend_router(state: LiveState, turns: Turns) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["queries"], route_class=turns.route)
    cache = KnownIntervals()

    @router.get("/v1/trend", responses=documented(400, 404, 422, 503) | {200: described(Trend)})
    def trend(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        layer: LayerParam = None,
        dp_rank: DpRankParam = None,
        phase: PhaseParam = None,
        start: StartParam = None,
        end: EndParam = None,
        step: StepParam = "5s",
        points: PointsParam = None,
        parts: PartsParam = None,
        ep_rank: EpRankParam = None,
    ) -> Response:
        """Tokens per second of each DP rank and the imbalance over EP ranks, interval by interval.

        `layer` bounds the imbalance: tokens pass all layers. `ep_rank` bounds nothing but `ep_ranks`.
        """
        deployment = choose(state, server, model, pool)
        if layer or dp_rank is not None:
            _check_named(state, deployment, layer, dp_rank)
        now = state.now()
        length, cuts = _cuts(parse_bounds(start, end, now), step, points, now)
        ep_size = heard_last(state.producers(deployment)).ep_size
        with_loads = bool(parts or ep_rank)
        if with_loads:
            _check_loads(len(set(ep_rank)) if ep_rank else ep_size, len(cuts) - 1)
        wanted = TrendWish(deployment, phase, dp_rank, frozenset(layer) if layer else None, with_loads)
        found = filled(cache.points(state, wanted, cuts))
        loads_of = _loads_of(found, ep_rank, ep_size) if with_loads else None
        ranks = sorted({rank for point in found for rank in (*point.rates, *point.unknown)})
        summaries = [point.imbalance or _NO_SAMPLE for point in found]
        result = Trend(
            server=deployment[0],
            model=deployment[1],
            step=length,
            dp_rank=dp_rank,
            phase=phase,
            dp_ranks=ranks,
            at=cuts[1:],
            tokens_per_second=[[point.rates.get(rank) for point in found] for rank in ranks],
            ratio_of_sums=[item.ratio_of_sums for item in summaries],
            worst=[item.worst for item in summaries],
            worst_layer=[item.worst_layer for item in summaries],
            not_conserved=sorted(frozenset().union(*(point.broken for point in found))),
            absent=compact_absent(_absent(state, deployment)),
            partial=partial_now(state, deployment),
            conflict=next((point.conflict for point in reversed(found) if point.conflict), None),
            ep_rank_ids=loads_of,
            ep_ranks=None if loads_of is None else _ep_ranks(found, loads_of),
        )
        return answer(result)

    return router


def _cuts(bounds: Bounds, step: str, points: int | None, now: float) -> tuple[float, list[float]]:
    """The length of the intervals, seconds, and the instants between them, rising.

    Raises:
        ProblemError: the length is none, or too short or long; there would be too many intervals (400); both
            a begin and a number of intervals were given (422).
    """
    length = parse_length(step)
    if not SHORTEST_S <= length <= LONGEST_S:
        raise ProblemError(
            400, "bad-step", "Not a length of time", f"step is {step!r}: give a second to a day, such as 5s."
        )
    if bounds.start is not None and points is not None:
        raise ProblemError(
            422, "start-and-points", "Two beginnings", "Give start or points: either says where it begins."
        )
    last = math.floor((now if bounds.end is None else min(bounds.end, now)) / length) * length
    count = points or DEFAULT_POINTS
    if bounds.start is not None:
        count = max(1, math.ceil((last - bounds.start) / length - 1e-9))
    if count > MAX_POINTS:
        raise ProblemError(
            400,
            "too-many-steps",
            "The trend would be too long",
            f"It would have {count} intervals, {MAX_POINTS} are allowed: give a longer step, or less.",
        )
    return length, [last - length * i for i in reversed(range(count + 1))]


def _check_loads(ranks: int, intervals: int) -> None:
    """Check that there are not too many loads of EP ranks.

    Raises:
        ProblemError: there are (400).
    """
    if ranks * intervals > MAX_LOADS:
        raise ProblemError(
            400,
            "too-many-steps",
            "The trend would be too long",
            f"Of {ranks} EP ranks an answer has {MAX_LOADS // ranks} intervals at most: ask for less, or "
            f"name EP ranks with ep_rank, {MAX_LOADS // intervals} at most.",
        )


def _loads_of(found: Sequence[TrendPoint], asked: list[int] | None, ep_size: int) -> list[int]:
    """The EP ranks whose loads are told, rising: those asked for, else all that have any.

    Raises:
        ProblemError: there was no such EP rank in the window, and there is none now (404).
    """
    size = max((len(point.ep_loads) // _FLOAT32 for point in found), default=0)
    if asked is None:
        return list(range(size))
    last = max(ep_size, size) - 1
    if max(asked) > last:
        raise ProblemError(
            404,
            "no-such-ep-rank",
            "No such EP rank",
            f"There is no EP rank {max(asked)}; they are 0 to {last}.",
        )
    return sorted(set(asked))


def _ep_ranks(found: Sequence[TrendPoint], ranks: list[int]) -> list[list[float | None]]:
    """Loads by EP rank of ``ranks``, then by interval."""
    loads = [np.frombuffer(point.ep_loads, dtype=np.float32) for point in found]
    return [[round(float(each[rank]), 4) if rank < len(each) else None for each in loads] for rank in ranks]


def _check_named(
    state: LiveState, deployment: Deployment, layers: list[int] | None, dp_rank: int | None
) -> None:
    """Check that the layers and the DP rank are those of somebody who reported.

    Raises:
        ProblemError: one isn't known (404).
    """
    if dp_rank is not None:
        check_dp_rank(dp_rank, state.producers(deployment))
    check_known("layer", layers or [], sorted(layers_now(state, deployment)))
