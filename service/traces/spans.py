"""Sets of positions, as spans: int64 [n, 2], each from a first position to before an end.

The spans of a set rise and neither overlap nor touch, so a set is small however many positions are in it.
Each function takes some 12 times the memory of its arguments' spans at most.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array


def span(first: int, end: int) -> Int64Array:
    """The positions from ``first`` to before ``end``; none if ``end`` is not behind ``first``."""
    return np.array([(first, end)] if first < end else [], np.int64).reshape(-1, 2)


def nothing() -> Int64Array:
    """No position."""
    return np.zeros((0, 2), np.int64)


def together(*several: Int64Array) -> Int64Array:
    """The positions that are in any of them; the spans given may be in any order, and overlap."""
    spans: Int64Array = np.concatenate([nothing(), *several])
    spans = spans[spans[:, 0] < spans[:, 1]]
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    if not len(spans):
        return spans
    reach = np.maximum.accumulate(spans[:, 1])
    begins = np.flatnonzero(np.append(True, spans[1:, 0] > reach[:-1]))
    ends = np.append(reach[begins[1:] - 1], reach[-1])
    joined: Int64Array = np.stack([spans[begins, 0], ends], axis=1)
    return joined


def of_runs(runs: Int64Array) -> Int64Array:
    """The positions of runs, int64 [R, 2]: first position and how many; in any order."""
    return together(np.stack([runs[:, 0], runs[:, 0] + runs[:, 1]], axis=1))


def common(one: Int64Array, other: Int64Array) -> Int64Array:
    """The positions that are in both."""
    return _where(one, other, wanted=True)


def without(one: Int64Array, other: Int64Array) -> Int64Array:
    """The positions of the first that are not in the second."""
    return _where(one, other, wanted=False)


def size(spans: Int64Array) -> int:
    """How many positions there are."""
    return int((spans[:, 1] - spans[:, 0]).sum())


def inside(spans: Int64Array, positions: Int64Array) -> npt.NDArray[np.bool_]:
    """For each of some positions whether it is in the set, bool [n]."""
    begun = np.searchsorted(spans[:, 0], positions, "right")
    ended = np.searchsorted(spans[:, 1], positions, "right")
    found: npt.NDArray[np.bool_] = begun > ended
    return found


def _where(one: Int64Array, other: Int64Array, *, wanted: bool) -> Int64Array:
    edges = np.unique(np.concatenate([one.ravel(), other.ravel()]))
    kept = inside(one, edges) & (inside(other, edges) == wanted)
    at = np.flatnonzero(kept)  # the last edge ends a span, so it is never kept
    return together(np.stack([edges[at], edges[at + 1]], axis=1)) if len(at) else nothing()
