"""Which producers are of the present start, and which sizes a window has."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moescope.capture.wire import MoeLayer
from moescope.service.advice.advise import present_placement
from moescope.service.live.state import LiveState
from moescope.service.windows.expert_ep_ranks import ep_ranks_of_experts
from moescope.service.windows.step_series import intervals_of
from moescope.service.windows.window import merge_spans
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, halves, placement, producer

DEPLOYMENT = ("prod", "tiny")


def test_who_is_silent_and_who_is_not_stay_of_one_start_when_the_clock_is_set_back(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()
    for rank in (0, 1):
        who = producer(dp_rank=rank, dp_size=2, ep_size=2)
        state.ingest(frame({0: [1, 1]}, who=who, placement=halves(2, 1)))
    clock.now -= 3600
    state.ingest(frame({0: [2, 2]}, who=producer(dp_size=2, ep_size=2), seq=2, after_s=2))
    assert len(state.placements(DEPLOYMENT)) == 2


def test_a_restart_with_fewer_ranks_leaves_no_ranks_behind(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()

    def start(ranks: int, epoch: int, version: int) -> None:
        for seq, slots in ((1, 0), (2, 8)):
            clock.now += 10
            for rank in range(ranks):
                who = producer(dp_rank=rank, dp_size=ranks, ep_rank=rank, ep_size=ranks)
                placed = halves(4, 1, ranks, version)
                state.ingest(frame({0: [slots] * 4}, who=who, epoch=epoch, seq=seq, placement=placed))

    start(4, EPOCH, version=9)
    start(2, EPOCH + 10**12, version=1)
    window = merge_spans(state.spans(DEPLOYMENT, clock.now - 10, None))
    assert (window.dp_size, window.ep_size, window.missing_dp_ranks) == (2, 2, [])
    assert window.layers[0].ep_slots.tolist() == [32, 32]  # not four of which two are idle
    assert ep_ranks_of_experts(window.layers[0].shape, state.placements(DEPLOYMENT)) == [0, 0, 1, 1]
    # While there were four they count, though there are two now.
    before = merge_spans(state.spans(DEPLOYMENT, clock.now - 30, clock.now - 20))
    assert before.layers[0].ep_slots.tolist() == [32, 32, 32, 32]
    instants = [clock.now - 30, clock.now - 20, clock.now]
    series = intervals_of(state.one_by_one(DEPLOYMENT, instants)[1](), len(instants), [0], window.ep_size)
    assert [interval.windowed for interval in series] == [(32, 32), (32, 32)]


@pytest.mark.parametrize(("then", "now"), [(4, 2), (2, 4), (4, 1), (1, 4)])
def test_a_past_window_has_the_ranks_of_its_time(
    make_state: Callable[..., LiveState], clock: Clock, then: int, now: int
) -> None:
    """All slots are expert 0's, so that the ranks that were there can't be told by who got some."""
    state = make_state()
    instants = [clock.now]
    for start, ranks in enumerate((then, now, then)):
        for seq in (1, 2):
            clock.now += 10
            for rank in range(ranks):
                who = producer(dp_rank=rank, dp_size=ranks, ep_rank=rank, ep_size=ranks)
                placed = halves(4, 1, ranks) if ranks > 1 else None
                epoch = EPOCH + start * 10**12
                made = frame({0: [8 * seq, 0, 0, 0]}, who=who, epoch=epoch, seq=seq, placement=placed)
                state.ingest(made)
        instants.append(clock.now)
    for start, ranks in enumerate((then, now, then)):
        for begin in (instants[start] + 10, instants[start]):  # from its first frame on; from the restart on
            window = merge_spans(state.spans(DEPLOYMENT, begin, instants[start + 1]))
            assert (window.dp_size, window.ep_size) == (ranks, ranks)
            assert not window.missing_dp_ranks
            [layer] = window.layers
            assert (layer.ep_reason is None) == (ranks > 1)
            if ranks > 1:
                slots = 8 * ranks * (1 if begin > instants[start] else 2)
                assert layer.ep_slots.tolist() == [slots] + [0] * (ranks - 1)


def test_who_was_not_heard_since_the_newest_start_tells_nothing_of_where_experts_are(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    """EPLB counts its rearrangements from 0 again after a restart; of four ranks one does not come back."""
    state = make_state()

    def say(rank: int, version: int, owners: list[int], **fields: int) -> None:
        who = producer(dp_rank=rank, dp_size=4, ep_rank=rank, ep_size=4)
        state.ingest(
            frame({0: [2] * 4}, who=who, placement=placement(range(4), owners, 1, version), **fields)
        )

    layer = MoeLayer(0, 4, 2)
    for rank in range(4):
        say(rank, 9, [3, 2, 1, 0])
    clock.now += 3
    for rank in range(3):
        say(rank, 0, [0, 1, 2, 3], epoch=EPOCH + 2 * 10**9 + rank)
    reported = state.placements(DEPLOYMENT)
    assert ep_ranks_of_experts(layer, reported) == [0, 1, 2, 3]
    present = present_placement(reported, [0], 4, 4)
    assert present is not None
    assert present.rank.tolist() == [[0, 1, 2, 3]]
    # Who idles repeats what it captured long ago, and has not started just because of that.
    clock.now += 60
    say(1, 1, [1, 0, 2, 3], epoch=EPOCH + 2 * 10**9 + 1, seq=2, after_s=60)
    clock.now += 60
    say(2, 0, [0, 1, 2, 3], epoch=EPOCH + 2 * 10**9 + 2, seq=2, after_s=1)
    assert ep_ranks_of_experts(layer, state.placements(DEPLOYMENT)) == [1, 0, 2, 3]
