"""What frames say of single steps, put together: for tests on CPUs and on GPUs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from moescope.capture.wire import (
    Frame,
    Int64Array,
    unpack_counts,
    unpack_ids,
    unpack_microbatches,
    unpack_step_loads,
)


def step_loads(frames: Iterable[Frame], dp_rank: int | None = None) -> dict[int, Int64Array]:
    """Loads [layers, EP ranks] by step, of all steps that one producer computed, or that of this DP rank.

    Raises:
        AssertionError: steps are missing, or two frames say different things of one.
    """
    found: dict[int, Int64Array] = {}
    for (step, _), loads in microbatch_loads(frames, dp_rank).items():
        found[step] = found[step] + loads if step in found else loads
    return found


def microbatch_loads(
    frames: Iterable[Frame], dp_rank: int | None = None
) -> dict[tuple[int, int], Int64Array]:
    """The same by step and microbatch; a step that wasn't split has only the first."""
    found: dict[tuple[int, int], Int64Array] = {}
    end = 0
    for frame in frames:
        if dp_rank is not None and frame.producer.dp_rank != dp_rank:
            continue
        assert frame.step_loads is not None
        assert frame.step_loads.first <= end, f"nothing is known of steps {end} to {frame.step_loads.first}"
        assert frame.drops["steps_lost"] == 0
        steps, loads = unpack_step_loads(frame.step_loads, len(frame.layers), frame.producer.ep_size)
        parts = unpack_microbatches(frame.step_loads).tolist()
        for step, part, load in zip(steps.tolist(), parts, loads.astype(np.int64), strict=True):
            assert np.array_equal(found.setdefault((step, part), load), load), f"step {step} has two loads"
        end = frame.step_loads.end
    return found


def placed_counts(frame: Frame) -> list[list[int]]:
    """The frame's counts by layer and EP rank, through its placement."""
    assert frame.placement is not None
    ends = np.cumsum([layer.num_experts for layer in frame.layers])[:-1]
    by_layer = np.split(unpack_counts(frame.counts), ends)
    loads = []
    for counts, index in zip(by_layer, frame.placement.table_of_layer, strict=True):
        table = frame.placement.tables[index]
        of_physical = counts[unpack_ids(table.physical_to_logical)]
        ranks = unpack_ids(table.physical_to_ep_rank)
        loads.append(np.bincount(ranks, of_physical, frame.producer.ep_size).astype(int).tolist())
    return loads
