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
    asked for is a part of all intervals from before the first begin to after the present.
    """
    last = math.floor(deployment.now / step) * step
    first = math.floor(min(ledger.begin for ledger in deployment.ledgers.values()) / step) * step
    ends = range(min(first, last - step * (points - 1)), last + 2 * step, step)
    windows = [Window(deployment, end - step, end, phase) for end in ends]
    asked = slice(len(ends) - 1 - points, len(ends) - 1)
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
        **{name: [ratio and ratio[name] for ratio in ratios[asked]] for name in names},
    }


def _per_second(tokens: int | None, step: int) -> Fraction | None:
    return None if tokens is None else Fraction(tokens, step)


def _imbalance(window: Window, min_tokens: int) -> dict[str, Any]:
    layers = [layer_balance(window, layer, min_tokens) for layer in window.deployment.layers]
    return summary(samples(layers, "over_ep_ranks"))


def _spread(ledgers: list[Ledger], windows: list[Window], values: list[Any], *, shared: bool) -> list[Any]:
    """The next interval's value for those without an arrival of these workers; shared evenly, or the same."""
    spread: list[Any] = [None] * len(windows)
    waiting: list[int] = []
    for place, (window, value) in enumerate(zip(windows, values, strict=True)):
        if _is_unknown(ledgers, window):
            continue
        waiting.append(place)
        if any(ledger.reported(window.start or 0.0, window.end) for ledger in ledgers):
            for one in waiting:
                spread[one] = value / len(waiting) if shared and value is not None else value
            waiting = []
    return spread


def _is_unknown(ledgers: list[Ledger], window: Window) -> bool:
    """Whether an interval is over before the workers' begin, or begins between it and the first frame."""
    over = window.end <= max(ledger.begin for ledger in ledgers)
    return over or all(ledger.begin < (window.start or 0.0) < ledger.times[0] for ledger in ledgers)
