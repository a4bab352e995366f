"""Windows and weights: where a window holds tokens of several versions, and since when it doesn't."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from moescope.service.counts.totals import Totals
from moescope.service.live.producers import Deployment, ProducerSpan
from moescope.service.live.state import LiveState

GRACE_S: Final = 10.0
"""A change reaches the ranks' frames one after the other: for so long they may tell unlike versions."""


def changed_at(totals: Iterable[Totals]) -> float:
    """When the last of a deployment's producers told other weights than before, Unix seconds; 0: never."""
    return max((item.weights.at for item in totals), default=0.0)


def changed_within(
    state: LiveState, deployment: Deployment, start: float | None, end: float | None
) -> float | None:
    """When the weights of a window's end came, if that is after its begin; None: they were there before.

    Args:
        state: what the service knows.
        deployment: (server, model).
        start, end: the window, seconds of Unix time; None is unbounded.

    Raises:
        StoreError: the archive can't be read.
    """
    at = changed_at(item.producer.totals for item in state.totals(deployment))
    if at and end is not None:
        at = changed_at(item.span.last for item in state.spans(deployment, start, end))
    last = state.now() if end is None else end
    return at if (start or 0.0) < at <= last else None


def why_weights_differ(spans: Sequence[ProducerSpan]) -> str | None:
    """Why a window's tokens are of several versions of the weights; None: nothing says so.

    Args:
        spans: the producers of a deployment in the window, one at least.
    """
    mixed = [item for item in spans if _has_former(item)]
    if mixed:
        at = changed_at(item.span.last for item in mixed)
        ranks = sorted({item.producer.latest.producer.dp_rank for item in mixed})
        return (
            f"the weights were changed in the window, on DP ranks {ranks}: tokens of several versions are in "
            f"it; ask for start={math.ceil(at)} or later"
        )
    return why_ranks_disagree(spans)


def why_ranks_disagree(spans: Sequence[ProducerSpan]) -> str | None:
    """Why DP ranks may have unlike weights at the end of a window; None: all tell the same version."""
    told = [item for item in spans if item.producer.gone is None and not item.producer.stale]
    ranks: dict[tuple[int, str], set[int]] = {}
    for item in told:
        weights = item.span.last.weights
        ranks.setdefault((weights.version, weights.label), set()).add(item.producer.latest.producer.dp_rank)
    changed = changed_at(item.span.last for item in told)
    end = max((item.span.end for item in told), default=0.0)
    if len(ranks) < 2 or end < changed + GRACE_S:
        return None
    said = ", ".join(
        f"{version}{f' ({label})' if label else ''} on DP ranks {sorted(ranks[version, label])}"
        for version, label in sorted(ranks)
    )
    return f"the workers tell unlike versions of the weights, each counted since its start: {said}"


def _has_former(item: ProducerSpan) -> bool:
    """Whether some tokens of a span were counted before the weights that it ends with."""
    return item.span.tokens_before < min(item.span.last.weights.tokens, item.span.last.tokens)
