"""Traces get the rows of their requests, take bounded memory, and are accounted for exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moescope.capture.seam.block_tables import BlockLayout, StepBlocks, Table
from moescope.capture.seam.requests import NewRequest, RowsOf, StepRequests
from moescope.capture.seam.rows import Layout, RowSpan
from moescope.capture.settings.sampling import TraceSampling
from moescope.capture.step.batch import order_requests
from moescope.capture.tracing import tracer as tracing
from moescope.capture.tracing.buffer import Trace
from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import NO_EXPERT, TakenOver
from tests.capture.traces import Driver, side_by_side


def test_rows_go_to_their_requests_in_the_batch_s_order() -> None:
    driver = Driver()
    first = driver.step({"a": (0, 3), "b": (0, 2)}, order=["b", "a"], padding=3)
    second = driver.step({"a": (3, 1), "b": (2, 1)}, order=["a", "b"])
    driver.step({}, finished=["a", "b"])
    traces = driver.closed()
    expected = np.concatenate([side_by_side(first, slice(2, 5)), side_by_side(second, slice(0, 1))])
    np.testing.assert_array_equal(np.concatenate(traces["a"].chunks), expected)
    expected = np.concatenate([side_by_side(first, slice(0, 2)), side_by_side(second, slice(1, 2))])
    np.testing.assert_array_equal(np.concatenate(traces["b"].chunks), expected)
    assert traces["a"].runs == [(0, 4)]
    assert traces["a"].chunks[0].dtype == np.uint8
    driver.assert_accounts(captured=2, closed=2, open_=0)


def test_chunks_hits_and_recomputation_are_told_apart() -> None:
    driver = Driver()
    driver.step({"a": (32, 8)})  # 32 positions came from a prefix cache
    driver.step({"a": (40, 8)})
    driver.step({"a": (0, 16)}, resumed=["a"])
    driver.step({"a": (16, 32)})
    driver.step({}, finished=["a"])
    trace = driver.closed()["a"]
    assert trace.runs == [(32, 16), (0, 48)]
    assert (trace.cached_tokens, trace.preemptions, trace.prompt_tokens) == (32, 1, 4)


def test_only_what_is_sampled_is_traced() -> None:
    driver = Driver(sampling=TraceSampling(opt_in=True))
    driver.step({"a": (0, 3), "b": (0, 2)}, opted_in=["b"])
    driver.step({}, finished=["a", "b"])
    assert set(driver.closed()) == {"b"}
    asked_without_leave = Driver(sampling=TraceSampling(rate=0.0))
    asked_without_leave.step({"b": (0, 2)}, opted_in=["b"])
    asked_without_leave.assert_accounts(captured=0, closed=0, open_=0)


def test_overflow_drops_whole_requests_and_counts_them() -> None:
    driver = Driver(max_bytes=25 * 261)  # a chunk of one token takes 261
    for position in range(20):
        driver.step({"a": (position, 1), "b": (position, 1)})
    driver.step({"c": (0, 1)}, finished=["a", "b"])
    driver.assert_accounts(captured=3, closed=1, open_=1, buffer_full=1)
    [survivor] = driver.closed().values()
    assert survivor.runs == [(0, 20)]


def test_memory_is_free_again_when_the_sender_is_done() -> None:
    driver = Driver(max_bytes=1000)
    for number in range(20):
        driver.step({f"r{number}": (0, 4)})
        driver.step({}, finished=[f"r{number}"])
        while driver.assembly.closed:
            driver.assembly.sent += driver.assembly.closed.popleft().nbytes
    assert (driver.assembly.captured, driver.assembly.dropped) == (20, {})


@pytest.mark.parametrize(
    ("ordered", "layers", "reason"),
    [(True, [0], "layer_missing"), (False, None, "layout_unknown"), (True, [], "layer_missing")],
)
def test_a_step_that_cannot_be_told_drops_its_requests(
    ordered: bool, layers: list[int] | None, reason: str
) -> None:
    driver = Driver()
    driver.step({"a": (0, 2)})
    driver.step({"a": (2, 1), "b": (0, 1)}, ordered=ordered, layers=layers)
    driver.step({"c": (0, 1)}, finished=["a", "b"])
    driver.assert_accounts(captured=3, closed=0, open_=1, **{reason: 2})


def test_rows_of_all_dp_ranks_are_cut_to_ours() -> None:
    driver = Driver()
    calls = driver.step({"a": (0, 2)}, padding=5, span=RowSpan(Layout.ALL_DP, 4, 2, 0))
    driver.step({}, finished=["a"])
    np.testing.assert_array_equal(driver.closed()["a"].chunks[0], side_by_side(calls, slice(4, 6)))


def test_routing_outside_of_steps_is_nobody_s() -> None:
    driver = Driver()
    driver.step({"a": (0, 2)})
    driver.route(0, torch.zeros(8, 2, dtype=torch.int64), RowSpan(Layout.SINGLE_DP, 0, 8, 0), 8)
    driver.step({}, finished=["a"])
    assert sum(len(chunk) for chunk in driver.closed()["a"].chunks) == 2


def test_shutdown_cuts_off_what_is_open() -> None:
    driver = Driver()
    driver.step({"a": (0, 2)})
    driver.tracer.close_all()
    driver.assembly.proceed()
    assert driver.closed()["a"].outcome == "cut_off"


def routed(layer: MoeLayer, ids: list[list[int]]) -> Trace:
    """A trace of one request whose tokens took these experts in its only layer."""
    driver = Driver([layer])
    driver.tracer.begin_step(step := one_request(len(ids)))
    driver.tracer.take_order(order_requests(["a"], step.num_tokens), 0)
    driver.route(0, torch.tensor(ids), RowSpan(Layout.SINGLE_DP, 0, len(ids), 0), len(ids))
    driver.tracer.end_step()
    driver.tracer.close_all()
    driver.assembly.proceed()
    return driver.closed()["a"]


def one_request(tokens: int) -> StepRequests:
    new = NewRequest("a", 1, 0, False)
    return StepRequests([], [new], frozenset(), {"a": tokens}, lambda: RowsOf({"a": 0}))


@pytest.mark.parametrize(
    ("experts", "ids", "dtype", "expected"),
    [
        (254, [[253, 0]], np.uint8, [[253, 0]]),
        (256, [[254, 255]], np.uint8, [[254, 255]]),
        (254, [[253, 0], [3, -1]], np.uint16, [[253, 0], [3, NO_EXPERT]]),
        (256, [[255, 256], [255, 1]], np.uint16, [[255, NO_EXPERT], [255, 1]]),
        (300, [[299, 0]], np.uint16, [[299, 0]]),
    ],
)
def test_ids_take_a_byte_where_they_fit_and_masked_slots_are_told(
    experts: int, ids: list[list[int]], dtype: type, expected: list[list[int]]
) -> None:
    [chunk] = routed(MoeLayer(0, experts, 2), ids).chunks
    assert chunk.dtype == dtype
    assert chunk.tolist() == expected


def test_staging_wraps_around_while_rows_are_under_way() -> None:
    """Rows of a step stay as they are until they are read; a request whose rows find no room is dropped."""
    driver = Driver(staging_bytes=10 * 5)  # ten rows of five slots
    calls = []
    for step in range(40):
        late = step % 3 != 2
        calls.append(driver.step({"a": (3 * step, 3)}, proceed=not late))
    driver.step({}, finished=["a"])
    expected = np.concatenate([side_by_side(call, slice(0, 3)) for call in calls])
    np.testing.assert_array_equal(np.concatenate(driver.closed()["a"].chunks), expected)
    for step in range(4):
        driver.step({"b": (3 * step, 3)}, proceed=False)
    driver.step({"c": (0, 11)})
    driver.step({}, finished=["b", "c"])
    driver.assert_accounts(captured=3, closed=1, open_=0, staging_full=2)


def test_each_token_has_its_step_s_number() -> None:
    driver = Driver()
    driver.step({"b": (0, 4)})
    driver.step({"a": (0, 3), "b": (4, 1)})
    driver.step({"b": (5, 1)})
    driver.step({"a": (3, 1)}, finished=["b"])
    driver.step({}, finished=["a"])
    assert driver.closed()["a"].steps == [(1, 3), (3, 1)]
    assert driver.closed()["b"].steps == [(0, 4), (1, 1), (2, 1)]


def test_giving_up_drops_what_is_open_and_copies_nothing_more() -> None:
    driver = Driver()
    driver.step({"a": (0, 2)})
    step = one_request(2)
    driver.tracer.begin_step(step)
    driver.tracer.take_order(order_requests(["a"], step.num_tokens), 1)
    driver.tracer.give_up()
    assert int(driver.staging.row_map[0]) == 0
    driver.tracer.end_step()
    driver.assembly.proceed()
    driver.assert_accounts(captured=1, closed=0, open_=0, fault=1)


LAYOUT = BlockLayout(group=0, block_size=4, blocks=64)


def begun(*tables: Table) -> StepBlocks:
    return StepBlocks(LAYOUT, (), tables)


def test_a_trace_names_who_computed_its_cached_prefix() -> None:
    driver = Driver()
    driver.step({"a": (0, 9)}, blocks=begun(Table("a", 0, [1, 2, 3])), proceed=False)
    driver.step({"b": (8, 3)}, blocks=begun(Table("b", 8, [1, 2, 4])), proceed=False)
    driver.step({}, finished=["a", "b"])
    assert driver.closed()["a"].taken_over == []
    assert driver.closed()["b"].taken_over == [TakenOver(0, 8, "a")]


def test_a_request_that_is_not_traced_is_not_named() -> None:
    driver = Driver(sampling=TraceSampling(opt_in=True))
    driver.step({"a": (0, 9)}, blocks=begun(Table("a", 0, [1, 2, 3])))
    driver.step({"b": (8, 3)}, opted_in=["b"], blocks=begun(Table("b", 8, [1, 2, 4])))
    driver.step({}, finished=["a", "b"])
    assert driver.closed()["b"].taken_over == [TakenOver(0, 8, "", "not_traced")]


def test_after_a_preemption_only_what_it_never_computed_is_taken_over() -> None:
    """b has computed 6 positions, of which it has 4 in a full block; a computes the rest meanwhile."""
    driver = Driver()
    driver.step({"b": (0, 6)}, blocks=begun(Table("b", 0, [1, 2])))
    driver.step({"a": (4, 8)}, blocks=begun(Table("a", 4, [1, 3, 4])))
    driver.step({"b": (12, 2)}, resumed=["b"], blocks=begun(Table("b", 12, [1, 3, 4, 5])))
    driver.step({}, finished=["a", "b"])
    assert driver.closed()["b"].taken_over == [TakenOver(6, 6, "a")]
    assert driver.closed()["a"].taken_over == [TakenOver(0, 4, "b")]


def test_what_a_kv_connector_filled_is_known_in_its_turn() -> None:
    driver = Driver()
    driver.step({"a": (0, 9)}, blocks=begun(Table("a", 0, [1, 2, 3])))
    driver.step({"b": (8, 3)}, blocks=begun(Table("b", 8, [1, 2, 4])), proceed=False)
    driver.tracer.kv_received()
    driver.step({"c": (8, 3)}, blocks=begun(Table("c", 8, [1, 2, 5])), proceed=False)
    driver.step({}, finished=["a", "b", "c"])
    assert driver.closed()["b"].taken_over == [TakenOver(0, 8, "a")]
    assert driver.closed()["c"].taken_over == [TakenOver(0, 8, "", "kv_transfer")]


def test_so_they_are_where_too_many_blocks_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left out, and what was followed, makes room again."""
    driver = Driver()
    monkeypatch.setattr(tracing, "MAX_BLOCKS", 5)
    driver.step({"a": (0, 9)}, blocks=begun(Table("a", 0, [1, 2, 3])), proceed=False)
    more = StepBlocks(LAYOUT, (), (), [("a", [4, 5])])
    driver.step({"a": (9, 8)}, blocks=more, proceed=False)
    waiting = len(driver.assembly.events)
    driver.step({}, blocks=StepBlocks(LAYOUT, (), (), [("a", [6])]), proceed=False)
    assert len(driver.assembly.events) == waiting
    driver.assembly.proceed()
    driver.step({"b": (8, 3)}, blocks=begun(Table("b", 8, [1, 2, 7])))
    driver.step({"c": (8, 3)}, blocks=begun(Table("c", 8, [1, 7, 8])))
    driver.step({}, finished=["a", "b", "c"])
    assert driver.closed()["b"].taken_over == [TakenOver(0, 8, "", "not_seen")]


