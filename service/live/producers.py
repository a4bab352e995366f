"""What is known of a producer, as readers get it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from moescope.capture.wire import Producer
from moescope.service.counts.account_state import Base, Latest
from moescope.service.counts.conflict import Conflict
from moescope.service.counts.row_law import RowLaw
from moescope.service.counts.totals import Totals
from moescope.service.live.spans import Span

_ENDED: Final = "all workers of the deployment have shut down in order"

Deployment = tuple[str, str]
"""(server, model)."""


@dataclass(frozen=True, slots=True)
class ProducerState:
    """One producer as of now.

    Attributes:
        latest: its newest frame.
        totals: over all its epochs.
        restarts: epochs after the first.
        started_at: when its newest epoch began, seconds of Unix time on the service's clock.
        received_at: when its newest frame was accepted, seconds of Unix time on the service's clock.
        age: seconds since ``received_at``; ``stale`` and ``expired`` compare it with the settings.
        law: the law of rows at its pipeline stage; all TP workers of the stage have the same.
        stale_after: seconds without a frame after which a producer is silent.
        conflict: the live processes that claim this rank at present, if there are several; else None.
        conflicts: when there were several, as far as it is remembered: (since, until) on the service's clock,
            oldest first, the present one included.
        base: what counters in ``/metrics`` leave out; None: nothing.
        told_at: when the first frame of its newest epoch came, or the first with other sizes within it;
            seconds of Unix time on the service's clock.
        resized_at: when it last told other sizes than before, likewise; 0: never.
        outgrown: why the deployment no longer has this rank, or None; see :func:`with_gone`.
        ended: why nobody waits for a frame of it though the deployment has its rank, or None; likewise.
    """

    latest: Latest
    totals: Totals
    restarts: int
    started_at: float
    received_at: float
    age: float
    stale: bool
    expired: bool
    law: RowLaw = field(default_factory=RowLaw)
    stale_after: float = 10.0
    conflict: Conflict | None = None
    conflicts: tuple[tuple[float, float], ...] = ()
    base: Base | None = None
    told_at: float = 0.0
    resized_at: float = 0.0
    outgrown: str | None = None
    ended: str | None = None

    @property
    def gone(self) -> str | None:
        """Why nobody waits for its frames any more, or None."""
        return self.outgrown or self.ended

    @property
    def state(self) -> str:
        """``counting``, ``disabled``, ``stale``, ``gone`` or ``conflict``.

        A producer that fell silent is stale whatever it said, or gone if nobody waits for its frames. One
        that is several is in conflict.
        """
        if self.conflict is not None:
            return "conflict"
        if self.gone is not None:
            return "gone"
        return "stale" if self.stale else self.latest.state


@dataclass(frozen=True, slots=True)
class ProducerSpan:
    """One producer and what it counted in a window."""

    producer: ProducerState
    span: Span


def why_unavailable(producers: Iterable[ProducerState], part: str) -> str | None:
    """Why a worker can't tell a part, such as "phases" (see `Frame.unavailable`); None if each can."""
    reasons = (item.latest.unavailable.get(part) for item in producers)
    return next((reason for reason in reasons if reason), None)


def heard_last(producers: Iterable[ProducerState]) -> Producer:
    """The producer of a deployment whose word on its sizes (``dp_size``, ``ep_size``) is the newest.

    That is the one that started last, or told other sizes last. After a change of the sizes the former ranks
    are still known, and some may send for a while, but the sizes that they told are out of date.

    Args:
        producers: those of the deployment, one at least.
    """
    return _newest_word(producers).latest.producer


def _newest_word(producers: Iterable[ProducerState]) -> ProducerState:
    first, *others = producers
    if not others:
        return first
    return max(
        (first, *others), key=lambda item: (item.told_at, item.received_at, item.latest.producer.dp_size)
    )


def sizes_of(spans: Sequence[ProducerSpan]) -> tuple[int, int]:
    """(``dp_size``, ``ep_size``) of a deployment at the end of a window.

    Args:
        spans: its producers in the window, one at least.
    """
    newest_word = _newest_word(item.producer for item in spans)
    present = newest_word.latest.producer
    told = [item.span for item in spans if item.span.start < item.span.end and item.span.last.ep_size]
    # Nobody reported in the window, or the store kept these totals before it kept sizes. Or the window ends
    # in the time of the present sizes, of which a former rank that still sends knows nothing.
    if not told or max(span.end for span in told) >= newest_word.told_at:
        return present.dp_size, present.ep_size
    newest = max(told, key=lambda span: (span.end, span.last.dp_size)).last
    return newest.dp_size, newest.ep_size


