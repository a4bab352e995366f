"""Why producers lost something: the reasons that are known, and one for all others.

Each reason is a series of its own in ``/metrics``, and what a producer sends must not make them without end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from moescope.capture.wire import DROPS, OTHER, TRACE_DROPS

_DROPPED: Final = "dropped_"


def known_drops(drops: Mapping[str, int]) -> dict[str, int]:
    """``Frame.drops`` with the sum of all unknown reasons under `OTHER`."""
    return _folded((name if name in DROPS else OTHER, number) for name, number in drops.items())


def known_traces(traces: Mapping[str, int]) -> dict[str, int]:
    """``Frame.traces`` with the sum of all unknown reasons of drops under `OTHER`."""
    return _folded((_known_trace(name), number) for name, number in traces.items())


def _known_trace(name: str) -> str:
    if name in ("captured", "delivered"):
        return name
    reason = name.removeprefix(_DROPPED).partition(":")[0]
    return _DROPPED + (reason if reason in TRACE_DROPS else OTHER)


def _folded(items: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, number in items:
        found[name] += number
    return dict(found)
