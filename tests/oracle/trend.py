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
    asked for is a part of all intervals since before the first begin. Some things are left open by the
    documents, and are not compared: rates before all workers of the DP rank have reported, and the imbalance
    of intervals in which only some workers reported. Nor is what comes of late frames of a former start.
    """
    last = math.floor(deployment.now / step) * step
    first = math.floor(min(ledger.begin for ledger in deployment.ledgers.values()) / step) * step
    ends = range(min(first, last - step * (points - 1)), last + step, step)
    windows = [Window(deployment, end - step, end, phase) for end in ends]
    asked = slice(len(ends) - points, len(ends))
    everyone = list(deployment.ledgers.values())
    ratios = [_imbalance(window, min_tokens) if _is_of_all(everyone, window) else ... for window in windows]
    rates = {
        dp: _spread(
            [deployment.ledgers[worker] for worker in deployment.workers_of(dp)],
            windows,
            [_per_second(window.tokens(dp), step) for window in windows],
        )[asked]
        for dp in deployment.dp_ranks
    }
    names = ("ratio_of_sums", "worst", "worst_layer")
    return {
        "at": list(ends)[asked],
        "tokens_per_second": rates,
        **{name: [... if ratio is ... else ratio[name] for ratio in ratios[asked]] for name in names},
    }


def _per_second(tokens: int | None, step: int) -> Fraction | None:
    return None if tokens is None else Fraction(tokens, step)


def _imbalance(window: Window, min_tokens: int) -> dict[str, Any]:
    layers = [layer_balance(window, layer, min_tokens) for layer in window.deployment.layers]
    return summary(samples(layers, "over_ep_ranks"))


def _is_of_all(ledgers: list[Ledger], window: Window) -> bool:
    """Whether all workers that go on reporting had done so before the interval, and did so in it."""
    start = window.start or 0.0
    if any(map(_is_followed, ledgers)):
        return False
    alive = [ledger for ledger in ledgers if ledger.times[-1] > start]
    return bool(alive) and all(one.times[0] <= start and one.reported(start, window.end) for one in alive)


def _is_followed(ledger: Ledger) -> bool:
    """Whether late frames of a former start came after the worker's newest frame."""
    return ledger.times[-1] > ledger.newest_at


def _spread(ledgers: list[Ledger], windows: list[Window], rates: list[Any]) -> list[Any]:
    """Each interval's rate; the next one's is shared evenly with those before it without an arrival."""
    spread: list[Any] = [None] * len(windows)
    waiting: list[int] = []
    known = max(ledger.times[0] for ledger in ledgers)
    for place, (window, rate) in enumerate(zip(windows, rates, strict=True)):
        if (window.start or 0.0) < known or any(map(_is_followed, ledgers)):
            spread[place] = ...
            continue
        waiting.append(place)
        if any(ledger.reported(window.start or 0.0, window.end) for ledger in ledgers):
            for one in waiting:
                spread[one] = None if rate is None else rate / len(waiting)
            waiting = []
    return spread
