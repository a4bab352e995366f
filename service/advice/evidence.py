"""What a deployment's past says about placements: loads to fit on, and later loads to check against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from moescope.service.live.producers import Deployment
from moescope.service.live.state import LiveState
from moescope.service.measures.arrays import FloatArray
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.step_window import cost_of
from moescope.service.windows.window import ModelWindow, merge_spans

LayerReasons = dict[int, str]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Straggler cost over single steps: the share of the time in experts that an average EP rank waits.

    ``windowed`` is what the same window shows as a whole; hot ranks that change hide the rest. ``steps`` are
    those of which the loads of all ranks are known.
    """

    cost: float
    windowed: float
    steps: int


@dataclass(frozen=True, slots=True)
class Windows:
    """Consecutive windows of one deployment: ``fit``, then K ``pieces`` of the one that checks the fit.

    ``max_slots`` and ``mean_slots`` are sums over the later window's single steps and layers, of the busiest
    EP rank's slots and of the mean; ``steps`` is how many. See :mod:`moescope.service.windows.step_window`.
    """

    fit: ModelWindow
    pieces: tuple[ModelWindow, ...]
    max_slots: int = 0
    mean_slots: float = 0.0
    steps: int = 0

    @property
    def seconds(self) -> float:
        """The time that the data of both windows really span."""
        return max(0.0, self.pieces[-1].used.end_latest - self.fit.used.start_earliest)

    def waiting(self, ratio_of_sums: float | None) -> Waiting | None:
        """Straggler cost, beside the later window's ratio of sums as observed; None where one isn't known."""
        if not self.max_slots or ratio_of_sums is None:
            return None
        return Waiting(1 - self.mean_slots / self.max_slots, 1 - 1 / ratio_of_sums, self.steps)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Slots of the L layers that can be judged, which have E experts each.

    Attributes:
        layers: their ids, rising.
        experts: E.
        ranks: G, EP ranks to place on.
        fit: slots per logical expert in the window to fit on, float64 [L, E].
        pieces: slots per logical expert in the K pieces of the later window, float64 [K, L, E].
        seen_fit: slots that each EP rank really got in the window to fit on, float64 [L, G]; None where that
            is not known, for the reason in ``unseen``.
        seen_pieces: slots that each EP rank really got in the K pieces, float64 [K, L, G]; None as above.
        left_out: layer to the reason why it can't be judged.
        fit_tokens, later_tokens: tokens computed in the two windows.
        estimate: why ``seen_fit`` and ``seen_pieces`` are an estimate; None: they are exact, or not known.
    """

    layers: tuple[int, ...]
    experts: int
    ranks: int
    fit: FloatArray
    pieces: FloatArray
    seen_fit: FloatArray | None
    seen_pieces: FloatArray | None
    unseen: str | None
    left_out: LayerReasons
    fit_tokens: int
    later_tokens: int
    estimate: str | None = None

    @property
    def later(self) -> FloatArray:
        """Slots per logical expert in the whole later window, float64 [L, E]."""
        return np.asarray(self.pieces.sum(axis=0))


def cut(
    state: LiveState,
    deployment: Deployment,
    start: float | None,
    end: float | None,
    *,
    fit_share: float,
    pieces: int,
) -> Windows:
    """Cut what is remembered of [start, end] in two, the later part in pieces of equal length.

    The cut is by what the totals at hand really cover, which may be less than was asked for: from the first
    rank that counted to the last, since ranks may come and go in the window, or be gone before it.

    Raises:
        StoreError: the archive can't be read.
    """
    whole = merge_spans(state.spans(deployment, start, end)).used
    first = whole.start_earliest if start is None else max(start, whole.start_earliest)
    last = max(first, whole.end_latest)
    middle = first + fit_share * (last - first)
    inner = [middle + i * (last - middle) / pieces for i in range(pieces)]
    series = state.walk(deployment, (start, *inner, end))
    found = [merge_spans(next(series))]
    costs = []
    for spans in series:
        costs.append(cost_of(spans))
        found.append(merge_spans(spans))
    return Windows(
        fit=found[0],
        pieces=tuple(found[1:]),
        max_slots=sum(cost.sums[0] for cost in costs),
        mean_slots=sum(cost.sums[1] for cost in costs),
        steps=sum(max((stage.joined for stage in cost.stages.values()), default=0) for cost in costs),
    )


def gather(windows: Windows, ranks: int, min_tokens: int) -> Evidence:
    """The loads of all layers that have at least ``min_tokens`` tokens in both windows, and in full."""
    fit, pieces = windows.fit, windows.pieces
    by_piece = [{layer.shape.layer: layer for layer in piece.layers} for piece in pieces]
    widths = Counter(layer.shape.num_experts for layer in fit.layers)
    experts = widths.most_common(1)[0][0] if widths else 0
    kept: list[tuple[LayerWindow, list[LayerWindow]]] = []
    left_out = not_there(fit)
    for layer in fit.layers:
        later = [piece[layer.shape.layer] for piece in by_piece if layer.shape.layer in piece]
        reason = _why_not(layer, later, experts, min_tokens)
        if reason is None and len(later) == len(pieces):
            kept.append((layer, later))
        else:
            left_out[layer.shape.layer] = reason or "its shape changed in the window"
    unseen = _why_unseen(kept, fit.ep_size, ranks)
    whole = [[layer, *later] for layer, later in kept]
    counts = np.array([[part.counts for part in parts] for parts in whole], dtype=np.float64)
    counts = counts.reshape(len(kept), 1 + len(pieces), experts).swapaxes(0, 1)
    seen = None
    if unseen is None:
        seen = np.array([[_padded(part.ep_slots, ranks) for part in parts] for parts in whole])
        seen = seen.reshape(len(kept), 1 + len(pieces), ranks).swapaxes(0, 1)
    return Evidence(
        layers=tuple(layer.shape.layer for layer, _ in kept),
        experts=experts,
        ranks=ranks,
        fit=counts[0],
        pieces=counts[1:],
        seen_fit=None if seen is None else seen[0],
        seen_pieces=None if seen is None else seen[1:],
        unseen=unseen,
        left_out={layer: left_out[layer] for layer in sorted(left_out)},
        fit_tokens=fit.tokens,
        later_tokens=sum(piece.tokens for piece in pieces),
        estimate=why_estimated([part for parts in whole for part in parts]) if unseen is None else None,
    )


def why_estimated(parts: Iterable[LayerWindow]) -> str | None:
    """Why the loads of EP ranks of some layers are an estimate; None: they are exact."""
    told = ((part.shape.layer, part.ep_estimate) for part in parts)
    return next((f"layer {layer}: {estimate}" for layer, estimate in told if estimate), None)


def not_there(window: ModelWindow) -> LayerReasons:
    """The MoE layers that nobody counts, to the reason; not those of which it isn't known which they are."""
    absent = {layer: f"absent: {reason}" for layer, reason in window.absent.items() if layer is not None}
    return {**window.uncovered, **absent}


