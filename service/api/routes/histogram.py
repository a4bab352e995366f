"""GET /v1/histogram: slots by layer and logical expert."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fastapi import APIRouter

from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import (
    DpRankParam,
    EndParam,
    LayerParam,
    ModelParam,
    PhaseParam,
    PoolParam,
    ServerParam,
    StartParam,
    StepParam,
    choose,
    parse_bounds,
    parse_step,
)
from moescope.service.api.problems import ProblemError, documented
from moescope.service.api.schemas.histogram import Histogram, Interval, LayerCounts, LayerHistogram
from moescope.service.api.schemas.windows import (
    absent_out,
    layers_now,
    partial_of,
    pick_layers,
    read_series,
    uncovered_out,
    window_out,
)
from moescope.service.live.state import LiveState
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.window import ModelWindow

MAX_NUMBERS: Final = 4_000_000


def histogram_router(state: LiveState, turns: Turns) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["queries"], route_class=turns.route)

    @router.get("/v1/histogram", responses=documented(400, 404, 422, 503))
    def histogram(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        layer: LayerParam = None,
        dp_rank: DpRankParam = None,
        phase: PhaseParam = None,
        start: StartParam = None,
        end: EndParam = None,
        step: StepParam = None,
    ) -> Histogram:
        """How many slots each logical expert got: absolute counts and shares, by layer, in a window.

        With `step` also as a series over the window.
        """
        now = state.now()
        bounds = parse_bounds(start, end, now)
        instants = parse_step(step, bounds, now)
        deployment = choose(state, server, model, pool)
        known = layers_now(state, deployment).values()
        _check_size((item.num_experts for item in known if not layer or item.layer in layer), instants)
        window, parts = read_series(state, *deployment, bounds, instants, dp_rank, phase)
        return Histogram(
            server=window.server,
            model=window.model,
            window=window_out(window, bounds),
            dp_rank=dp_rank,
            phase=phase,
            phase_reason=window.phase_reason,
            tokens=window.known_tokens,
            tokens_reason=window.reason,
            partial=partial_of(state, window, dp_rank),
            layers=[_layer(window.layers[i]) for i in pick_layers(window, layer)],
            uncovered=uncovered_out(window),
            absent=absent_out(window),
            series=_series(window, parts, instants, layer) if instants else None,
        )

    return router


def _series(
    whole: ModelWindow, parts: Iterable[ModelWindow], instants: list[float], wanted: list[int] | None
) -> list[Interval]:
    """The window cut at the instants.

    Raises:
        ProblemError: the answer would have too many numbers, with layers that only its past has.
    """
    _check_size((whole.layers[i].shape.num_experts for i in pick_layers(whole, wanted)), instants)
    return [
        Interval(
            start=start,
            end=end,
            truncated=window.used.truncated,
            tokens=window.known_tokens,
            layers=[_counts(window.layers[i]) for i in pick_layers(window, wanted)],
        )
        for start, end, window in zip(instants[:-1], instants[1:], parts, strict=True)
    ]


def _check_size(experts: Iterable[int], instants: list[float]) -> None:
    """Check that a series has not too many numbers.

    Args:
        experts: of each layer that is in it.
        instants: between its intervals; empty: there is no series.

    Raises:
        ProblemError: it has too many (400).
    """
    numbers = sum(experts) * max(0, len(instants) - 1)
    if numbers > MAX_NUMBERS:
        raise ProblemError(
            400,
            "too-many-numbers",
            "The series would be too large",
            f"It would have {numbers} counts, {MAX_NUMBERS} are allowed: ask for fewer layers or steps.",
        )


def _counts(layer: LayerWindow) -> LayerCounts:
    if layer.not_seen:
        return LayerCounts(layer=layer.shape.layer, tokens=None, counts=None, not_conserved=None)
    counts = layer.counts
    return LayerCounts(
        layer=layer.shape.layer,
        tokens=int(layer.rows.sum()),
        counts=counts.tolist(),
        not_conserved=layer.not_conserved,
    )


def _layer(layer: LayerWindow) -> LayerHistogram:
    reason = layer.not_seen
    counts, slots = layer.counts, int(layer.counts.sum())
    nothing = "no slots: the tokens of the window chose no expert here"
    if not layer.rows.any():
        nothing = "idle: no tokens in the window"
    return LayerHistogram(
        layer=layer.shape.layer,
        num_experts=layer.shape.num_experts,
        top_k=layer.shape.top_k,
        dp_ranks=list(layer.dp_ranks),
        missing_dp_ranks=list(layer.missing),
        tokens=None if reason else int(layer.rows.sum()),
        slots=None if reason else slots,
        counts=None if reason else counts.tolist(),
        shares=(counts / slots).tolist() if slots else None,
        reason=reason or (None if slots else nothing),
        not_conserved=layer.not_conserved,
    )
