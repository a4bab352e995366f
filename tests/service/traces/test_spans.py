"""Sets of positions as spans, compared with Python's own sets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moescope.capture.wire import Int64Array
from moescope.service.traces.spans import common, inside, nothing, of_runs, size, span, together, without

RUNS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), max_size=6)


def spans_of(runs: list[tuple[int, int]]) -> Int64Array:
    return of_runs(np.array(runs, np.int64).reshape(-1, 2))


def set_of(spans: Int64Array) -> set[int]:
    """The positions of spans, which rise and neither overlap nor touch."""
    flat = spans.ravel().tolist()
    assert flat == sorted(set(flat)), spans
    return {position for first, end in spans.tolist() for position in range(first, end)}


def positions(runs: list[tuple[int, int]]) -> set[int]:
    return {at for first, count in runs for at in range(first, first + count)}


@given(RUNS, RUNS)
def test_sets(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    a, b = spans_of(one), spans_of(other)
    mine, theirs = positions(one), positions(other)
    assert set_of(a) == mine
    assert set_of(together(a, b)) == mine | theirs
    assert set_of(common(a, b)) == mine & theirs
    assert set_of(without(a, b)) == mine - theirs
    assert size(a) == len(mine)
    found = inside(a, np.arange(45))
    assert set(np.flatnonzero(found).tolist()) == mine


def test_a_single_span() -> None:
    assert span(3, 5).tolist() == [[3, 5]]
    assert span(5, 5).tolist() == span(6, 5).tolist() == nothing().tolist() == together().tolist() == []
