"""The live state: silence, conflicts, bounds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from moescope.capture.wire import MoeLayer, Producer
from moescope.service.advice.advise import present_placement
from moescope.service.counts.account import Verdict
from moescope.service.counts.refusals import RefusedError
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.store.limits import Retention
from moescope.service.store.records import Posting
from moescope.service.store.sqlite.store import SqliteStore
from moescope.service.windows.expert_ep_ranks import ep_ranks_of_experts
from moescope.service.windows.step_series import intervals_of
from moescope.service.windows.window import merge_spans
from tests.service.frames import EPOCH, frame, halves, placement, producer

DEPLOYMENT = ("prod", "tiny")


class _Clock:
    now = 1_700_000_100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def make_state(clock: _Clock) -> Callable[..., LiveState]:
    return lambda **settings: LiveState(Settings(**settings), clock)


def test_a_silent_producer_turns_stale_then_expires(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    state = make_state(stale_after_s=15, expire_after_s=100)
    state.ingest(frame({0: [1, 1]}))
    assert state.producers()[0].state == "counting"
    clock.now += 16
    state.ingest(frame({0: [1, 1]}))  # a doubled frame is no sign of life
    found = state.producers()[0]
    assert (found.state, found.age, found.expired) == ("stale", 16, False)
    clock.now += 100
    assert state.producers()[0].expired
    state.ingest(frame({0: [1, 1]}, seq=2, state="disabled", state_reason="layout"))
    assert state.producers()[0].state == "disabled"


def test_a_silent_producer_turns_stale_also_after_the_clock_was_set_back(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    state = make_state(stale_after_s=15)
    state.ingest(frame({0: [1, 1]}))
    clock.now -= 3600
    found = state.producers()[0]
    assert (found.age, found.stale, found.received_at) == (0, False, clock.now)
    clock.now += 16
    assert state.producers()[0].stale
    state.ingest(frame({0: [2, 2]}, seq=2))
    assert not state.producers()[0].stale


def test_who_is_silent_and_who_is_not_stay_of_one_start_when_the_clock_is_set_back(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    state = make_state()
    for rank in (0, 1):
        who = producer(dp_rank=rank, dp_size=2, ep_size=2)
        state.ingest(frame({0: [1, 1]}, who=who, placement=halves(2, 1)))
    clock.now -= 3600
    state.ingest(frame({0: [2, 2]}, who=producer(dp_size=2, ep_size=2), seq=2, after_s=2))
    assert len(state.placements(DEPLOYMENT)) == 2


def test_a_late_frame_of_an_old_epoch_is_no_sign_of_life(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    state = make_state()
    state.ingest(frame({0: [1, 1]}, epoch=EPOCH + 9))
    clock.now += 20
    assert state.ingest(frame({0: [1, 1]})) is Verdict.ACCEPTED
    assert state.producers()[0].stale


def test_the_epochs_age_counts_not_the_producers_clock(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    state = make_state()
    state.ingest(frame({0: [4, 4]}, epoch=EPOCH - 7 * 10**15, after_s=30))  # a clock that is months behind
    span = state.spans(DEPLOYMENT, None, None)[0].span
    assert span.start == pytest.approx(clock.now - 30)
    assert state.spans(DEPLOYMENT, clock.now - 60, None)[0].span.delta.tokens == 4


def test_a_window_does_not_take_in_what_came_before_the_service_started(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    state = make_state()
    state.ingest(frame({0: [1000, 1000]}, after_s=3600))
    clock.now += 1
    state.ingest(frame({0: [1004, 1004]}, seq=2, after_s=3601))
    span = state.spans(DEPLOYMENT, clock.now - 60, None)[0].span
    assert (span.delta.tokens, span.truncated) == (4, True)


def test_a_restart_within_a_window_is_counted_whole(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    state = make_state()
    state.ingest(frame({0: [10, 10]}))
    clock.now += 10
    state.ingest(frame({0: [16, 10]}, seq=2))
    clock.now += 10
    state.ingest(frame({0: [2, 2]}, epoch=EPOCH + 10**10))
    span = state.spans(DEPLOYMENT, clock.now - 20, None)[0].span
    assert span.delta.counts.tolist() == [8, 2]


def test_two_shapes_under_one_name_are_refused_while_both_live(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    state = make_state()
    state.ingest(frame({0: [1, 1]}, who=producer(dp_size=2)))
    other = frame({0: [1, 1, 2]}, who=producer(dp_rank=1, dp_size=2))
    with pytest.raises(RefusedError, match=r"MOESCOPE_SERVER"):
        state.ingest(other)
    clock.now += 20
    state.ingest(other)
    assert [item.latest.producer.dp_rank for item in state.producers()] == [1]
    clock.now += 20
    state.ingest(frame({0: [1, 1]}, who=producer(dp_size=2)))  # the other shape is gone with its producer
    state.ingest(frame({0: [1, 2]}, seq=2, who=producer(dp_size=2)))
    assert [item.latest.producer.dp_rank for item in state.producers()] == [0]


def test_producers_are_bounded_and_expired_deployments_make_room(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    state = make_state(max_producers=2, expire_after_s=60)
    state.ingest(frame({0: [1, 1]}, who=producer(server="a")))
    clock.now += 50
    state.ingest(frame({0: [1, 1]}, who=producer(server="b")))
    with pytest.raises(RefusedError, match=r"max_producers"):
        state.ingest(frame({0: [1, 1]}, who=producer(server="c")))
    clock.now += 20
    state.ingest(frame({0: [1, 1]}, who=producer(server="c")))
    assert [key[0] for key in state.deployments()] == ["b", "c"]


def test_a_full_house_of_another_shape_makes_room_for_the_new_one(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    state = make_state(max_producers=2, expire_after_s=60)
    for dp_rank in range(2):
        state.ingest(frame({0: [1, 1]}, who=producer(dp_rank=dp_rank, dp_size=4)))
    clock.now += 61
    state.ingest(frame({0: [1, 1, 2]}, who=producer(dp_rank=2, dp_size=4)))
    assert [item.latest.producer.dp_rank for item in state.producers()] == [2]


def test_a_frame_that_is_refused_makes_no_room(
    make_state: Callable[..., LiveState], clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moescope.service.counts.account.MAX_EP_CELLS", 1)
    state = make_state(max_producers=2, expire_after_s=60)
    state.ingest(frame({0: [1, 1]}, who=producer(server="a")))
    clock.now += 61
    state.ingest(frame({0: [1, 1]}, who=producer(server="b")))
    with pytest.raises(RefusedError, match="ep_size"):
        state.ingest(frame({0: [1, 1]}, who=producer(server="c", ep_size=2), placement=halves(2, 1)))
    assert [key[0] for key in state.deployments()] == ["a", "b"]


def _posted(state: LiveState, who: Producer) -> Posting:
    """What a service keeps of a producer."""
    entry = state._ledger.roster.get(who.key)
    assert entry is not None
    return Posting(who.key, entry.received_at - 1, entry.received_at, entry.account.state())


def test_what_another_service_heard_of_a_new_shape_outgrows_who_is_silent_here(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    here, there = make_state(), make_state()
    for dp_rank in range(2):
        here.ingest(frame({0: [1, 1]}, who=producer(dp_rank=dp_rank, dp_size=2)))
    old = _posted(here, producer(dp_rank=1))
    clock.now += 20
    there.ingest(frame({0: [1, 1, 2]}, epoch=EPOCH + 10**10))
    here.adopt([_posted(there, producer())])
    assert [item.latest.producer.dp_rank for item in here.producers()] == [0]
    assert merge_spans(here.spans(DEPLOYMENT, None, None)).layers[0].counts.tolist() == [[1, 1, 2]]
    clock.now += 20  # what is older outgrows nobody, however silent
    here.adopt([old])
    assert [item.latest.producer.dp_rank for item in here.producers()] == [0]


def test_who_lives_here_is_not_outgrown_by_what_another_service_heard(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    here, there = make_state(), make_state()
    here.ingest(frame({0: [1, 1]}, who=producer(dp_rank=1, dp_size=2)))
    there.ingest(frame({0: [1, 1, 2]}))
    here.adopt([_posted(there, producer())])
    assert [item.latest.producer.dp_rank for item in here.producers()] == [1]


def test_a_restart_with_fewer_ranks_leaves_no_ranks_behind(
    make_state: Callable[..., LiveState], clock: _Clock
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
    series = intervals_of(state.boundaries(DEPLOYMENT, instants), [0], window.ep_size)
    assert [interval.windowed for interval in series] == [(32, 32), (32, 32)]


@pytest.mark.parametrize(("then", "now"), [(4, 2), (2, 4), (4, 1), (1, 4)])
def test_a_past_window_has_the_ranks_of_its_time(
    make_state: Callable[..., LiveState], clock: _Clock, then: int, now: int
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
    make_state: Callable[..., LiveState], clock: _Clock
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


def test_what_is_merged_while_no_frame_comes_waits_once(clock: _Clock, tmp_path: Path) -> None:
    """Two services had the last frames of an epoch each, one of which its store did not get."""
    with closing(SqliteStore(tmp_path, Retention())) as store:
        here, there = (LiveState(Settings(), clock, store) for _ in range(2))
        here.ingest(frame({0: [8, 8]}, seq=2))
        here.take_records()
        there.ingest(frame({0: [4, 4]}))
        for seq in range(1, 6):
            there.ingest(frame({0: [seq, seq]}, epoch=EPOCH + 10**10, seq=seq))
            here.adopt([_posted(there, producer())])
        [kept] = here.take_records()
        assert isinstance(kept, Posting)
        assert kept.account.totals.counts.tolist() == [13, 13]


def test_the_clock_of_another_service_may_be_ahead(
    make_state: Callable[..., LiveState], clock: _Clock
) -> None:
    here, there = make_state(), make_state()
    here.ingest(frame({0: [2, 2]}))
    clock.now += 3600
    there.ingest(frame({0: [4, 4]}, seq=2))
    told = _posted(there, producer())
    clock.now -= 3590
    here.adopt([told])
    clock.now += 30
    assert here.producers()[0].stale, "nothing came for 30 s"
    here.ingest(frame({0: [6, 6]}, seq=3))
    assert here.spans(DEPLOYMENT, clock.now - 20, None)[0].span.delta.tokens == 2
