"""The time in which a producer counted what it has in a window, for tokens per second."""

from __future__ import annotations

from collections.abc import Iterable

from moescope.service.live.producers import ProducerSpan


def seconds_of(item: ProducerSpan, end: float) -> float:
    """The time in which a producer counted what it has in the window that ends at ``end``."""
    span, producer = item.span, item.producer
    # A producer that still sends may have counted since its last totals. Those of a silent one stay true.
    fell_silent = producer.stale and span.start < span.end and producer.received_at <= end
    return (end if fell_silent else span.end) - span.start


def longest(spans: Iterable[ProducerSpan], end: float) -> float:
    """The longest of these times; 0 without a producer."""
    return max((seconds_of(item, end) for item in spans), default=0.0)
