"""Loads of single steps go from the ring through snapshots into frames: each step once, losses counted."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moescope.capture.counting import load_ring
from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.load_ring import LoadRing, ring_for
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.frames import step_history
from moescope.capture.frames.builder import FrameBuilder
from moescope.capture.frames.step_history import StepHistory
from moescope.capture.frames.taker import SnapshotTaker
from moescope.capture.seam.rows import Ranks, StepRows
from moescope.capture.wire import (
    Frame,
    MoeLayer,
    Placement,
    PlacementTable,
    Producer,
    decode_frame,
    encode_frame,
    pack_ids,
    unpack_counts,
    unpack_step_loads,
)

CPU = torch.device("cpu")
LAYERS = [MoeLayer(2, 6, 2), MoeLayer(5, 4, 3)]
EP_SIZE = 3
ROUND_ROBIN = PlacementTable(pack_ids([0, 3, 1, 4, 2, 5]), pack_ids([0, 0, 1, 1, 2, 2]))
UNEVEN = PlacementTable(pack_ids([0, 1, 2, 3]), pack_ids([2, 2, 0, 1]))
PLACEMENT = Placement(version=4, tables=[ROUND_ROBIN, UNEVEN], table_of_layer=[0, 1])
EP_RANKS = [[0, 1, 2, 0, 1, 2], [2, 2, 0, 1]]


def make_ring(places: int, monkeypatch: pytest.MonkeyPatch) -> LoadRing:
    monkeypatch.setattr(load_ring, "MIN_PLACES", 3)
    monkeypatch.setattr(load_ring, "RING_BYTES", places * len(LAYERS) * EP_SIZE * 4)
    ring = ring_for(LAYERS, PLACEMENT, EP_SIZE, CPU)
    assert ring is not None
    assert len(ring.numbers) == places
    return ring


class Worker:
    """A capturer on the CPU with its ring, its snapshots and its frames; routes at random."""

    def __init__(self, ring: LoadRing, seed: int = 0) -> None:
        buffers = CountBuffers(LAYERS, CPU, max_tokens=32, ring=ring)
        self.capturer = RoutingCapturer(buffers, Ranks(), lambda: StepRows(None, None))
        self.now = 0.0
        history = StepHistory(ring.version)
        self.taker = SnapshotTaker(buffers.flat, self.capturer, 1.0, lambda: self.now, ring, history)
        producer = Producer(server="s", model="m", dp_rank=0, dp_size=1, ep_rank=0, ep_size=EP_SIZE)
        self.builder = FrameBuilder(producer, 1, LAYERS, [], PLACEMENT, history=history)
        self.truth: dict[int, list[list[int]]] = {}
        self._rng = random.Random(seed)

    def step(self, layers: tuple[int, ...] = (0, 1)) -> None:
        number, tokens = self.capturer.totals.forward_passes, self._rng.randint(1, 8)
        self.taker.step_begins()
        self.capturer.begin_step(tokens, self._rng.randint(0, tokens))
        if self.capturer.awaits_phases:
            step = self.capturer._step
            assert step is not None
            phases = [1] * step.decode + [0] * (tokens - step.decode)
            self._rng.shuffle(phases)
            self.capturer.set_phases(np.array(phases, np.uint8))
        loads = [[0] * EP_SIZE for _ in LAYERS]
        for ordinal in layers:
            layer = LAYERS[ordinal]
            ids = [[self._rng.randrange(-1, layer.num_experts) for _ in range(layer.top_k)] for _ in range(9)]
            self.capturer.record(ordinal, torch.tensor(ids))
            for expert in (expert for row in ids[:tokens] for expert in row if expert >= 0):
                loads[ordinal][EP_RANKS[ordinal][expert]] += 1
        self.truth[number] = loads
        self.capturer.end_step()
        self.taker.step_ends()

    def idle(self) -> None:
        self.taker.step_begins()
        self.capturer.idle_step()
        self.taker.step_ends()

    def frame(self) -> Frame:
        """The frame of a new snapshot, as it arrives."""
        self.now += 2
        snapshot = self.taker.collect()
        assert snapshot is not None
        return decode_frame(encode_frame(self.builder.build(snapshot, {})))


def loads_of(frame: Frame) -> dict[int, list[list[int]]]:
    assert frame.step_loads is not None
    steps, loads = unpack_step_loads(frame.step_loads, len(LAYERS), EP_SIZE)
    return dict(zip(steps.tolist(), loads.tolist(), strict=True))


def test_each_step_leaves_once_with_its_number_dummy_steps_between(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(make_ring(64, monkeypatch))
    seen: dict[int, list[list[int]]] = {}
    end = 0
    for _ in range(5):
        for _ in range(7):
            worker.step()
            worker.idle()
            worker.step()
        frame = worker.frame()
        worker.builder.delivered()
        assert frame.step_loads is not None
        assert (frame.step_loads.first, frame.step_loads.placement_version) == (end, 4)
        assert not set(seen) & set(loads_of(frame))
        seen |= loads_of(frame)
        end = frame.step_loads.end
    assert end == 105
    assert seen == worker.truth
    assert frame.drops["steps_lost"] == 0
    total = np.sum(list(seen.values()), axis=0)
    assert total.sum() == unpack_counts(frame.counts).sum()  # masked slots are neither counted nor load
    counts = np.split(unpack_counts(frame.counts), [6])
    placed = [np.bincount(ranks, by, EP_SIZE) for ranks, by in zip(EP_RANKS, counts, strict=True)]
    assert total.tolist() == np.array(placed).tolist()


def test_what_did_not_arrive_is_in_the_next_frame_again(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(make_ring(64, monkeypatch))
    worker.step()
    worker.frame()  # lost
    worker.step()
    assert sorted(loads_of(worker.frame())) == [0, 1]
    worker.builder.delivered()
    worker.step()
    again = worker.frame()
    assert sorted(loads_of(again)) == [2]
    assert again.step_loads is not None
    assert again.step_loads.first == 2


def test_a_repeated_frame_has_no_steps_again(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(make_ring(8, monkeypatch))
    worker.step()
    worker.now += 2
    snapshot = worker.taker.collect()
    assert snapshot is not None
    worker.builder.build(snapshot, {})
    worker.builder.delivered()
    heartbeat = worker.builder.build(snapshot, {}).step_loads
    assert heartbeat is not None
    assert (heartbeat.first, heartbeat.end, heartbeat.steps) == (1, 1, b"")


def test_steps_that_the_ring_has_overwritten_are_counted_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(make_ring(6, monkeypatch))
    worker.step()
    worker.frame()
    worker.builder.delivered()
    worker.idle()
    for _ in range(9):
        worker.step()
    frame = worker.frame()
    kept = {number: worker.truth[number] for number in range(6, 11)}  # five of the nine
    assert loads_of(frame) == kept
    assert frame.step_loads is not None
    assert (frame.step_loads.first, frame.step_loads.end) == (6, 11)
    assert frame.drops["steps_lost"] == 4


def test_a_layer_that_does_not_run_leaves_nothing_of_earlier_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(make_ring(4, monkeypatch))
    for number in range(15):
        worker.step((0, 1) if number % 3 else (0,))
        assert loads_of(worker.frame()) == {number: worker.truth[number]}
        worker.builder.delivered()


def test_all_snapshots_under_way_give_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(make_ring(4, monkeypatch))
    for _ in range(3):
        worker.now += 2
        worker.step()  # takes a snapshot each time, which nobody reads
    worker.step()
    frame = worker.frame()
    assert sorted(loads_of(frame)) == [0, 1, 2]
    worker.builder.delivered()
    assert sorted(loads_of(worker.frame())) == [3]


def test_an_unreachable_service_costs_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_history, "MAX_VALUES", 20 * len(LAYERS) * EP_SIZE)
    worker = Worker(make_ring(16, monkeypatch))
    for _ in range(10):
        for _ in range(5):
            worker.step()
        frame = worker.frame()
    assert loads_of(frame) == {number: worker.truth[number] for number in range(30, 50)}
    assert frame.step_loads is not None
    assert frame.step_loads.first == 30
    assert frame.drops["steps_lost"] == 30


@settings(max_examples=60, deadline=None)
@given(
    plan=st.lists(st.sampled_from(["step", "idle", "frame", "arrives", "snapshot"]), max_size=60),
    places=st.integers(3, 9),
)
@example(plan=["step", "snapshot", "step", "snapshot", "step", "step"], places=3)  # all are under way
def test_every_step_is_delivered_once_or_counted_as_lost_or_waits(plan: list[str], places: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        worker = Worker(make_ring(places, patch))
    delivered: dict[int, list[list[int]]] = {}
    built: Frame | None = None
    end = 0
    for what in plan:
        if what == "step":
            worker.step()
        elif what == "idle":
            worker.idle()
        elif what == "snapshot":
            worker.now += 2
        else:
            worker.now += 2
            snapshot = worker.taker.collect()
            if snapshot is None:
                continue
            built = decode_frame(encode_frame(worker.builder.build(snapshot, {})))
            if what == "arrives":
                assert built.step_loads is not None
                assert built.step_loads.first >= end
                end = built.step_loads.end
                assert not set(delivered) & set(loads_of(built))
                delivered |= loads_of(built)
                worker.builder.delivered()
    worker.taker.flush()
    while worker.taker.is_behind:
        worker.taker.collect()  # with all transfers under way the newest steps wait for the next
    history = worker.builder._history
    assert history is not None
    waiting = len(history.pack().steps) // 4
    assert len(delivered) + history.lost + waiting == len(worker.truth)
    assert delivered.items() <= worker.truth.items()


def test_there_is_no_ring_where_loads_by_ep_rank_mean_nothing() -> None:
    replicated = PlacementTable(pack_ids([0, 1, 2, 3, 0]), pack_ids([2, 2, 0, 1, 1]))
    twice = Placement(version=0, tables=[ROUND_ROBIN, replicated], table_of_layer=[0, 1])
    assert ring_for(LAYERS, None, 3, CPU) is None
    assert ring_for(LAYERS, PLACEMENT, 1, CPU) is None
    assert ring_for([], Placement(version=0, tables=[], table_of_layer=[]), 3, CPU) is None
    assert ring_for(LAYERS, twice, 3, CPU) is None


@pytest.mark.parametrize(
    ("parts", "layers", "ep_size"),
    [(1, 48, 8), (1, 61, 256), (4, 61, 256), (2, 61, 512), (8, 61, 128), (8, 4, 2)],
)
def test_the_ring_is_small_and_has_room_for_steps(parts: int, layers: int, ep_size: int) -> None:
    none = np.zeros((layers, 1), np.int32)
    ring = LoadRing(none, ep_size, 0, torch.device("meta"), microbatches=parts)
    assert ring.loads.numel() * 4 <= 4 << 20
    assert 15 <= ring.capacity <= 4096


@pytest.mark.parametrize(("parts", "layers", "ep_size"), [(8, 61, 256), (256, 61, 256), (1, 1000, 4096)])
def test_there_is_no_ring_of_too_few_steps(parts: int, layers: int, ep_size: int) -> None:
    none, meta = np.zeros((layers, 1), np.int32), torch.device("meta")
    size = 4 * parts * layers * ep_size
    with pytest.raises(LookupError, match=f"take {size} bytes a step, and 16 steps must fit 4194304"):
        LoadRing(none, ep_size, 0, meta, microbatches=parts)
    if size > 4 << 20:
        with pytest.raises(LookupError, match="and 1 steps must fit"):
            LoadRing(none, ep_size, 0, meta, microbatches=parts, sums_only=True)
    else:
        ring = LoadRing(none, ep_size, 0, meta, microbatches=parts, sums_only=True)
        assert (ring.capacity, ring.loads.numel() * 4) == (0, size)
