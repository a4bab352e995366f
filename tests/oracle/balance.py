"""What /v1/histogram and /v1/balance should answer."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

from tests.oracle.deployment import Deployment
from tests.oracle.exact import measures, summary
from tests.oracle.layout import Layer
from tests.oracle.ledger import Number
from tests.oracle.window import Phase, Seen, Window

IDLE: Final = "idle"
FEW: Final = "too few"
PARTIAL: Final = "partial"
OTHER: Final = "other"
"""Why a value is null, as far as the documents give the words: see `compare.KINDS`."""
AXES: Final = ("over_ep_ranks", "over_dp_ranks", "over_experts")


def window_answer(window: Window, start: float | None, end: float | None) -> dict[str, Any]:
    begin, close = window.used
    return {
        "start": start,
        "end": end,
        "used_start": {"earliest": min(begin), "latest": max(begin)},
        "used_end": {"earliest": min(close), "latest": max(close)},
        "truncated": window.truncated,
    }


def histogram(
    deployment: Deployment, start: float | None, end: float | None, phase: Phase, dp_rank: int | None = None
) -> dict[str, Any]:
    """/v1/histogram without a step."""
    window = Window(deployment, start, end, phase, dp_rank)
    return {
        "window": window_answer(window, start, end),
        "phase_reason": OTHER if window.unphased else None,
        "tokens": window.all_tokens,
        "layers": [_layer_histogram(window, layer) for layer in deployment.layers],
        "uncovered": [{"layer": index} for index in deployment.uncovered],
    }


def series(
    deployment: Deployment, start: float, end: float, step: float, phase: Phase, dp_rank: int | None = None
) -> list[dict[str, Any]]:
    """The intervals of /v1/histogram with a step; the last one ends with the window."""
    intervals = []
    at = start
    while at < end:
        window = Window(deployment, at, min(at + step, end), phase, dp_rank)
        layers = []
        for layer in deployment.layers:
            seen = window.layer(layer)
            layers.append(
                {
                    "layer": layer.index,
                    "tokens": seen.rows if seen.known else None,
                    "counts": seen.slots if seen.known else None,
                }
            )
        intervals.append(
            {
                "start": at,
                "end": min(at + step, end),
                "truncated": window.truncated,
                "tokens": window.all_tokens,
                "layers": layers,
            }
        )
        at += step
    return intervals


def _layer_histogram(window: Window, layer: Layer) -> dict[str, Any]:
    seen = window.layer(layer)
    answer: dict[str, Any] = {
        "layer": layer.index,
        "num_experts": layer.experts,
        "top_k": layer.top_k,
        "missing_dp_ranks": seen.missing,
        **dict.fromkeys(("tokens", "slots", "counts", "shares")),
        "reason": OTHER,
    }
    if not seen.known:
        return answer
    slots = sum(seen.slots)
    return {
        **answer,
        "tokens": seen.rows,
        "slots": slots,
        "counts": seen.slots,
        "shares": [Fraction(value, slots) for value in seen.slots] if slots else None,
        "reason": None if slots else OTHER if seen.rows else IDLE,
    }


def balance(
    deployment: Deployment, start: float | None, end: float | None, phase: Phase, min_tokens: int
) -> dict[str, Any]:
    """/v1/balance."""
    window = Window(deployment, start, end, phase)
    tokens = [window.tokens(dp) for dp in window.dp_ranks]
    known = None if None in tokens else [value or 0 for value in tokens]
    layers = [layer_balance(window, layer, min_tokens) for layer in deployment.layers]
    return {
        "window": window_answer(window, start, end),
        "tokens": window.all_tokens,
        "dp_ranks": window.dp_ranks,
        "missing_dp_ranks": deployment.missing_dp_ranks,
        "dp_tokens": _tokens_cell(known, min_tokens),
        "summary": {axis: summary(samples(layers, axis)) for axis in AXES},
        "layers": layers,
        "uncovered": [{"layer": index} for index in deployment.uncovered],
    }


def samples(layers: Sequence[dict[str, Any]], axis: str) -> list[tuple[int, list[Number]]]:
    """Index and loads of the layers that have a sample."""
    return [(one["layer"], one[axis]["loads"]) for one in layers if one[axis]["measures"] is not None]


def layer_balance(window: Window, layer: Layer, min_tokens: int) -> dict[str, Any]:
    """One layer along its three axes."""
    seen = window.layer(layer)
    by_dp = [seen.by_dp[dp] for dp in window.dp_ranks]
    unplaced = window.deployment.fleet.ep == 1 or seen.ep is None
    partial = bool(seen.missing)
    return {
        "layer": layer.index,
        "tokens": seen.rows if seen.known else 0,
        "over_ep_ranks": _cell(None if partial or unplaced else seen.ep, seen, min_tokens, unplaced),
        "over_dp_ranks": _cell(None if partial else by_dp, seen, min_tokens, len(by_dp) < 2),
        "over_experts": _cell(seen.slots if seen.known else None, seen, min_tokens),
    }


def _cell(
    loads: Sequence[Number] | None, seen: Seen, min_tokens: int, impossible: bool = False
) -> dict[str, Any]:
    """One layer along one axis; the reasons in their order."""
    if impossible or not seen.known:
        reason = OTHER
    elif not seen.rows:
        reason = IDLE
    elif seen.rows < min_tokens:
        reason = FEW
    elif loads is None:
        reason = PARTIAL
    elif not sum(loads):
        reason = OTHER
    else:
        return {"loads": loads, "measures": measures(loads), "reason": None}
    return {"loads": loads, "measures": None, "reason": reason}


def _tokens_cell(tokens: list[int] | None, min_tokens: int) -> dict[str, Any]:
    """Tokens of each DP rank."""
    if tokens is None or len(tokens) < 2:
        reason = OTHER
    elif not sum(tokens):
        reason = IDLE
    elif sum(tokens) < min_tokens:
        reason = FEW
    else:
        return {"loads": tokens, "measures": measures(tokens), "reason": None}
    return {"loads": tokens, "measures": None, "reason": reason}
