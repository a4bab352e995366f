"""Snapshots are of one moment, are taken at the ends of steps and between them, and lose no counts."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from moescope.capture.counting.load_ring import LoadRing
from moescope.capture.frames.snapshot import Snapshot
from moescope.capture.frames.step_history import StepHistory
from moescope.capture.frames.taker import NUM_TRANSFERS, SnapshotTaker
from moescope.capture.seam.weights import Weights
from moescope.capture.step.totals import StepTokens
from moescope.capture.wire import unpack_step_loads
from tests.capture.frames.bench import Bench, Source


def values(snapshot: Snapshot | None) -> tuple[list[int], int] | None:
    return None if snapshot is None else (snapshot.flat.tolist(), snapshot.totals.tokens)


def test_the_first_snapshot_announces_the_producer_before_any_step() -> None:
    bench = Bench()
    assert values(bench.collect()) == ([0, 0], 0)
    bench.now += 10
    assert bench.collect() is None


def test_a_busy_worker_takes_one_an_interval_at_steps_that_other_workers_choose_too() -> None:
    bench = Bench()
    taken = []
    for _ in range(10):
        bench.now += 0.25
        bench.step()
        bench.begin()  # the next step is under way already, so nothing is taken between steps
        taken.append(values(bench.collect()))
        bench.end()
    assert [snapshot[1] for snapshot in taken if snapshot] == [1, 8, 16]


def test_what_the_last_step_counted_leaves_while_the_worker_idles() -> None:
    bench = Bench()
    bench.step()
    bench.collect()
    bench.step()
    bench.step()
    assert bench.collect() is None  # not due yet
    bench.now += 1.5
    assert values(bench.collect()) == ([3, 3], 3)
    bench.now += 1.5
    assert bench.collect() is None


def test_while_paused_nothing_is_taken_and_nothing_is_lost() -> None:
    bench = Bench()
    bench.step()
    bench.taker.pause()
    bench.now += 5
    assert bench.collect() is None
    bench.taker.resume()
    assert values(bench.collect()) == ([1, 1], 1)


def test_flush_does_not_wait_for_the_interval() -> None:
    bench = Bench(interval=60)
    bench.step()
    bench.collect()
    bench.step()
    bench.taker.flush()
    assert values(bench.collect()) == ([2, 2], 2)


def test_a_change_of_weights_has_a_snapshot_of_its_own_though_nothing_was_counted() -> None:
    now = [Weights()]
    flat, source = torch.zeros(2, dtype=torch.int64), Source()
    taker = SnapshotTaker(flat, source, 60, lambda: 0.0, weights=lambda: now[0])
    assert taker.collect() is not None
    now[0] = Weights(1, "step-1")
    taker.mark()
    snapshot = taker.collect()
    assert snapshot is not None
    assert snapshot.weights == (1, "step-1")
    now[0] = Weights(2)
    taker.mark()
    taker.step_begins()
    taker.flush()
    taker.step_ends()  # a later snapshot, which doesn't stand in for it
    for version, steps in ((2, 0), (2, 1)):
        found = taker.collect()
        assert found is not None
        assert (found.weights.version, found.captured_at_ns > 0) == (version, True), steps
    assert taker.collect() is None
    for _ in range(NUM_TRANSFERS):
        taker.mark()  # nobody collects
    now[0] = Weights(3)
    taker.mark()
    assert taker.put_off == 1
    last = [found for _ in range(4) if (found := taker.collect()) is not None][-1]
    assert last.weights == (3, "")


def test_a_reader_that_does_not_come_puts_snapshots_off_and_loses_no_counts() -> None:
    bench = Bench(interval=0.1)
    for _ in range(NUM_TRANSFERS + 4):
        bench.now += 1
        bench.step()
    assert bench.taker.put_off == 4
    assert values(bench.collect()) == ([NUM_TRANSFERS] * 2, NUM_TRANSFERS)
    bench.now += 1
    assert values(bench.collect()) == ([NUM_TRANSFERS + 4] * 2, NUM_TRANSFERS + 4)


def test_a_snapshot_is_the_readers_own_copy() -> None:
    bench = Bench()
    first = bench.collect()
    for _ in range(5):
        bench.now += 2
        bench.step()
        bench.collect()
    assert values(first) == ([0, 0], 0)


def test_a_copy_that_a_step_overtakes_is_not_read() -> None:
    bench = Bench()
    bench.step()
    bench.collect()
    bench.step()
    bench.now += 2

    class StepBeginsMeanwhile(Source):
        @property
        def disabled_reason(self) -> str | None:  # type: ignore[override]
            bench.begin()
            bench.flat[0] += 100  # half of the step's counts
            return None

        @disabled_reason.setter
        def disabled_reason(self, value: str | None) -> None: ...

    bench.taker._source = StepBeginsMeanwhile(bench.source.totals)
    assert bench.collect() is None
    bench.taker._source = bench.source
    bench.flat[1] += 100
    bench.taker.step_ends()
    bench.now += 2
    assert values(bench.collect()) == ([102, 102], 2)


def test_a_step_that_takes_a_snapshot_while_the_reader_publishes_its_own_is_not_undone() -> None:
    # The reader's snapshot is the older one. Read after the step's, it would take totals and steps back.
    ring = LoadRing(np.zeros((1, 2), np.int32), 2, 0, torch.device("cpu"))
    history = StepHistory(version=0)
    bench = Bench(ring=ring, history=history)

    def step() -> None:
        bench.begin()
        ring.begin_step(bench.source.totals.forward_passes)
        bench.end()

    bench.collect()
    step()
    bench.now += 2
    looks = 0

    def clock() -> float:  # `collect` looks a second time when it publishes its snapshot
        nonlocal looks
        looks += 1
        if looks == 2:
            step()
        return bench.now

    bench.taker._clock = clock
    assert values(bench.collect()) == ([2, 2], 2)
    assert not bench.taker.is_behind
    loads = history.pack()
    steps, _ = unpack_step_loads(loads, 1, 2)
    assert (loads.first, loads.end, steps.tolist()) == (0, 2, [0, 1])


def test_under_a_racing_reader_every_snapshot_is_of_one_moment() -> None:
    source = Source()
    flat = torch.zeros(256, dtype=torch.int64)
    taker = SnapshotTaker(flat, source, interval=0.0)
    stop = threading.Event()
    seen: list[Snapshot] = []

    def read() -> None:
        while not stop.is_set():
            snapshot = taker.collect()
            if snapshot is not None:
                seen.append(snapshot)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(400):
        taker.step_begins()
        flat[:128] += 1
        flat[128:] += 1
        source.totals = source.totals.with_step(StepTokens(1, 0))
        taker.step_ends()
    stop.set()
    thread.join()
    taker.flush()
    for _ in range(2):
        final = taker.collect()
        if final is not None:
            seen.append(final)
    assert seen[-1].totals.tokens == 400
    assert all((snapshot.flat == snapshot.totals.tokens).all() for snapshot in seen)
    assert [s.totals.tokens for s in seen] == sorted(s.totals.tokens for s in seen)


def test_pausing_twice_does_not_hang_and_resuming_without_a_pause_does_nothing() -> None:
    # A warm-up that fails and is run again pauses twice.
    bench = Bench()
    bench.taker.resume()
    bench.taker.pause()
    bench.taker.pause()
    assert bench.collect() is None
    bench.taker.resume()
    assert values(bench.collect()) == ([0, 0], 0)


def test_that_capture_has_ended_leaves_though_no_step_follows() -> None:
    bench = Bench()
    bench.step()
    bench.collect()
    bench.source.disabled_reason = "a fault"
    bench.now += 1.5
    last = bench.collect()
    assert last is not None
    assert last.disabled_reason == "a fault"
    bench.now += 1.5
    assert bench.collect() is None


def test_it_is_behind_until_all_that_was_counted_is_collected() -> None:
    bench = Bench(interval=0.1)
    for _ in range(NUM_TRANSFERS + 4):
        bench.now += 1
        bench.step()
    bench.taker.flush()
    assert bench.taker.is_behind
    assert values(bench.collect()) == ([NUM_TRANSFERS] * 2, NUM_TRANSFERS)
    assert bench.taker.is_behind  # no transfer was free for the newest steps
    assert values(bench.collect()) == ([NUM_TRANSFERS + 4] * 2, NUM_TRANSFERS + 4)
    assert not bench.taker.is_behind


def test_the_steps_stream_is_made_an_object_only_where_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step asks for the handle alone; snapshots between steps go to the stream of the last step."""
    bench, handles = Bench(), iter([7, 7, 8, 8, 7])
    made: list[object] = []

    def current_stream(_: torch.device) -> object:
        made.append(object())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    taker: Any = bench.taker
    taker._side = object()  # as on a GPU; a transfer without an event needs none
    taker._stream_of = lambda _: next(handles)
    streams = []
    for _ in range(5):
        bench.step()
        streams.append(taker._stream)
    first, second, third = made
    assert streams == [first, first, second, second, third]