def _why_not(layer: LayerWindow, later: Sequence[LayerWindow], experts: int, min_tokens: int) -> str | None:
    if layer.shape.num_experts != experts:
        return f"it has {layer.shape.num_experts} experts, most layers {experts}: EPLB places layers alike"
    for name, parts in (("fitted", [layer]), ("checked", later)):
        tokens = sum(int(part.rows.sum()) for part in parts)
        if not tokens:
            seen = next((part.not_seen for part in parts if part.not_seen), None)
            return seen or f"idle: no tokens in the window it would be {name} on"
        if tokens < max(min_tokens, 1):
            return f"too few tokens in the window it would be {name} on: {tokens} of at least {min_tokens}"
        if not any(part.counts.any() for part in parts):
            return f"no slots: the tokens of the window it would be {name} on chose no expert here"
        partial = next((part.why_partial for part in parts if part.missing), None)
        broken = next((part.not_conserved for part in parts if part.not_conserved), None)
        if partial or broken:
            return partial or broken
    return None


def _why_unseen(
    kept: Sequence[tuple[LayerWindow, list[LayerWindow]]], ep_size: int, ranks: int
) -> str | None:
    """Why it is not known what the ranks in question really got."""
    if ep_size != ranks:
        return f"the deployment has {ep_size} EP ranks, the question is about {ranks}"
    parts = [part for layer, later in kept for part in (layer, *later) if part.rows.sum()]
    reason = next((part.ep_reason for part in parts if part.ep_reason), None)
    if reason is None and any(len(part.ep_slots) > ranks for part in parts):
        return "the number of EP ranks changed in the window"
    return reason


def _padded(slots: FloatArray, ranks: int) -> FloatArray:
    found = np.zeros(ranks)
    found[: min(len(slots), ranks)] = slots[:ranks]
    return found
