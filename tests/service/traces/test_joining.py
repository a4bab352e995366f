"""Joining where traces can't be read, are of another shape, or are too many to be looked for."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.capture.wire.traces import TakenOver
from moescope.service.store.records import StoreError
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.traces.belonging import SeveralError
from moescope.service.traces.finding import Found
from moescope.service.traces.joining import Joined, join
from moescope.service.traces.routing import TooManyPositionsError
from moescope.service.traces.sources import Source
from tests.service.trace_parts import LAYERS, experts_of
from tests.service.traces.stored_traces import PROMPT, source, worker

TRUTH = experts_of(7, 60)
OTHER_SHAPE = [LAYERS[0], MoeLayer(3, 65, 4)]
TAKEN = (TakenOver(0, 20, "first"),)


def damaged() -> WorkerTrace:
    """A trace whose runs can't be read."""

    def fails() -> Int64Array:
        raise StoreError("damaged")

    return WorkerTrace(tuple(LAYERS), 1, 20, (3, 3), fails, lambda _start, _end: ())


def whys(joined: Joined) -> list[tuple[int, int, str]]:
    return [(item.first, item.end, item.why) for item in joined.missing]


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        (source(1, damaged()), "unreadable"),
        (source(1, worker(TRUTH, [(0, 20)], OTHER_SHAPE)), "other_shape"),
        (source(1, worker(TRUTH, [(20, 10)])), "not_in_trace"),
        ("evicted", "evicted"),
    ],
)
def test_a_reference_that_is_of_no_help_is_said(reference: Source | str, why: str) -> None:
    main = source(2, worker(TRUTH, [(20, 40)]), taken_over=TAKEN, cached_tokens=20)
    joined = join(Found((main,), {(2, "first"): reference}), 0, None)
    assert whys(joined) == [(0, 20, why)]
    [rows] = joined.routing.chunks(100)
    assert (rows.experts[:20] == -1).all()
    np.testing.assert_array_equal(rows.experts[20:, 1], TRUTH[1][20:60])


def test_a_request_that_names_itself_names_nobody() -> None:
    main = source(2, worker(TRUTH, [(20, 40)]), taken_over=(TakenOver(0, 20, "cmpl-x-0-00000002"),))
    assert whys(join(Found((main,), {(2, "cmpl-x-0-00000002"): main}), 0, None)) == [(0, 20, "not_in_trace")]


def test_a_part_that_cannot_be_read_is_listed() -> None:
    main, part = source(2, worker(TRUTH, [(20, 40)]), cached_tokens=20), source(1, damaged())
    joined = join(Found((main, part), {}), 0, None)
    assert [(item.kind, item.unused) for item in joined.parts] == [("main", ""), ("same_id", "unreadable")]
    assert whys(joined) == [(0, 20, "not_told")]


def test_another_trace_is_never_taken_for_a_main_one_that_cannot_be_read() -> None:
    with pytest.raises(StoreError, match="damaged"):
        join(Found((source(2, damaged()), source(1, worker(TRUTH, [(0, PROMPT)]))), {}), 0, None)


def test_a_part_of_another_shape_is_another_request() -> None:
    parts = source(2, worker(TRUTH, [(0, 60)])), source(1, worker(TRUTH, [(0, 40)], OTHER_SHAPE))
    with pytest.raises(SeveralError, match="other experts"):
        join(Found(parts, {}), 0, None)


def test_what_a_part_took_over_fills_what_came_from_it() -> None:
    """Decode loads all but the last token from prefill, which had its beginning from an earlier request."""
    loaded = (TakenOver(0, 39, "", "kv_transfer"),)
    main = source(3, worker(TRUTH, [(39, 21)]), taken_over=loaded, cached_tokens=39)
    prefill = source(2, worker(TRUTH, [(20, 20)]), taken_over=TAKEN, cached_tokens=20)
    first = source(1, worker(TRUTH, [(0, 30)]), request_id="first")
    joined = join(Found((main, prefill), {(2, "first"): first}), 0, None)
    assert [(item.kind, item.request.number, item.positions.tolist()) for item in joined.parts] == [
        ("main", 3, [[39, 60]]),
        ("same_id", 2, [[20, 39]]),
        ("taken_over", 1, [[0, 20]]),
    ]
    assert joined.missing == ()
    [rows] = joined.routing.chunks(100)
    np.testing.assert_array_equal(rows.experts[:, 1], TRUTH[1])
    gone = join(Found((main, prefill), {(2, "first"): "expired"}), 0, None)
    assert whys(gone) == [(0, 20, "expired")]  # which says more than kv_transfer


def test_positions_of_a_part_behind_the_last_one_compared_are_not_taken() -> None:
    """Both were aborted in their prompt; nothing shows that it goes on alike."""
    main = source(2, worker(TRUTH, [(10, 10)]), finish_reason="abort")
    part = source(1, worker(TRUTH, [(0, 30)]), finish_reason="abort")
    joined = join(Found((main, part), {}), 0, None)
    assert joined.routing.shape[0] == 20
    assert [item.positions.tolist() for item in joined.parts] == [[[10, 20]], [[0, 10]]]


def test_chunks_of_any_size_are_the_same() -> None:
    main = source(2, worker(TRUTH, [(10, 5), (30, 30)]))
    part = source(1, worker(TRUTH, [(0, 12), (13, 27)]))
    joined = join(Found((main, part), {}), 3, 57)
    for size in (1, 7, 100):
        rows = list(joined.routing.chunks(size))
        np.testing.assert_array_equal(np.concatenate([item.experts[:, 1] for item in rows]), TRUTH[1][3:57])
        assert np.concatenate([item.times for item in rows]).tolist() == [1] * 54
        assert np.concatenate(list(joined.routing.times(size))).tolist() == [1] * 54
        assert np.concatenate(list(joined.routing.computed(size))).all()


def test_more_positions_than_an_answer_may_have() -> None:
    with pytest.raises(TooManyPositionsError):
        join(Found((source(1, worker(TRUTH, [(0, 60)])),), {}), 0, None, most=59)


def test_a_main_trace_of_another_shape_is_another_request() -> None:
    """Preemptions may put another one first, by what is said of them."""
    parts = source(2, worker(TRUTH, [(0, 40)])), source(1, worker(TRUTH, [(0, 60)], OTHER_SHAPE))
    with pytest.raises(SeveralError, match="other experts"):
        join(Found(parts, {}), 0, None)


def test_a_stage_whose_layers_no_trace_has_is_said() -> None:
    only = source(1, worker(TRUTH[:1], [(0, 60)], LAYERS[:1]), missing_stages=1)
    assert whys(join(Found((only,), {}), 5, None)) == [(5, 60, "stages_missing")]
    assert whys(join(Found((only,), {}, frozenset({1})), 0, None)) == []
    [lost] = join(Found((only,), {}, frozenset({1, 3})), 0, None).missing
    assert (lost.why, lost.layers) == ("stages_missing", (3,))


def test_a_trace_with_all_stages_tells_all_layers() -> None:
    main = source(2, worker(TRUTH[:1], [(20, 40)], LAYERS[:1]), missing_stages=1)
    joined = join(Found((main, source(1, worker(TRUTH, [(0, 40)]))), {}), 0, None)
    assert whys(joined) == [(40, 60, "layers_missing")]
