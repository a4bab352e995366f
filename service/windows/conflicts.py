"""Windows in which several live processes counted as one rank: what they have can't be told apart."""

from __future__ import annotations

from collections.abc import Iterable

from moescope.service.live.producers import ProducerSpan


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
