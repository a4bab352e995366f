"""Windows whose rows don't add up to their tokens say so; others, before and after, don't."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moescope.service.counts.phase_split import Phase
from moescope.service.counts.row_law import RowLaw
from moescope.service.live.producers import ProducerSpan
from moescope.service.windows.assessment import assess
from moescope.service.windows.phase_window import merge_spans_of_phase
from tests.service.windows.fleet import Fleet


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def _spans(fleet: Fleet, start: float | None = None, end: float | None = None) -> list[ProducerSpan]:
    return fleet.state.spans(("prod", "tiny"), start, end)


def _told(spans: list[ProducerSpan], phase: Phase | None = None) -> dict[int, str]:
    """Layer to what its window says."""
    window = merge_spans_of_phase(spans, phase)
    return {layer.shape.layer: layer.not_conserved for layer in window.layers if layer.not_conserved}


def _partial(spans: list[ProducerSpan]) -> dict[int, str]:
    """Layer to why it is partial."""
    window = merge_spans_of_phase(spans, None)
    return {layer.shape.layer: layer.why_partial for layer in window.layers if layer.why_partial}


def _without_comparisons(spans: list[ProducerSpan]) -> list[ProducerSpan]:
    """As a service has them that has started since: with totals only."""
    return [replace(item, producer=replace(item.producer, law=RowLaw())) for item in spans]


def test_only_windows_in_which_rows_were_lost_say_so(fleet: Fleet) -> None:
    lost = [(100, 100), (200, 195), (300, 295), (400, 395)]
    times = []
    for step, (tokens, rows) in enumerate(lost, start=1):
        fleet.tell(0, step, {0: rows, 1: tokens}, tokens, tp_size=1)
        times.append(fleet.clock.now)
        fleet.clock.now += 5
    assert _told(_spans(fleet, None, times[0])) == {}
    assert _told(_spans(fleet, times[1], times[3])) == {}
    assert set(_told(_spans(fleet, times[0], times[1]))) == {0}
    assert set(_told(_spans(fleet))) == {0}


def test_with_several_tp_workers_a_single_lost_row_shows_in_its_window(fleet: Fleet) -> None:
    times = []
    for step, lost in enumerate((0, 1, 1, 1), start=1):
        fleet.tell(0, 2 * step, {0: 100 * step}, 200 * step)
        fleet.tell(1, 2 * step, {0: 100 * step - lost}, 200 * step)
        fleet.tell(0, 2 * step + 1, {0: 100 * step + 50}, 200 * step + 100)
        times.append(fleet.clock.now)
        fleet.clock.now += 5
    assert _told(_spans(fleet, times[0], times[1])) == {
        0: "its rows don't add up to the tokens of DP rank 0: see /v1/ranks"
    }
    assert _told(_spans(fleet, times[1], times[3])) == {}


def test_totals_alone_show_what_no_order_of_the_workers_explains(fleet: Fleet) -> None:
    for step in range(1, 5):
        fleet.tell(0, step, {0: 50 * step, 1: 100 * step}, 100 * step)
        fleet.tell(1, step, {0: 0, 1: 0}, 100 * step)
        fleet.clock.now += 5
    told = _told(_without_comparisons(_spans(fleet)))
    assert told == {0: "its rows don't add up to the tokens of DP rank 0: 200 of 400"}


def test_a_window_between_the_reports_of_the_workers_raises_no_alarm(fleet: Fleet) -> None:
    # Each worker reports at moments of its own; the window's ends are anywhere.
    times = []
    for step in range(1, 40):
        fleet.tell(step % 2, step, {0: 50 * step, 1: 100 * step * (step % 2 == 0)}, 100 * step)
        times.append(fleet.clock.now)
    for start in times[3:20:3]:
        for end in times[21::4]:
            spans = _spans(fleet, start - 0.05, end - 0.05)
            assert _told(spans) == _told(_without_comparisons(spans)) == {}


def test_a_restart_in_the_window_raises_no_alarm(fleet: Fleet) -> None:
    # The workers end at different steps, and each counts some rows alone.
    fleet.tell(0, 10, {0: 400}, tokens=1000)
    fleet.tell(1, 9, {0: 500}, tokens=900)
    again = int(fleet.clock.now * 1e9)
    fleet.clock.now += 5
    fleet.tell(0, 1, {0: 40}, tokens=90, epoch=again)
    fleet.tell(1, 2, {0: 60}, tokens=190, epoch=again)
    assert _told(_spans(fleet)) == {}


def test_a_tp_worker_that_never_reported_makes_its_layers_partial(fleet: Fleet) -> None:
    fleet.tell(0, 1, {0: 50, 1: 100}, tokens=100)
    partial = _partial(_spans(fleet))
    assert list(partial) == [0]  # layer 1 is whole without it
    assert "its worker of PP rank 0, TP rank 1: never reported" in partial[0]
    assert _told(_spans(fleet)) == {}  # it is said once


def test_a_tp_worker_that_fell_silent_makes_later_windows_partial(fleet: Fleet) -> None:
    fleet.tell(0, 1, {0: 50, 1: 100}, tokens=100)
    fleet.tell(1, 1, {0: 50, 1: 0}, tokens=100)
    silent_since = fleet.clock.now
    fleet.clock.now += 30
    fleet.tell(0, 9, {0: 450, 1: 900}, tokens=900)
    partial = _partial(_spans(fleet, silent_since, None))
    assert list(partial) == [0]
    assert "its worker of PP rank 0, TP rank 1: fell silent" in partial[0]
    assert _partial(_spans(fleet, None, silent_since)) == {}
    for start, end in ((silent_since, None), (None, silent_since)):
        assert _told(_spans(fleet, start, end)) == {}


def test_more_rows_than_tokens_are_no_less_wrong_where_a_worker_is_missing(fleet: Fleet) -> None:
    fleet.tell(0, 1, {0: 150, 1: 100}, tokens=100)
    assert _told(_spans(fleet)) == {0: "its rows don't add up to the tokens of DP rank 0: 150 of 100"}


def test_a_phase_says_so_only_if_its_rows_are_lost(fleet: Fleet) -> None:
    fleet.tell(0, 9, {0: 61, 1: 100}, tokens=100, decode={0: 1, 1: 40}, decode_tokens=40, tp_size=1)
    assert set(_told(_spans(fleet))) == set(_told(_spans(fleet), Phase.DECODE)) == {0}
    assert _told(_spans(fleet), Phase.PREFILL) == {}


def test_a_layer_without_any_row_is_unseen_and_nothing_else(fleet: Fleet) -> None:
    fleet.tell(0, 9, {0: 0, 1: 100}, tokens=100, tp_size=1)
    window = merge_spans_of_phase(_spans(fleet), None)
    assert window.layers[0].not_seen is not None
    assert window.layers[0].not_conserved is None


def test_measures_of_a_layer_that_does_not_add_up_are_none_with_the_reason(fleet: Fleet) -> None:
    fleet.tell(0, 9, {0: 61, 1: 100}, tokens=100, tp_size=1)
    found = assess(merge_spans_of_phase(_spans(fleet), None), min_tokens=1)
    broken, whole = found.experts.cells
    assert broken.measures is None
    assert broken.reason == "its rows don't add up to the tokens of DP rank 0: 61 of 100"
    assert whole.measures is not None
