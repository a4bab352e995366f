"""Rows that arrive make traces: whole or dropped, of this worker's rows only, and not during a pause."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moescope.capture.seam.rows import Layout, RowSpan
from moescope.capture.tracing.assembly import Arrival
from moescope.capture.tracing.sender import encode_trace
from moescope.capture.wire import Producer
from moescope.capture.wire.traces import decode_part
from tests.capture.traces import Driver, side_by_side

WHO = Producer(server="s", model="m", dp_rank=0, dp_size=1, tp_size=2)


def test_a_shard_has_its_tokens_only() -> None:
    """The second of two tensor-parallel workers: rows 0..2 of its calls are tokens 3..5 of the step."""
    driver = Driver(sharded=True)
    calls = driver.step({"a": (10, 2), "b": (0, 3)}, padding=1, span=RowSpan(Layout.TP_SHARD, 0, 3, 3))
    driver.step({}, finished=["a", "b"])
    [trace] = driver.closed().values()
    assert (trace.request_id, trace.runs) == ("b", [(1, 2)])
    np.testing.assert_array_equal(trace.chunks[0], side_by_side(calls, slice(0, 2)))


def test_rows_that_another_worker_has_make_no_trace() -> None:
    driver = Driver(sharded=True)
    driver.step({"a": (0, 2)}, span=RowSpan(Layout.LOCAL, 0, 0, 0))
    driver.step({}, finished=["a"])
    driver.assert_accounts(captured=0, closed=0, open_=0)


def test_a_shard_knows_what_all_workers_of_its_stage_computed_and_since_which_step() -> None:
    """The first step's rows of the request are at the other worker, and so is one row of the last step."""
    driver = Driver(sharded=True)
    driver.step({}, finished=[])
    driver.step({"a": (0, 2)}, span=RowSpan(Layout.LOCAL, 0, 0, 0))
    driver.step({"a": (2, 2)}, span=RowSpan(Layout.TP_SHARD, 0, 1, 1))
    driver.step({}, finished=["a"])
    [trace] = driver.closed().values()
    [(last, own)] = trace.steps
    assert (trace.computed, own, trace.started_step) == (4, 1, last - 1)
    [part] = [decode_part(body) for body in encode_trace(trace, driver.layers, WHO, 1)]
    assert (part.started_step, part.computed_tokens, part.tokens) == (last - 1, 4, 1)


def test_rows_that_cannot_be_had_drop_their_requests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    driver.step({"a": (0, 2)}, proceed=False)
    driver.step({"b": (0, 2)}, proceed=False)
    [lost, _] = driver.assembly.events
    assert isinstance(lost, Arrival)

    def fails() -> np.ndarray:
        raise RuntimeError("the device has failed")

    monkeypatch.setattr(lost.staged, "view", fails)
    driver.step({"a": (2, 1), "b": (2, 1)})
    driver.step({}, finished=["a", "b"])
    driver.assert_accounts(captured=2, closed=1, open_=0, **{"fault:RuntimeError": 1})
    assert driver.closed()["b"].runs == [(0, 3)]
    assert driver.staging.room() == driver.staging.capacity


def test_rows_come_in_while_the_sender_hangs_in_its_connection() -> None:
    driver = Driver()
    driver.assembly.start()
    driver.step({"a": (0, 2)}, finished=[], proceed=False)
    driver.step({}, finished=["a"], proceed=False)
    deadline = time.monotonic() + 60
    while not driver.assembly.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.assembly.stop(1.0)
    assert driver.closed()["a"].runs == [(0, 2)]


def test_nothing_is_taken_in_while_paused() -> None:
    driver = Driver()
    driver.assembly.pause()
    driver.assembly.pause()
    driver.step({"a": (0, 2)})
    driver.step({}, finished=["a"])
    assert not driver.assembly.closed
    driver.assembly.resume()
    driver.assembly.proceed()
    assert driver.closed()["a"].runs == [(0, 2)]


def test_a_trace_that_was_given_up_gets_no_rows_and_its_memory_is_free_again() -> None:
    driver = Driver()
    driver.step({"a": (0, 2)}, layers=[0])  # a layer is missing
    driver.step({"a": (2, 1)})
    driver.step({}, finished=["a"])
    driver.assert_accounts(captured=1, closed=0, open_=0, layer_missing=1)
    assert driver.assembly.released == driver.tracer._held


def test_rows_that_have_not_arrived_hold_up_what_came_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace is closed only when its rows are there, so events are taken in the order of the steps."""
    driver = Driver()
    driver.step({"a": (0, 2)}, proceed=False)
    [late] = driver.assembly.events
    assert isinstance(late, Arrival)
    monkeypatch.setattr(type(late.staged), "arrived", False)
    driver.step({}, finished=["a"])
    assert (len(driver.assembly.events), len(driver.assembly.closed)) == (2, 0)
    monkeypatch.undo()
    driver.assembly.proceed()
    assert driver.closed()["a"].runs == [(0, 2)]
