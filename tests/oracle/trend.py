"""What /v1/trend should answer."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from tests.oracle.balance import layer_balance, samples
from tests.oracle.deployment import Deployment
from tests.oracle.exact import summary
from tests.oracle.ledger import Ledger
from tests.oracle.window import Phase, Window


def trend(deployment: Deployment, step: int, points: int, phase: Phase, min_tokens: int) -> dict[str, Any]:
    """/v1/trend: rates by DP rank, and the imbalance over EP ranks.

    Intervals end at ``at``, at whole multiples of ``step``; the last one is the last that is over. What is
    asked for is a part of all intervals since before the first begin. What was before all workers (of the DP
    rank, or of the deployment for the imbalance) had reported is not compared, nor what comes of late frames
    of a former start: the documents leave it open.
    """
    last = math.floor(deployment.now / step) * step
    first = math.floor(min(ledger.begin for ledger in deployment.ledgers.values()) / step) * step
    ends = range(min(first, last - step * (points - 1)), last + step, step)
    windows = [Window(deployment, end - step, end, phase) for end in ends]
    asked = slice(len(ends) - points, len(ends))
    everyone = list(deployment.ledgers.values())
    ratios = _spread(everyone, windows, [_imbalance(window, min_tokens) for window in windows], shared=False)
    rates = {
        dp: _spread(
            [deployment.ledgers[worker] for worker in deployment.workers_of(dp)],
            windows,
            [_per_second(window.tokens(dp), step) for window in windows],
            shared=True,
        )[asked]
        for dp in deployment.dp_ranks
    }
    names = ("ratio_of_sums", "worst", "worst_layer")
    return {
        "at": list(ends)[asked],
        "tokens_per_second": rates,
        **{
            name: [ratio[name] if isinstance(ratio, dict) else ratio for ratio in ratios[asked]]
            for name in names
        },
    }


def _per_second(tokens: int | None, step: int) -> Fraction | None:
    return None if tokens is None else Fraction(tokens, step)


def _imbalance(window: Window, min_tokens: int) -> dict[str, Any]:
    layers = [layer_balance(window, layer, min_tokens) for layer in window.deployment.layers]
    return summary(samples(layers, "over_ep_ranks"))


def _is_followed(ledger: Ledger) -> bool:
    """Whether late frames of a former start came after the worker's newest frame."""
    return ledger.times[-1] > ledger.newest_at


def _spread(ledgers: list[Ledger], windows: list[Window], values: list[Any], *, shared: bool) -> list[Any]:
    """Each interval's value. Those without an arrival of these workers have the next one's, or share it."""
    spread: list[Any] = [None] * len(windows)
    waiting: list[int] = []
    known = max(ledger.times[0] for ledger in ledgers)
    for place, (window, value) in enumerate(zip(windows, values, strict=True)):
        if (window.start or 0.0) < known or any(map(_is_followed, ledgers)):
            spread[place] = ...
            continue
        waiting.append(place)
        if any(ledger.reported(window.start or 0.0, window.end) for ledger in ledgers):
            for one in waiting:
                spread[one] = value / len(waiting) if shared and value is not None else value
            waiting = []
    return spread