def of_present_start(producers: Sequence[ProducerState]) -> list[ProducerState]:
    """The producers of a deployment that belong to its present start, in their order.

    The others are of a former start: they were not heard since the newest epoch began, or told other sizes.
    """
    if not producers:
        return []
    sizes = heard_last(producers)
    newest_start = max(item.started_at for item in producers)
    return [
        item
        for item in producers
        if item.received_at >= newest_start and _of_same_sizes(item.latest.producer, sizes)
    ]


def within_sizes(producers: Sequence[ProducerState]) -> list[ProducerState]:
    """Without the producers whose ranks the deployment no longer has, since it has fewer now."""
    if not producers:
        return []
    sizes = heard_last(producers)
    return [item for item in producers if _is_within(item.latest.producer, sizes)]


def with_gone(producers: Sequence[ProducerState]) -> list[ProducerState]:
    """The producers of a deployment in their order, with the reason at those that are gone.

    A producer is gone if its rank is beyond the present sizes and it has said nothing since these were told,
    or has fallen silent. All of a deployment are gone once each of them has said that it shuts down. A gone
    rank is no fault: nobody waits for its frames.
    """
    if not producers:
        return []
    newest_word = _newest_word(producers)
    sizes = newest_word.latest.producer
    marked = [_marked(item, sizes, newest_word.told_at) for item in producers]
    if all(item.outgrown or item.latest.ended for item in marked):
        return [item if item.outgrown else replace(item, ended=_ENDED) for item in marked]
    return marked


def _marked(item: ProducerState, sizes: Producer, told_at: float) -> ProducerState:
    who = item.latest.producer
    if _is_within(who, sizes) or not (item.stale or item.received_at < told_at):
        return item
    pairs = (
        ("DP", who.dp_rank, sizes.dp_size),
        ("PP", who.pp_rank, sizes.pp_size),
        ("TP", who.tp_rank, sizes.tp_size),
    )
    kind, size = next((kind, size) for kind, rank, size in pairs if rank >= size)
    ranks = f"{size} {kind} rank" + ("" if size == 1 else "s")
    return replace(item, outgrown=f"the deployment has {ranks} now")


def resized_at(producers: Iterable[ProducerState]) -> float:
    """When the last of a deployment's producers told other sizes than before; 0: never.

    It is by the service's clock. A window that begins then, or later, has nothing that was counted at other
    sizes, unless a former rank still sends.
    """
    return max((item.resized_at for item in producers if item.outgrown is None), default=0.0)


def why_sizes_differ(spans: Sequence[ProducerSpan]) -> str | None:
    """Why loads of ranks can't be compared in a window: the number of ranks changed in it. None: it didn't.

    Args:
        spans: the producers of a deployment in the window, one at least.
    """
    sizes = sizes_of(spans)
    mixed = [item for item in spans if _has_former(item.span, sizes)]
    if not mixed:
        return None
    former = {told for item in mixed for told in _told_in(item.span) if told != sizes}
    end, at = max(item.span.end for item in spans), resized_at(item.producer for item in spans)
    since = f"; ask for start={math.ceil(at)} or later" if 0 < at < end else ""
    was = " and ".join(f"{dp} DP and {ep} EP ranks" for dp, ep in sorted(former)) or "another number of ranks"
    now = f"{sizes[0]} DP and {sizes[1]} EP ranks at its end"
    return f"the deployment had {was} in a part of the window, and {now}{since}"


def _has_former(span: Span, sizes: tuple[int, int]) -> bool:
    """Whether some tokens of a span were counted while the deployment had other sizes."""
    if span.tokens_before < span.last.former_tokens:
        return True
    told = (span.last.dp_size, span.last.ep_size)
    return span.tokens_before < span.last.tokens and span.last.ep_size != 0 and told != sizes


def _told_in(span: Span) -> Iterator[tuple[int, int]]:
    """The sizes at both ends of a span, as far as they are known."""
    for totals in (span.first, span.last):
        if totals is not None and totals.ep_size:
            yield totals.dp_size, totals.ep_size


def _is_within(one: Producer, sizes: Producer) -> bool:
    return one.dp_rank < sizes.dp_size and one.tp_rank < sizes.tp_size and one.pp_rank < sizes.pp_size


def _of_same_sizes(one: Producer, other: Producer) -> bool:
    return (one.dp_size, one.tp_size, one.pp_size, one.ep_size) == (
        other.dp_size,
        other.tp_size,
        other.pp_size,
        other.ep_size,
    )
