"""Routing put together from workers: of each position the last computation, in whatever chunks it is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.capture.wire import MoeLayer
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.traces.routing import put_together

LAYERS = (MoeLayer(1, 256, 2), MoeLayer(4, 256, 1))


def _worker(
    runs: Sequence[tuple[int, int]],
    experts: Sequence[int],
    steps: Sequence[int] | None,
    layers: tuple[MoeLayer, ...] = LAYERS,
) -> WorkerTrace:
    """A worker whose tokens have one expert each in all slots; ``steps``: None where they aren't known."""
    ids = np.array(experts, np.uint8)[:, np.newaxis]

    def read(start: int, end: int) -> tuple[np.ndarray, ...]:
        return tuple(np.repeat(ids[start:end], layer.top_k, axis=1) for layer in layers)

    def read_steps(start: int, end: int) -> np.ndarray:
        return np.array((steps or [])[start:end], np.int64)

    return WorkerTrace(
        layers,
        1,
        len(ids),
        (100, 100),
        lambda: np.array(runs, np.int64).reshape(-1, 2),
        read,
        read_steps=None if steps is None else read_steps,
    )


def _column(workers: Sequence[WorkerTrace], chunk: int, place: int = 0) -> list[int]:
    routing = put_together(workers)
    found = [rows.experts[:, place, 0].tolist() for rows in routing.chunks(chunk)]
    return [expert for rows in found for expert in rows]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_another_worker_computed_again_is_the_last(order: tuple[int, int]) -> None:
    """Position 2 was computed by one worker in step 3, and after a preemption by the other one in step 9."""
    before = _worker([(0, 3)], [10, 11, 12], [3, 3, 3])
    after = _worker([(2, 3)], [22, 23, 24], [9, 9, 10])
    workers = [(before, after)[at] for at in order]
    for chunk in (1, 2, 100):
        for place in (0, 1):
            assert _column(workers, chunk, place) == [10, 11, 22, 23, 24]
    assert next(put_together(workers).chunks(9)).times.tolist() == [1, 1, 2, 1, 1]


def test_without_steps_the_last_worker_is_believed() -> None:
    told, untold = _worker([(0, 2)], [1, 2], [5, 6]), _worker([(1, 2)], [8, 9], None)
    assert _column([untold, told], 9) == [1, 2, 9]
    assert _column([told, untold], 9) == [1, 2, 9]
    assert _column([_worker([(0, 2)], [1, 2], None), untold], 9) == [1, 8, 9]


@given(st.data())
def test_any_computations_in_any_chunks(data: st.DataObject) -> None:
    """Steps of up to three workers, each position of each at one of them; stages have other layers."""
    steps = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=6))
    expected: dict[int, int] = {}
    runs: list[list[tuple[int, int]]] = [[], [], []]
    experts: list[list[int]] = [[], [], []]
    numbers: list[list[int]] = [[], [], []]
    for step, owners in enumerate(steps):
        first = data.draw(st.integers(0, 6))
        for position, owner in enumerate(owners, first):
            runs[owner].append((position, 1))
            experts[owner].append(data.draw(st.integers(0, 255)))
            numbers[owner].append(step)
            expected[position] = experts[owner][-1]
    workers = [
        _worker(runs[n], experts[n], numbers[n], (layer,)) for layer in LAYERS for n in range(3) if runs[n]
    ]
    wanted = [expected.get(position, -1) for position in range(max(expected) + 1)]
    chunk = data.draw(st.integers(1, 16))
    for place in (0, 1):
        assert _column(workers, chunk, place) == wanted
