"""Windows one after the other, of which those in which nothing happened are merged once.

A series is often asked for finer than workers report, or from before they began. Then most of its intervals
are empty, and alike: with hundreds of ranks merging each of them takes as long as one that has something.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from moescope.service.counts.phase_split import Phase
from moescope.service.live.producers import ProducerSpan
from moescope.service.windows.phase_window import merge_spans_of_phase
from moescope.service.windows.window import ModelWindow

_Empty = tuple[tuple[object, ...], ...]


def merge_series(
    intervals: Iterable[Sequence[ProducerSpan]], phase: Phase | None, only: int | None = None
) -> Iterator[ModelWindow]:
    """The window of each interval, as :func:`merge_spans_of_phase` makes it, when it is asked for.

    Args:
        intervals: see :meth:`moescope.service.live.state.LiveState.walk`.
        phase, only: see :func:`merge_spans_of_phase`.
    """
    before: tuple[_Empty, Sequence[ProducerSpan], ModelWindow] | None = None
    for spans in intervals:
        empty = _empty(spans)
        if empty is not None and before is not None and before[0] == empty:
            yield before[2]
            continue
        window = merge_spans_of_phase(spans, phase, only)
        # The spans are kept since what is compared are their numbers; the totals are those that go on.
        before = None if empty is None else (empty, spans, window)
        yield window


def _empty(spans: Sequence[ProducerSpan]) -> _Empty | None:
    """What a window of these spans depends on, if nothing was counted in any; else None.

    ``until`` is left out but for the one question that is asked of it (see :mod:`.doubts`).
    """
    if not all(item.span.is_empty for item in spans):
        return None
    return tuple(
        (
            *(id(item.producer), id(item.span.first), id(item.span.last), item.span.start),
            *(item.span.truncated, item.span.late, item.span.phase),
            item.span.until is None or item.span.until > item.producer.received_at,
        )
        for item in spans
    )
