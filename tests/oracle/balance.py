"""What /v1/histogram, /v1/balance and /v1/view should answer."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from tests.oracle.exact import measures, summary
from tests.oracle.layout import Layer
from tests.oracle.ledger import Number
from tests.oracle.window import Deployment, Phase, Seen, Window

IDLE, FEW, OTHER = "idle", "too few", "other"
"""Why a value is null, as far as the documents tell reasons apart: no tokens, too few of them, not known."""
AXES = ("over_ep_ranks", "over_dp_ranks", "over_experts")


def span(instants: Sequence[float]) -> dict[str, float]:
    return {"earliest": min(instants), "latest": max(instants)}


def window_answer(window: Window, start: float | None, end: float | None) -> dict[str, Any]:
    begin, close = window.used
    return {
        "start": start,
        "end": end,
        "used_start": span(begin),
        "used_end": span(close),
        "truncated": window.truncated,
    }


def total_tokens(window: Window, ranks: Sequence[int]) -> int | None:
    """Tokens of these DP ranks; None where the phases of some are not known."""
    parts = [window.tokens(dp) for dp in ranks]
    return None if any(part is None for part in parts) else sum(part or 0 for part in parts)


def histogram(
    deployment: Deployment, start: float | None, end: float | None, phase: Phase, dp_rank: int | None = None
) -> dict[str, Any]:
    """/v1/histogram without a step."""
    window = Window(deployment, start, end, phase)
    ranks = deployment.dp_ranks if dp_rank is None else [dp_rank]
    tokens = total_tokens(window, ranks)
    return {
        "tokens": tokens,
        "phase_reason": None if tokens is not None else OTHER,
        "truncated": window.truncated,
        "layers": [_layer_histogram(window, layer, ranks) for layer in deployment.layers],
    }


def _layer_histogram(window: Window, layer: Layer, ranks: Sequence[int]) -> dict[str, Any]:
    seen = window.layer(layer, ranks)
    answer: dict[str, Any] = {
        "layer": layer.index,
        "num_experts": layer.experts,
        "top_k": layer.top_k,
        "missing_dp_ranks": sorted(seen.missing),
        **dict.fromkeys(("tokens", "slots", "counts", "shares")),
        "reason": OTHER,
    }
    if not is_known(seen):
        return answer
    counts = seen.slots or [0] * layer.experts
    slots = sum(counts)
    shares = [Fraction(value, slots) for value in counts] if slots else None
    return {
        **answer,
        "tokens": seen.rows,
        "slots": slots,
        "counts": counts,
        "shares": shares,
        "reason": None if slots else IDLE,
    }


def is_known(seen: Seen) -> bool:
    """Whether a layer has counts: some DP rank shows its tokens, or none has any."""
    return not seen.missing or seen.rows > 0


def balance(
    deployment: Deployment, start: float | None, end: float | None, phase: Phase, min_tokens: int
) -> dict[str, Any]:
    """/v1/balance."""
    window = Window(deployment, start, end, phase)
    ranks = window.dp_ranks
    tokens = [window.tokens(dp) for dp in ranks]
    total = total_tokens(window, deployment.dp_ranks)
    layers = [_layer_balance(window, layer, min_tokens) for layer in deployment.layers]
    samples = {
        axis: [(one["layer"], one[axis]["loads"]) for one in layers if one[axis]["measures"] is not None]
        for axis in AXES
    }
    known = None if None in tokens else [value or 0 for value in tokens]
    return {
        "tokens": total,
        "dp_ranks": ranks,
        "missing_dp_ranks": sorted(set(range(deployment.fleet.dp)) - set(deployment.dp_ranks)),
        "dp_tokens": cell(known, sum(known or []), min_tokens, alone=len(ranks) < 2),
        "summary": {axis: summary(samples[axis]) for axis in AXES},
        "layers": layers,
    }


def _layer_balance(window: Window, layer: Layer, min_tokens: int) -> dict[str, Any]:
    seen = window.layer(layer)
    known = is_known(seen)
    by_dp = [sum(seen.shows.get(dp, [0])) for dp in window.dp_ranks]
    partial = bool(seen.missing)
    return {
        "layer": layer.index,
        "tokens": seen.rows if known else 0,
        "over_ep_ranks": cell(None if partial or window.deployment.fleet.ep == 1 else seen.ep, seen.rows, min_tokens),
        "over_dp_ranks": cell(None if partial else by_dp, seen.rows, min_tokens, alone=len(by_dp) < 2),
        "over_experts": cell(
            (seen.slots or [0] * layer.experts) if known else None, seen.rows, min_tokens
        ),
    }


def cell(loads: Sequence[Number] | None, tokens: int, min_tokens: int, *, alone: bool = False) -> dict[str, Any]:
    """One layer along one axis."""
    if loads is None:
        return {"loads": None, "measures": None, "reason": OTHER}
    if alone:
        return {"loads": loads, "measures": None, "reason": OTHER}
    if not tokens or not sum(loads):
        return {"loads": loads, "measures": None, "reason": IDLE}
    if tokens < min_tokens:
        return {"loads": loads, "measures": None, "reason": FEW}
    return {"loads": loads, "measures": measures(loads), "reason": None}