@pytest.mark.parametrize("received", [False, True])
def test_far_behind_changes_are_left_out_and_then_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, received: bool
) -> None:
    driver = Driver()
    driver.step({"a": (0, 9)}, blocks=begun(Table("a", 0, [1, 2, 3])), proceed=False)
    waiting = len(driver.assembly.events)
    monkeypatch.setattr(tracing, "MAX_EVENTS", waiting)
    if received:
        driver.tracer.kv_received()
    else:
        driver.step({}, blocks=begun(Table("x", 0, [1])), proceed=False)
    assert len(driver.assembly.events) == waiting
    driver.assembly.proceed()
    driver.step({"b": (8, 3)}, blocks=begun(Table("b", 8, [1, 2, 4])))
    driver.step({}, finished=["a", "b"])
    assert driver.closed()["b"].taken_over == [TakenOver(0, 8, "", "not_seen")]


def test_a_table_that_makes_no_sense_costs_origins_only() -> None:
    driver = Driver()
    driver.step({"a": (0, 9)}, blocks=begun(Table("a", 0, [1, 2, 999])))
    driver.step({"b": (8, 3)}, blocks=begun(Table("b", 8, [1, 2, 4])))
    driver.step({}, finished=["a", "b"])
    assert driver.closed()["b"].taken_over == [TakenOver(0, 8, "", "fault")]
    driver.assert_accounts(captured=2, closed=2, open_=0)
