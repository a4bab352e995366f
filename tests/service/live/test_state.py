"""The live state: epochs, late frames, what a window takes in."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moescope.service.counts.account import Verdict
from moescope.service.live.state import LiveState
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame

DEPLOYMENT = ("prod", "tiny")


def test_a_late_frame_of_an_old_epoch_is_no_sign_of_life(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()
    state.ingest(frame({0: [1, 1]}))
    clock.now += 5
    state.ingest(frame({0: [1, 1]}, epoch=EPOCH + 9))
    clock.now += 20
    assert state.ingest(frame({0: [2, 2]}, seq=2, after_s=2)) is Verdict.ACCEPTED
    assert state.producers()[0].stale


def test_the_epochs_age_counts_not_the_producers_clock(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()
    state.ingest(frame({0: [4, 4]}, epoch=EPOCH - 7 * 10**15, after_s=30))  # a clock that is months behind
    span = state.spans(DEPLOYMENT, None, None)[0].span
    assert span.start == pytest.approx(clock.now - 30)
    assert state.spans(DEPLOYMENT, clock.now - 60, None)[0].span.delta.tokens == 4


def test_a_window_does_not_take_in_what_came_before_the_service_started(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()
    state.ingest(frame({0: [1000, 1000]}, after_s=3600))
    clock.now += 1
    state.ingest(frame({0: [1004, 1004]}, seq=2, after_s=3601))
    span = state.spans(DEPLOYMENT, clock.now - 60, None)[0].span
    assert (span.delta.tokens, span.truncated) == (4, True)


def test_a_restart_within_a_window_is_counted_whole(
    make_state: Callable[..., LiveState], clock: Clock
) -> None:
    state = make_state()
    state.ingest(frame({0: [10, 10]}))
    clock.now += 10
    state.ingest(frame({0: [16, 10]}, seq=2))
    clock.now += 10
    state.ingest(frame({0: [2, 2]}, epoch=EPOCH + 10**10))
    span = state.spans(DEPLOYMENT, clock.now - 20, None)[0].span
    assert span.delta.counts.tolist() == [8, 2]
