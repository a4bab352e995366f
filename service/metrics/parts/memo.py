"""What was made of a deployment at the last scrape, for as long as nothing changed of what it was made from.

Nothing big is kept for it: what it was made from is known by weak references.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter, is_
from typing import Any, Final

from moescope.service.live.producers import ProducerSpan, ProducerState
from moescope.service.live.spans import Span
from moescope.service.metrics.parts.ranks import Found
from moescope.service.windows.health import uncompared_long


def _all_but(kind: type[Any], *left_out: str) -> attrgetter[Any]:
    """The fields of a dataclass but for some: one that is added later is compared too."""
    return attrgetter(*(item.name for item in fields(kind) if item.name not in left_out))


_of_span: Final = _all_but(Span, "first", "last")
_of_producer: Final = _all_but(ProducerState, "latest", "totals", "base", "age")


class Fingerprint:
    """What some producers said and counted in a window, except how long ago they were heard.

    What parts make of that age is in it all the same: whether a producer is silent or has expired, and
    whether its stage has been uncompared for long.

    Args:
        spans: the producers; their totals and newest frames are never changed, only replaced.
    """

    __slots__ = ("_objects", "_values")

    def __init__(self, spans: Sequence[ProducerSpan]) -> None:
        self._objects = [weakref.ref(made) for item in spans for made in _objects(item)]
        self._values = [_values(item) for item in spans]

    def same(self, other: Fingerprint) -> bool:
        """Whether both are of the same: as long as an object lives, all weak references to it are one."""
        return (
            len(self._objects) == len(other._objects)
            and all(map(is_, self._objects, other._objects))
            and self._values == other._values
        )


def _objects(item: ProducerSpan) -> Iterable[Any]:
    producer, span = item.producer, item.span
    yield producer.latest
    yield producer.totals
    yield span.last
    if span.first is not None:
        yield span.first
    if producer.base is not None:
        yield producer.base.totals


def _values(item: ProducerSpan) -> tuple[object, ...]:
    """All that is no large object; each says whether one that may be absent is there."""
    base = item.producer.base
    return (
        item.span.first is None,
        _of_span(item.span),
        _of_producer(item.producer),
        uncompared_long(item.producer),
        None if base is None else (base.restarts, base.at),
    )


@dataclass(slots=True)
class Made:
    """What was made of a deployment: by whether its counters are shown, and the part's name."""

    of: Fingerprint
    parts: dict[bool, dict[str, list[Found]]] = field(default_factory=dict)


def made_of(before: Made | None, spans: Sequence[ProducerSpan]) -> Made:
    """What was made before if it was made of the same, or a place for what will be made."""
    now = Fingerprint(spans)
    return before if before is not None and before.of.same(now) else Made(now)
