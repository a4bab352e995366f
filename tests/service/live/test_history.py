"""Windows over remembered snapshots, and the bound on memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.service.counts.layers import Layout
from moescope.service.counts.narrow import narrowed
from moescope.service.counts.totals import Totals, totals_of
from moescope.service.live.history import History, Track
from moescope.service.live.spans import Snapshot
from tests.service.frames import frame

KEY = ("prod", "tiny", 0, 0, 0)


def _at(tokens: int) -> Totals:
    made = frame({0: [2 * tokens, 0]})
    return totals_of(made, Layout(made.layers))


@pytest.fixture
def track() -> Track:
    """Born at 100; the first frame at 110, then one every ten seconds, one token a second."""
    track = Track(100.0, Snapshot(110.0, _at(10)))
    for at in range(120, 200, 10):
        track.add(Snapshot(float(at), _at(at - 100)))
    return track


@pytest.mark.parametrize(
    ("start", "end", "tokens", "used", "truncated"),
    [
        (None, None, 90, (100, 190), False),  # everything
        (50.0, None, 90, (100, 190), False),  # before the birth there was nothing
        (120.0, 150.0, 30, (120, 150), False),
        (125.0, 159.9, 30, (120, 150), False),  # nearest at or before
        (105.0, 150.0, 40, (110, 150), True),  # between birth and first frame nothing is known
        (195.0, None, 0, (190, 190), False),
        (50.0, 90.0, 0, (100, 100), False),
    ],
)
def test_a_window_is_the_difference_of_the_snapshots_at_or_before_its_ends(
    track: Track, start: float | None, end: float | None, tokens: int, used: tuple[int, int], truncated: bool
) -> None:
    span = track.span(start, end)
    assert (span.delta.tokens, (span.start, span.end), span.truncated) == (tokens, used, truncated)
    assert span.delta.counts.tolist() == [2 * tokens, 0]


def test_what_a_clock_that_was_ahead_recorded_is_of_the_time_it_is_set_back_to() -> None:
    history = History(1 << 20)
    for at, tokens in ((110, 10), (120, 20), (3720, 30), (3730, 40)):
        history.record(KEY, 100.0, Snapshot(float(at), _at(tokens)))
    history.set_back(KEY, 3700.0)  # by less than is of account
    assert len(history) == 4
    history.set_back(KEY, 150.0)
    older = sum(narrowed(_at(tokens)).nbytes for tokens in (10, 20))
    assert history.nbytes == older + _at(40).nbytes
    history.record(KEY, 100.0, Snapshot(160.0, _at(50)))
    spans = [history.span(KEY, 100.0, 120.0), history.span(KEY, 120.0, 155.0), history.span(KEY, 155.0, None)]
    assert [(span.delta.tokens, span.start, span.end) for span in spans] == [
        (20, 100, 120), (20, 120, 150), (10, 150, 160),
    ]  # fmt: skip


def test_thinning_keeps_the_ends_and_the_newer_half(track: Track) -> None:
    assert track.thin()
    assert track.span(None, None).delta.tokens == 90
    assert track.span(150.0, None).delta.tokens == 40
    assert track.span(125.0, None).start == 110.0


def test_the_budget_holds_and_totals_stay_right() -> None:
    history = History(budget_bytes=20_000)
    for at in range(1, 500):
        history.record(KEY, 0.0, Snapshot(float(at), _at(at)))
        assert history.nbytes <= 20_000
    assert len(history) > 5
    assert history.span(KEY, None, None).delta.tokens == 499
    old = history.span(KEY, 100.0, None)
    assert old.delta.tokens == 499 - old.start
    recent = history.span(KEY, 490.0, None)
    assert recent.start == 490.0


def test_when_nothing_can_be_thinned_the_oldest_go_and_the_answer_says_so() -> None:
    history = History(budget_bytes=_at(1).nbytes * 2)
    for at in range(10, 20):
        history.record(KEY, 0.0, Snapshot(float(at), _at(at)))
    span = history.span(KEY, 11.0, None)
    assert span.truncated
    assert span.start > 11.0
    assert span.delta.tokens == 19 - span.start


def test_a_clock_that_goes_back_does_not_break_the_order() -> None:
    track = Track(0.0, Snapshot(10.0, _at(1)))
    track.add(Snapshot(5.0, _at(2)))
    assert track.span(10.0, None).delta.tokens == 0
    assert track.span(None, None).delta.tokens == 2


def test_of_one_instant_the_last_word_counts(track: Track) -> None:
    """Another service kept a newer frame of the same instant: a window from before said what came first."""
    track = Track(100.0, Snapshot(110.0, _at(10)))
    track.add(Snapshot(110.0, _at(12)))
    assert track.span(105.0, None).delta.tokens == 0
    assert track.span(None, 105.0).delta.tokens == 12
    assert (len(track), track.nbytes) == (1, _at(12).nbytes)


def test_bytes_are_those_of_the_tracks_whatever_happens_to_them() -> None:
    history, keys = History(budget_bytes=20_000), [(*KEY[:2], rank, 0, 0) for rank in range(3)]

    def summed() -> int:
        tracks = [history.track(key) for key in keys]
        assert history.enough_bytes == sum(track.enough_bytes for track in tracks)
        return sum(track.nbytes for track in tracks)

    for at in range(1, 60):
        for key in keys:
            history.record(key, 0.0, Snapshot(float(at), _at(at)))
            assert at == 1 or history.nbytes == summed()
    larger = frame({0: [1, 1], 1: [1, 1]})
    history.amend(keys[0], totals_of(larger, Layout(larger.layers)))
    assert history.nbytes == summed()
    history.forget(keys.pop())
    assert history.nbytes == summed()


def test_a_full_memory_makes_nothing_narrow_that_it_drops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Totals] = []

    def noted(totals: Totals) -> Totals:
        made.append(totals)
        return narrowed(totals)

    size, keys = _at(1).nbytes, [(*KEY[:2], rank, 0, 0) for rank in range(4)]
    monkeypatch.setattr("moescope.service.live.history.narrowed", noted)
    full, roomy = History(3 * size), History(100 * size)
    for at in range(1, 20):
        for key in keys:
            full.record(key, 0.0, Snapshot(float(at), _at(at)))
    assert made == []
    assert (len(full), full.nbytes, full.enough_bytes) == (4, 4 * size, 4 * 8 * size)
    for key in keys:
        track = full.track(key)
        assert (track.reaches, track.complete_since, track.newest_at) == (19.0, 19.0, 19.0)
    roomy.record(keys[0], 0.0, Snapshot(1.0, _at(1)))
    roomy.record(keys[0], 0.0, Snapshot(2.0, _at(2)))
    assert len(made) == 1


@pytest.mark.parametrize("most", [None, 1 << 14])
@given(
    budget=st.integers(1, 40),
    told=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 300), st.integers(0, 3)), max_size=60),
)
def test_what_is_superseded_leaves_what_adding_and_dropping_would(
    most: int | None, budget: int, told: list[tuple[int, int, int]]
) -> None:
    size = _at(1).nbytes
    shortcut, plain = History(budget * size // 4, most), History(budget * size // 4, most)
    plain._has_no_room_beside = lambda *_: False  # type: ignore[method-assign]
    for at, (rank, tokens, pause) in enumerate(told):
        key = (*KEY[:2], rank, 0, 0)
        for history in (shortcut, plain):
            history.record(key, 0.0, Snapshot(100.0 + at * pause, _at(tokens)))
        assert shortcut.nbytes == plain.nbytes
        assert shortcut.enough_bytes == plain.enough_bytes
        for known in {(*KEY[:2], item[0], 0, 0) for item in told[: at + 1]}:
            mine, its = shortcut.track(known), plain.track(known)
            assert [(item.at, item.totals.tokens) for item in mine._snapshots] == [
                (item.at, item.totals.tokens) for item in its._snapshots
            ]
            assert (mine.reaches, mine.complete_since, mine.told_until) == (
                its.reaches,
                its.complete_since,
                its.told_until,
            )


@pytest.mark.parametrize(("most", "kept"), [(None, 2), (1 << 30, 8)])
def test_without_a_store_the_budget_grows_with_the_producers(most: int | None, kept: int) -> None:
    size = _at(1).nbytes
    history = History(16 * size, most)
    for at in range(400):
        for rank in range(8):
            key = ("prod", "tiny", rank, 0, 0)
            history.record(key, 100.0, Snapshot(100.0 + at, _at(at)))
    assert len(history) == pytest.approx(8 * kept, rel=0.4)
    older = narrowed(_at(398)).nbytes
    assert history.enough_bytes == 8 * (size + 7 * older)
    spans = [
        499.0 - (reaches or 100.0)
        for rank in range(8)
        for reaches in [history.track(("prod", "tiny", rank, 0, 0)).reaches]
    ]
    assert (min(spans) < 10) == (most is None)


def test_how_far_back_a_track_reaches() -> None:
    young, old = Track(100.0, Snapshot(110.0, _at(1))), Track(100.0, Snapshot(5000.0, _at(1)))
    assert (young.reaches, old.reaches) == (None, 5000.0)  # the old one was known late
    young.add(Snapshot(120.0, _at(2)))
    assert young.drop_oldest()
    assert young.reaches == 120.0


def test_older_snapshots_are_narrow_and_those_of_an_idle_worker_share_their_arrays() -> None:
    track = Track(0.0, Snapshot(1.0, _at(70_000)))
    for at in (2.0, 3.0, 4.0):
        track.add(Snapshot(at, _at(80_000)))
    first, idle, still, newest = (track.boundary(at, None).totals for at in (1.0, 2.0, 3.0, 4.0))
    assert [item.counts.itemsize for item in (first, idle, still, newest)] == [4, 4, 4, 8]
    assert [item.counts.tolist() for item in (first, newest)] == [[140_000, 0], [160_000, 0]]
    assert still.counts is idle.counts
    assert track.nbytes == sum(item.nbytes for item in (first, idle, still, newest))
    assert track.span(1.0, 3.0).delta.counts.tolist() == [20_000, 0]
