"""Windows in which several live processes counted as one rank: what they have can't be told apart."""

from __future__ import annotations

from collections.abc import Iterable

from moescope.service.live.past import Remembered
from moescope.service.live.producers import ProducerSpan, ProducerState


def why_conflicting(spans: Iterable[ProducerSpan]) -> str | None:
    """Why what a deployment counted in a window is not of one deployment alone, or None: it is.

    Args:
        spans: its producers in the window.
    """
    for item in spans:
        present, span = item.producer.conflict, item.span
        if present is not None and present.since < span.end:
            return present.reason
        for since, until in item.producer.conflicts:
            if since < span.end and until > span.start:
                rank = item.producer.latest.producer.dp_rank
                return (
                    f"conflict: several live processes counted as DP rank {rank} "
                    f"from {since:.0f} to {until:.0f} (Unix seconds): choose a window that begins after it"
                )
    return None


def conflicts_of(boundaries: Iterable[tuple[ProducerState, Remembered]], intervals: int) -> list[str | None]:
    """For each interval between boundaries :func:`why_conflicting`.

    Args:
        boundaries: the producers of a deployment, each with its totals at all boundaries; each is let go
            before the next one but one.
        intervals: how many there are.
    """
    found: list[str | None] = [None] * intervals
    for item, memory in boundaries:
        pairs = zip(found, memory.spans(), strict=True)
        found = [told or why_conflicting([ProducerSpan(item, span)]) for told, span in pairs]
    return found
