"""One deployment of a pool in a window: the numbers that it is compared by with the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moescope.capture.wire import Int64Array
from moescope.service.live.pools import Replica
from moescope.service.live.producers import ProducerSpan, why_unavailable
from moescope.service.windows.assessment import Assessment, AxisBalance, assess
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.seconds import longest
from moescope.service.windows.step_window import cost_of, straggler_cost
from moescope.service.windows.window import ModelWindow, Used, merge_spans


@dataclass(frozen=True, slots=True)
class Known:
    """A number, or the reason why it isn't known."""

    value: float | None
    reason: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class LayerRouting:
    """What one deployment's tokens chose in a layer: slots by logical expert, int64 [num_experts].

    ``unknown`` says why they are not those of its tokens, or is None. Zeros without a reason are idle.
    """

    counts: Int64Array
    tokens: int
    unknown: str | None = None


@dataclass(frozen=True, slots=True)
class PhaseTokens:
    """Tokens by phase."""

    prefill: int
    decode: int


@dataclass(frozen=True, eq=False, slots=True)
class ReplicaWindow:
    """One deployment in a window.

    Attributes:
        replica: who it is.
        used: the instants that were used.
        dp_size, ep_size: its ranks at the window's end.
        tokens: tokens that it computed, as far as they are known; ``reason`` says why not all are, or None.
        phases: its tokens by phase, or None; ``phase_reason`` then says why.
        seconds: the time in which it counted them.
        ep_imbalance: sum over layers of the busiest EP rank's slots / sum of the mean.
        worst_layer_imbalance: the largest imbalance ratio over EP ranks; ``worst_layer`` is its layer.
        dp_imbalance: imbalance ratio of tokens over DP ranks.
        max_vio: the largest MaxVio over experts among layers; ``max_vio_layer`` is its layer.
        hot_experts: experts with 3 times a fair share or more, summed over layers.
        straggler_cost: from its joined steps.
        routing: what its tokens chose, by layer.
        weights: why it may be of several versions of the model's weights, or None.
        left_out: why it is not compared with its siblings though its tokens are known, or None.
    """

    replica: Replica
    used: Used
    dp_size: int
    ep_size: int
    tokens: int
    reason: str | None
    phases: PhaseTokens | None
    phase_reason: str | None
    seconds: float
    ep_imbalance: Known
    worst_layer_imbalance: Known
    worst_layer: int | None
    dp_imbalance: Known
    max_vio: Known
    max_vio_layer: int | None
    hot_experts: Known
    straggler_cost: Known
    routing: Mapping[int, LayerRouting]
    left_out: str | None
    weights: str | None = None

    @property
    def tokens_per_second(self) -> Known:
        """Tokens over the time in which they were counted."""
        if self.reason:
            return Known(None, self.reason)
        if self.seconds <= 0:
            return Known(None, "no time: it reported once, or not in the window")
        return Known(self.tokens / self.seconds)


def replica_window(
    replica: Replica, spans: Sequence[ProducerSpan], end: float, min_tokens: int
) -> ReplicaWindow:
    """What one deployment counted in a window.

    Args:
        replica: who it is.
        spans: what its producers counted; one at least.
        end: the window's end, seconds of Unix time.
        min_tokens: fewer tokens are no sample of balance.
    """
    window = merge_spans(spans)
    found = assess(window, min_tokens)
    phases, phase_reason = _phases(window, spans)
    ep, dp = found.ep_ranks.summary, found.dp_tokens
    max_vio, max_vio_layer, hot = _experts(found)
    unsampled = _why_none(found.ep_ranks)
    return ReplicaWindow(
        replica=replica,
        used=window.used,
        weights=window.weights,
        dp_size=window.dp_size,
        ep_size=window.ep_size,
        tokens=window.tokens,
        reason=window.reason,
        phases=phases,
        phase_reason=phase_reason,
        seconds=longest(spans, end),
        ep_imbalance=_known(ep.ratio_of_sums, unsampled),
        worst_layer_imbalance=_known(ep.worst, unsampled),
        worst_layer=ep.worst_layer,
        dp_imbalance=_known(None if dp.measures is None else dp.measures["imbalance_ratio"], dp.reason),
        max_vio=max_vio,
        max_vio_layer=max_vio_layer,
        hot_experts=hot,
        straggler_cost=_straggler_cost(spans, window),
        routing=routing_of(window),
        left_out=window.conflict or _why_absent(replica, end),
    )


def _why_absent(replica: Replica, end: float) -> str | None:
    """Why a deployment was not there until the window's end, or None: it was."""
    state = replica.state
    if state == "gone" and replica.heard_at < end:
        return "it ended before the window's end"
    waited = max(item.stale_after for item in replica.producers)
    if state == "stale" and replica.heard_at + waited < end:
        return "it fell silent before the window's end"
    return None


def routing_of(window: ModelWindow) -> dict[int, LayerRouting]:
    """What the tokens of a window chose, by layer; layers that nobody can see are not among them."""
    return {layer.shape.layer: _routing(layer) for layer in window.layers}


def _routing(layer: LayerWindow) -> LayerRouting:
    unknown = layer.phase_reason or layer.not_seen or layer.not_conserved
    return LayerRouting(layer.counts, int(layer.rows.sum()), unknown)


def _phases(window: ModelWindow, spans: Sequence[ProducerSpan]) -> tuple[PhaseTokens | None, str | None]:
    if window.reason:
        return None, window.reason
    split = [rank.phases for rank in window.dp_ranks]
    known = [phases for phases in split if phases is not None]
    if len(known) < len(split):
        told = why_unavailable((item.producer for item in spans), "phases")
        return None, told or "the phases of some of its tokens are not known"
    prefill = sum(phases.prefill_tokens for phases in known)
    return PhaseTokens(prefill, sum(phases.decode_tokens for phases in known)), None


def _experts(found: Assessment) -> tuple[Known, int | None, Known]:
    """The largest MaxVio among layers, its layer, and the hot experts of all layers."""
    sampled = [
        (cell.measures["max_vio"], layer.shape.layer, cell.measures["hot"])
        for cell, layer in zip(found.experts.cells, found.window.layers, strict=True)
        if cell.measures is not None
    ]
    if not sampled:
        unknown = Known(None, _why_none(found.experts))
        return unknown, None, unknown
    worst, layer, _ = max(sampled, key=lambda item: (item[0], -item[1]))
    return Known(worst), layer, Known(sum(hot for _, _, hot in sampled))


def _straggler_cost(spans: Sequence[ProducerSpan], window: ModelWindow) -> Known:
    if window.ep_size == 1:
        return Known(None, "ep_size is 1: the experts are not spread over ranks, so nobody waits")
    if window.conflict is not None:
        return Known(None, window.conflict)
    told = why_unavailable((item.producer for item in spans), "steps")
    why = f"no loads of single steps: {told}" if told else "no step with tokens was joined in the window"
    return _known(straggler_cost(*cost_of(spans).sums), why)


def _why_none(axis: AxisBalance) -> str:
    """Why no layer has a sample along an axis."""
    return next((cell.reason for cell in axis.cells if cell.reason), "no MoE layer was counted")


def _known(value: float | None, reason: str | None) -> Known:
    return Known(None, reason) if value is None else Known(value)
