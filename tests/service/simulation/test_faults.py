"""Each planted fault is in the frames of a simulated fleet, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moescope.capture import wire
from moescope.service.simulation.faults import Faults
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Plan
from moescope.service.simulation.routing import Shape

PLAN = Plan(ranks=2, shape=Shape(layers=2, experts=8, top_k=2), tokens_per_s=100.0)
"""Layers 3 and 4."""


def frames(faults: Faults) -> list[wire.Frame]:
    """Of one second."""
    return list(Fleet(replace(PLAN, faults=faults), 0).advance(1.0))


def counts(frame: wire.Frame) -> np.ndarray:
    """Slots by layer and expert, int64 [2, 8]."""
    return wire.unpack_counts(frame.counts).reshape(2, 8)


@pytest.fixture(scope="module")
def well() -> list[wire.Frame]:
    return frames(Faults())


def test_an_unseen_layer_has_no_slots_and_no_rows(well: list[wire.Frame]) -> None:
    [frame, _] = frames(Faults(unseen=(4,)))
    assert counts(frame)[1].sum() == 0
    assert (counts(frame)[0] == counts(well[0])[0]).all()
    assert wire.unpack_counts(frame.rows)[1] == 0
    assert wire.unpack_counts(well[0].rows)[1] > 0


def test_a_miscounted_layer_has_twice_the_slots_of_its_rows(well: list[wire.Frame]) -> None:
    [frame, _] = frames(Faults(miscounted=(3,)))
    assert (counts(frame)[0] == 2 * counts(well[0])[0]).all()
    assert frame.rows == well[0].rows


def test_a_missing_rank_says_nothing_and_a_disabled_one_says_why() -> None:
    assert [frame.producer.dp_rank for frame in frames(Faults(missing=(0,)))] == [1]
    assert [frame.state for frame in frames(Faults(disabled=(1,)))] == ["counting", "disabled"]


def test_two_lives_of_a_rank_differ_in_process_and_epoch() -> None:
    first, second, other = frames(Faults(twice=(0,)))
    assert (first.producer.dp_rank, second.producer.dp_rank, other.producer.dp_rank) == (0, 0, 1)
    assert first.epoch != second.epoch
    assert first.producer.pid != second.producer.pid


def test_loads_of_steps_and_a_second_worker_do_not_come(well: list[wire.Frame]) -> None:
    assert well[1].step_loads is not None
    assert [frame.step_loads is None for frame in frames(Faults(no_loads=(1,)))] == [False, True]
    assert {frame.producer.tp_size for frame in frames(Faults(silent_tp=True))} == {2}


def test_drops_and_lost_traces_grow_with_time() -> None:
    fleet = Fleet(replace(PLAN, faults=Faults(drops_per_s=2.0, trace_drops_per_s=3.0)), 0)
    for seconds in (1, 2):
        [frame, _] = fleet.advance(1.0)
        assert frame.drops["sends_failed"] == 2 * seconds
        assert frame.traces["captured"] == frame.traces["dropped_buffer_full"] == 3 * seconds


def test_a_rank_starts_again_each_so_many_seconds() -> None:
    fleet = Fleet(replace(PLAN, faults=Faults(restart_s=2.0)), 0)
    epochs = [tuple(frame.epoch for frame in fleet.advance(1.0)) for _ in range(4)]
    assert len({first for first, _ in epochs}) == 3
    assert len({second for _, second in epochs}) == 1


def test_what_a_rank_lost_is_since_its_own_start() -> None:
    fleet = Fleet(replace(PLAN, faults=Faults(restart_s=3.0, drops_per_s=2.0, trace_drops_per_s=1.0)), 0)
    found = [list(fleet.advance(1.0)) for _ in range(7)]
    lost = [[frame.drops["sends_failed"] for frame in frames] for frames in found]
    assert lost == [[2, 2], [4, 4], [0, 6], [2, 8], [4, 10], [0, 12], [2, 14]]
    assert [frames[0].traces.get("captured", 0) for frames in found] == [1, 2, 0, 1, 2, 0, 1]
    assert [frames[1].traces["captured"] for frames in found] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ({"drops_per_s": -1.0}, "not negative"),
        ({"restart_s": 0.01}, "0.1 or more"),
        ({"missing": (2,)}, "there is no rank 2"),
        ({"unseen": (9,)}, "layer 9 is no MoE layer"),
    ],
)
def test_faults_that_can_not_be_are_refused(faults: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(PLAN, faults=Faults(**faults))  # type: ignore[arg-type]
