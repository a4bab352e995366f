"""GET /v1/drift: how far routing has moved from a baseline, or from the hour before."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Final

from fastapi import APIRouter, Query

from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    Bounds,
    DpRankParam,
    EndParam,
    LayerParam,
    MinTokensParam,
    ModelParam,
    PhaseParam,
    PoolParam,
    ServerParam,
    WeightsParam,
    check_dp_rank,
    check_known,
    choose,
    parse_bounds,
)
from moescope.service.api.params.stored import find_baseline
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.drift import DriftAnswer, DriftSummaryOut, LayerDriftOut
from moescope.service.api.schemas.windows import (
    absent_out,
    bounds_of_weights,
    known_layers,
    partial_of,
    window_out,
)
from moescope.service.counts.phase_split import Phase
from moescope.service.counts.weights import WeightsWish
from moescope.service.drift.baseline import PREVIOUS_HOUR, Baseline, BaselineBook
from moescope.service.drift.measure import LayerDrift, LayerSlots, layer_drifts, slots_of, summary_of
from moescope.service.drift.watch import HOUR_S, previous_hour
from moescope.service.live.producers import Deployment
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.verdict.rules import how_far
from moescope.service.windows.phase_window import merge_spans_of_phase
from moescope.service.windows.weights import changed_at, changed_within
from moescope.service.windows.window import ModelWindow

DEFAULT_START: Final = "-5m"

DriftStartParam = Annotated[
    str, Query(description="Begin of the window: Unix seconds, or relative as `-5m`.", examples=["-5m"])
]
BaselineParam = Annotated[
    str, Query(description="Name of a pinned baseline, or previous_hour: the hour before the window.")
]


def drift_router(state: LiveState, settings: Settings, book: BaselineBook, turns: Turns) -> APIRouter:
    """The route over ``state`` and the baselines of ``book``."""
    router = APIRouter(tags=["drift"], route_class=turns.route)

    @router.get("/v1/drift", responses=documented(400, 404, 422, 503))
    def get_drift(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        baseline: BaselineParam = PREVIOUS_HOUR,
        layer: LayerParam = None,
        dp_rank: DpRankParam = None,
        phase: PhaseParam = None,
        start: DriftStartParam = DEFAULT_START,
        end: EndParam = None,
        min_tokens: MinTokensParam = None,
        weights: WeightsParam = WeightsWish.LATEST,
    ) -> DriftAnswer:
        """Divergence of each layer from the base; experts that died or became hot since.

        The summary covers all layers, also when only some are asked for. One DP rank is compared with its own
        hour before; a pinned baseline is of all DP ranks.
        """
        deployment = choose(state, server, model, pool)
        if dp_rank is not None:
            _check_rank(state, deployment, baseline, dp_rank)
        asked = parse_bounds(start, end, state.now())
        bounds = bounds_of_weights(state, deployment, asked, weights)
        gate = settings.min_tokens if min_tokens is None else min_tokens
        if baseline == PREVIOUS_HOUR:
            compared = _with_hour_before(state, deployment, bounds, phase, dp_rank, weights)
        else:
            pinned = find_baseline(book, baseline, *deployment)
            compared = _with_pinned(state, pinned, bounds, phase, weights)
        found = layer_drifts(compared.window, compared.slots, gate, compared.why_not)
        if layer:
            check_known("layer", layer, known_layers(compared.window))
        return DriftAnswer(
            server=deployment[0],
            model=deployment[1],
            window=window_out(compared.window, compared.bounds),
            dp_rank=dp_rank,
            phase=phase,
            tokens=compared.window.known_tokens,
            baseline=baseline,
            baseline_start=compared.base[0],
            baseline_end=compared.base[1],
            baseline_tokens=compared.base[2],
            min_tokens=gate,
            partial=partial_of(state, compared.window, dp_rank),
            summary=_summary(found),
            layers=[
                LayerDriftOut.model_validate(asdict(item))
                for item in found
                if not layer or item.layer in layer
            ],
            absent=absent_out(compared.window),
        )

    return router


def _summary(layers: list[LayerDrift]) -> DriftSummaryOut:
    summary = summary_of(layers)
    moved, median, noise = summary.moved, summary.median, summary.noise
    found = None if moved is None or median is None or noise is None else how_far(moved, median, noise)
    return DriftSummaryOut(**asdict(summary), found=found)


@dataclass(frozen=True, slots=True)
class _Compared:
    """What is compared.

    Attributes:
        bounds: the window as it was asked for, or since the weights changed.
        window: what was counted in compared.
        slots: the base's slots by layer.
        base: the base's begin and end, Unix seconds, and its tokens; None: they aren't known.
        why_not: why the two can't be compared, or None.
    """

    bounds: Bounds
    window: ModelWindow
    slots: LayerSlots
    base: tuple[float, float, int | None]
    why_not: str | None = None


def _with_hour_before(
    state: LiveState,
    deployment: Deployment,
    bounds: Bounds,
    phase: Phase | None,
    dp_rank: int | None,
    weights: WeightsWish,
) -> _Compared:
    begin = state.now() if bounds.start is None else bounds.start
    since = None
    if weights is WeightsWish.LATEST:
        since = changed_within(state, deployment, begin - HOUR_S, bounds.end)
    if since is not None and bounds.moved is None:
        word = f"the hour before has what was counted since the weights were changed at {since:.3f}"
        bounds = replace(bounds, moved=f"{word}; weights=all takes all")
    hour, window = previous_hour(state, deployment, begin, bounds.end, phase, dp_rank, since)
    base = hour.used.start_earliest, hour.used.end_latest, hour.known_tokens
    return _Compared(bounds, window, slots_of(hour), base)


def _with_pinned(
    state: LiveState, pinned: Baseline, bounds: Bounds, phase: Phase | None, weights: WeightsWish
) -> _Compared:
    spans = state.spans(pinned.deployment, bounds.start, bounds.end)
    why_not = None
    if weights is WeightsWish.LATEST:
        until = state.now() if bounds.end is None else bounds.end
        why_not = pinned.why_other_weights(changed_at(item.span.last for item in spans), until)
    base = pinned.start, pinned.end, pinned.tokens
    window = merge_spans_of_phase(spans, phase)
    return _Compared(bounds, window, _of_phase(pinned, phase), base, why_not)


def _check_rank(state: LiveState, deployment: Deployment, baseline: str, dp_rank: int) -> None:
    """Check that a DP rank can be compared with this baseline.

    Raises:
        ProblemError: the baseline is of all DP ranks (422), or there is no such DP rank (404).
    """
    if baseline != PREVIOUS_HOUR:
        raise ProblemError(
            422,
            "no-dp-ranks",
            "A baseline is of all DP ranks",
            f"dp_rank: {baseline} was pinned of the whole deployment. Leave dp_rank out, or leave baseline "
            "out to compare the DP rank with its own hour before.",
        )
    check_dp_rank(dp_rank, state.producers(deployment))


def _of_phase(pinned: Baseline, phase: Phase | None) -> LayerSlots:
    """A baseline's slots by layer, of one phase or of both.

    Raises:
        ProblemError: the baseline doesn't tell its phases apart (400).
    """
    slots = pinned.slots(phase)
    if slots is None:
        raise ProblemError(
            400,
            "no-phases",
            "This baseline knows no phases",
            f"When {pinned.name} was pinned, prefill and decode were not told apart: leave phase out, or "
            "pin it anew.",
        )
    return slots
