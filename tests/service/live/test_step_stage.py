"""Whose steps are joined over restarts, late frames and other shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from moescope.capture import wire
from moescope.service.counts.account import Account
from moescope.service.counts.refusals import RefusedError
from moescope.service.counts.step_costs import Stragglers, no_stragglers
from moescope.service.live.step_stage import Stage
from tests.service.frames import EPOCH, frame
from tests.service.live.step_frames import S, stepped


def feed(stage: Stage, *frames: wire.Frame) -> Stragglers:
    total = no_stragglers(2, 2)
    for made in frames:
        found = stage.take(made)
        total = total if found is None else total.plus(found[1])
    return total


def test_two_ranks_are_joined_by_number() -> None:
    stage = Stage()
    found = feed(stage, stepped(0, 0, [[4, 0], [0, 4], [0, 0]]), stepped(1, 0, [[2, 2], [0, 0], [0, 0]]))
    assert (found.joined, found.incomplete) == (3, 0)
    assert found.max_slots.tolist() == [10, 10]
    assert found.mean_slots.tolist() == [6, 6]
    assert found.hottest.tolist() == [[1, 1], [1, 1]]
    assert (stage.status().pending, stage.status().reason) == (0, None)


def test_tp_workers_have_rows_of_their_own() -> None:
    stage = Stage()
    found = feed(
        stage,
        *(stepped(rank, 0, [[1, 0]], tp_rank=tp, tp_size=2, ep_size=2) for rank in (0, 1) for tp in (0, 1)),
    )
    assert (found.joined, found.max_slots.tolist()) == (1, [4, 4])


def test_a_rank_that_says_nothing_of_steps_is_named() -> None:
    stage = Stage()
    feed(stage, stepped(0, 0, [[1, 1]] * 5))
    status = stage.status()
    assert (status.pending, status.reason) == (
        5,
        "no loads of steps have come from DP rank 1 since the start",
    )
    assert Stage().take(frame({0: [1, 1]})) is None


def test_a_deployment_that_restarts_is_joined_again_and_never_with_its_past() -> None:
    stage = Stage()
    before = feed(stage, stepped(0, 0, [[1, 0]] * 10), stepped(1, 0, [[1, 0]] * 7))
    assert before.joined == 7
    # Rank 0 is up again first; rank 1's last frame of before comes late, then its new ones.
    after = feed(
        stage,
        stepped(0, 0, [[0, 5]] * 8, epoch=EPOCH + 100 * S, at=130),
        stepped(1, 7, [[1, 0]] * 3, at=40),
        stepped(1, 0, [[0, 5]] * 8, epoch=EPOCH + 105 * S, at=130),
        stepped(0, 10, [[1, 0]] * 3, at=41),
    )
    assert (after.joined, after.incomplete) == (8, 3)
    assert after.max_slots.tolist() == [80, 80]
    assert after.hottest.tolist() == [[0, 8], [0, 8]]
    assert stage.status().reason is None


def test_a_rank_that_restarts_alone_is_joined_with_nobody_and_the_status_says_so() -> None:
    stage = Stage()
    feed(stage, stepped(0, 0, [[1, 0]] * 4), stepped(1, 0, [[1, 0]] * 6))
    alone = feed(
        stage,
        stepped(1, 0, [[1, 0]] * 8, epoch=EPOCH + 60 * S, at=61),
        stepped(0, 4, [[1, 0]] * 4, at=62),
    )
    assert (alone.joined, alone.incomplete) == (0, 2)
    status = stage.status()
    assert status.reason is not None
    assert status.reason.startswith("DP rank 0 had done steps when another rank started again")
    again = feed(
        stage,
        stepped(1, 0, [[3, 1]] * 2, epoch=EPOCH + 90 * S, at=101),
        stepped(0, 0, [[3, 1]] * 2, epoch=EPOCH + 95 * S, at=101),
    )
    assert (again.joined, again.incomplete) == (2, 8)
    assert stage.status().reason is None


def test_clocks_that_differ_by_minutes_do_no_harm() -> None:
    """Rank 1's clock is ten minutes ahead: it seems to start long after rank 0 had done steps."""
    stage, ahead = Stage(), {"epoch": EPOCH + 600 * S}
    found = feed(
        stage,
        stepped(0, 0, [], at=10),
        stepped(1, 0, [], at=610, **ahead),
        stepped(0, 0, [[1, 0]] * 3, at=60),
        stepped(1, 0, [[1, 0]] * 3, at=660, **ahead),
    )
    assert (found.joined, stage.status().reason) == (3, None)


def test_a_service_that_starts_later_joins_whatever_frame_comes_first() -> None:
    stage = Stage()
    found = feed(stage, stepped(0, 90, [[1, 0]] * 5), stepped(1, 90, [[1, 0]] * 5, epoch=EPOCH + 9 * S))
    assert (found.joined, stage.status().reason) == (5, None)


def test_another_shape_begins_again_and_an_older_one_is_ignored() -> None:
    stage = Stage()
    feed(stage, stepped(0, 0, [[1, 0]] * 4))
    wider = {"dp_size": 3}
    assert feed(stage, stepped(0, 0, [[1, 0]], epoch=EPOCH + 9 * S, **wider)).incomplete == 4
    assert stage.take(stepped(1, 0, [[1, 0]] * 4)) is None
    assert stage.status().reason == "no loads of steps have come from DP rank 1, DP rank 2 since the start"


