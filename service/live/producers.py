"""What is known of a producer, as readers get it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from moescope.capture.wire import Producer
from moescope.service.counts.account_state import Base, Latest
from moescope.service.counts.conflict import Conflict
from moescope.service.counts.row_law import RowLaw
from moescope.service.counts.totals import Totals
from moescope.service.live.spans import Span

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

    @property
    def state(self) -> str:
        """``counting``, ``disabled``, ``stale`` or ``conflict``.

        A producer that fell silent is stale whatever it said, and one that is several is in conflict.
        """
        if self.conflict is not None:
            return "conflict"
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
    """The producer of a deployment that was heard last, and so knows its sizes (``dp_size``, ``ep_size``).

    After a restart with fewer ranks the former ranks are still known, but the sizes that they told are out of
    date.

    Args:
        producers: those of the deployment, one at least.
    """
    newest = max(producers, key=lambda item: (item.received_at, item.latest.producer.dp_size))
    return newest.latest.producer


def sizes_of(spans: Sequence[ProducerSpan]) -> tuple[int, int]:
    """(``dp_size``, ``ep_size``) of a deployment at the end of a window.

    Args:
        spans: its producers in the window, one at least.
    """
    told = [item.span for item in spans if item.span.start < item.span.end and item.span.last.ep_size]
    if told:
        newest = max(told, key=lambda span: (span.end, span.last.dp_size)).last
        return newest.dp_size, newest.ep_size
    # Nobody reported in the window, or the store kept these totals before it kept sizes.
    present = heard_last(item.producer for item in spans)
    return present.dp_size, present.ep_size


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
    """Without the producers whose ranks the deployment no longer has, since it started again with fewer."""
    if not producers:
        return []
    sizes = heard_last(producers)
    return [item for item in producers if _is_within(item.latest.producer, sizes)]


def _is_within(one: Producer, sizes: Producer) -> bool:
    return one.dp_rank < sizes.dp_size and one.tp_rank < sizes.tp_size and one.pp_rank < sizes.pp_size


def _of_same_sizes(one: Producer, other: Producer) -> bool:
    return (one.dp_size, one.tp_size, one.pp_size, one.ep_size) == (
        other.dp_size,
        other.tp_size,
        other.pp_size,
        other.ep_size,
    )
