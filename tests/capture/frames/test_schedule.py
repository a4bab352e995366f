"""Workers with clocks and intervals of their own take snapshots after the same steps."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.capture.frames.schedule import SnapshotSchedule


def _taken(schedule: SnapshotSchedule, ends: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """The steps, with their times, at whose ends the schedule has a snapshot taken."""
    found = []
    for step, now in ends:
        if schedule.due_after(step, now):
            schedule.taken(now, step)
            found.append((step, now))
    return found


@given(per_interval=st.floats(0.4, 3000), begins=st.floats(0, 5), seed=st.integers(0, 2**32))
def test_two_workers_have_a_common_snapshot_in_each_interval(
    per_interval: float, begins: float, seed: int
) -> None:
    # The same steps end at slightly different times, and the second worker begins while the first is busy.
    rng, step_s, until = random.Random(seed), 1 / per_interval, 20.0
    ends = [(n, n * step_s) for n in range(1, int(until * per_interval) + 1)]
    jitter = 0.2 * step_s
    mine = _taken(SnapshotSchedule(1.0), [(n, t + rng.uniform(0, jitter)) for n, t in ends])
    later = [(n, t + rng.uniform(0, jitter)) for n, t in ends if t > begins]
    other = {n for n, _ in _taken(SnapshotSchedule(1.0), later)}
    settled = begins + 2 * max(1.0, step_s)
    common = [settled, *(t for n, t in mine if n in other and t > settled), until]
    longest = max(b - a for a, b in itertools.pairwise(common))
    assert longest <= 1.1 * max(1.0, step_s) + step_s


@pytest.mark.parametrize("per_interval", [0.3, 1, 3, 100, 128, 250, 4000])
def test_snapshots_of_a_busy_worker_are_an_interval_apart_at_most(per_interval: float) -> None:
    ends = [(n, 1000 + n / per_interval) for n in range(1, int(20 * per_interval) + 2)]
    times = [now for _, now in _taken(SnapshotSchedule(1.0), ends)]
    gaps = [b - a for a, b in itertools.pairwise(times[1:])]
    assert max(gaps, default=0.0) <= max(1.0, 1 / per_interval) + 1e-6
    assert min(gaps, default=1.0) >= 0.5 - 1e-6


def test_steps_that_suddenly_take_long_do_not_hold_up_a_snapshot() -> None:
    schedule, ends = SnapshotSchedule(1.0), [(n, n / 100) for n in range(1, 200)]
    last = _taken(schedule, ends)[-1][1]
    slow = _taken(schedule, [(199 + n, 2.0 + 5.0 * n) for n in range(1, 5)])
    assert slow[0] == (200, 7.0), last
    assert len(slow) == 4  # each step is longer than two intervals


def test_a_snapshot_that_is_asked_for_comes_at_once() -> None:
    schedule = SnapshotSchedule(60.0)
    schedule.taken(10.0, 3)
    assert not schedule.due_after(4, 10.1)
    schedule.force()
    assert schedule.due_after(5, 10.1)
    assert schedule.due_between(idle=False, now=10.1)


def test_a_busy_worker_takes_none_between_steps() -> None:
    schedule = SnapshotSchedule(1.0)
    schedule.taken(10.0, 3)
    assert not schedule.due_between(idle=False, now=11.5)
    assert schedule.due_between(idle=True, now=11.0)
    assert schedule.due_between(idle=False, now=12.0)


def test_without_an_interval_every_step_is_due() -> None:
    schedule = SnapshotSchedule(0.0)
    schedule.taken(10.0, 3)
    assert all(schedule.due_after(step, 10.0) for step in range(4, 10))


def test_a_worker_whose_steps_compute_nothing_takes_one_an_interval() -> None:
    # Capture that was turned off keeps its totals; vLLM's steps without tokens do too.
    schedule, taken = SnapshotSchedule(1.0), 0
    schedule.taken(0.0, 5000)
    for tick in range(1, 2501):
        if schedule.due_after(5000, tick / 250):
            schedule.taken(tick / 250, 5000)
            taken += 1
    assert taken == 10