def test_too_many_workers_are_not_joined_and_the_status_says_so() -> None:
    stage = Stage()
    assert stage.take(stepped(0, 0, [[1, 0]], dp_size=5000)) is None
    assert "too many" in str(stage.status().reason)


@st.composite
def restarts(draw: st.DrawFn) -> tuple[list[wire.Frame], int]:
    """Frames of a deployment that starts several times, and the sum of max to expect of each layer."""
    frames, expected = [], 0
    for start in range(draw(st.integers(1, 3))):
        steps = draw(st.integers(1, 6))
        loads = draw(
            st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2 * steps, max_size=2 * steps)
        )
        epochs = [EPOCH + 1000 * start * S + draw(st.integers(0, 50)) * S for _ in range(2)]
        cut = draw(st.integers(0, steps))
        made = [
            stepped(rank, first, part, epoch=epochs[rank], at=1000.0 * start + 60 + end)
            for rank in (0, 1)
            for first, end in ((0, cut), (cut, steps))
            for part in [loads[rank * steps + first : rank * steps + end]]
        ]
        frames += draw(st.permutations([*made, made[0]]))
        both = np.array(loads[:steps]) + np.array(loads[steps:])
        expected += int(both.max(axis=1).sum())
    return frames, expected


@given(restarts())
def test_every_start_is_joined_for_itself_in_whatever_order_its_frames_come(
    case: tuple[list[wire.Frame], int],
) -> None:
    frames, expected = case
    found = feed(Stage(), *frames)
    assert found.max_slots.tolist() == [expected, expected]
    assert found.incomplete == 0


def test_a_rank_that_lies_about_its_steps_takes_no_memory() -> None:
    stage = Stage()
    feed(stage, stepped(0, 0, [[1, 0]] * 4), stepped(1, 2**52, [[1, 0]]))
    assert stage.status().pending <= 4096
    with pytest.raises(RefusedError, match=r"^step_loads\.end: "):
        Account(max_epochs=1).post(stepped(1, 2**53, [[1, 0]]))


def test_a_first_frame_that_comes_late_is_no_start_after_the_steps_of_others() -> None:
    """Rank 1 began with rank 0, but its first frame took ten seconds."""
    stage = Stage()
    account = [Account(max_epochs=2) for _ in range(2)]
    found = no_stragglers(2, 2)
    for rank, made, at in (
        (0, stepped(0, 0, [[1, 0]] * 3, at=8.0), 8.5),
        (1, stepped(1, 0, [], at=0.5), 10.5),
        (0, replace(stepped(0, 0, [[1, 0]] * 3, at=8.0), seq=2), 11.0),
        (1, replace(stepped(1, 0, [[1, 0]] * 3, at=8.0), seq=2), 12.0),
    ):
        account[rank].post(made, at=EPOCH / S + at)
        told = stage.take(made, account[rank].life)
        found = found if told is None else found.plus(told[1])
    assert (found.joined, found.incomplete, stage.status().reason) == (3, 0, None)


def test_the_microbatches_of_a_step_are_joined_each_for_itself() -> None:
    """Rank 1's second microbatch of step 0 is all padding, and step 1 is not split: both name none there."""
    stage = Stage()
    first = stepped(0, 0, [[6, 2], [1, 1]])
    loads = np.repeat(np.array([[6, 2], [2, 6], [1, 1]]).reshape(-1, 1, 2), 2, axis=1)
    split = wire.pack_step_loads(0, 2, np.array([0, 0, 1]), loads, 1, np.array([0, 1, 0]))
    found = feed(stage, replace(first, step_loads=split), stepped(1, 0, [[1, 0], [0, 2]]))
    # The first microbatch has 7 and 2 slots, the second one 2 and 6; the step after has 1 and 3.
    assert found.max_slots.tolist() == [7 + 6 + 3] * 2
    assert found.mean_slots.tolist() == [(9 + 8 + 4) / 2] * 2
    assert found.busy_steps.tolist() == [2, 2]
    assert found.hottest.tolist() == [[0.5, 1.5]] * 2
    assert (found.joined, stage.status().pending) == (2, 0)


def test_loads_counted_by_the_placement_of_each_step_are_joined_whatever_version_is_named() -> None:
    """Ranks whose snapshots were taken before and after a rearrangement name two versions."""

    def of_version(rank: int, version: int, counted: bool) -> wire.Frame:
        made = stepped(rank, 0, [[3, 1], [0, 4]])
        assert made.step_loads is not None
        loads = replace(made.step_loads, placement_version=version)
        return replace(made, step_loads=loads, ep_slots=bytes(2 * 2 * 8) if counted else b"")

    found = feed(Stage(), of_version(0, 3, counted=True), of_version(1, 4, counted=True))
    assert (found.joined, found.max_slots.tolist()) == (2, [14, 14])
    assert feed(Stage(), of_version(0, 3, counted=False), of_version(1, 4, counted=False)).joined == 0
