"""Real capturers of all workers, whose frames a real live state takes: a break shows within two intervals.

Each mutation takes away a part of what capture does, in mid-traffic, in one layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import pytest
import torch

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.frames.builder import FrameBuilder
from moescope.capture.frames.taker import SnapshotTaker
from moescope.capture.seam.rows import Layout, Ranks, RowSpan, StepRows
from moescope.capture.wire import MoeLayer, Producer, decode_frame, encode_frame
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.health import Mismatch, StageHealth, stages

INTERVAL: Final = 1.0
STEP: Final = 0.011
EXPERTS: Final = 8
START: Final = 1_700_000_000.0
OTHER_RANK: Final = 1000
"""Tokens of the other DP rank: far from the numbers of this one, so that no layouts are alike."""


@dataclass
class Clock:
    """Seconds of Unix time, moved by the test."""

    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass
class Worker:
    """The capture of one TP worker of one pipeline stage, with a sender that looks at its own moments."""

    tp_rank: int
    pp_rank: int
    layers: list[MoeLayer]
    clock: Clock
    dropped: frozenset[int] = frozenset()
    """Layers whose routing calls capture does not hear of."""
    bypassed: frozenset[int] = frozenset()
    """Layers of which it does not hear in steps of decode only."""
    sizes: StepRows = field(default_factory=lambda: StepRows(None, None))

    def __post_init__(self) -> None:
        ranks = Ranks(dp_rank=0, dp_size=2, tp_rank=self.tp_rank, tp_size=2)
        buffers = CountBuffers(self.layers, torch.device("cpu"), max_tokens=256)
        self.capturer = RoutingCapturer(buffers, ranks, lambda: self.sizes)
        self.taker = SnapshotTaker(buffers.flat, self.capturer, INTERVAL, self.clock)
        who = Producer(
            server="s",
            model="m",
            dp_rank=0,
            dp_size=2,
            tp_rank=self.tp_rank,
            tp_size=2,
            pp_rank=self.pp_rank,
            pp_size=2,
        )
        epoch = int((START + 0.1 * self.tp_rank) * 1e9)
        self.builder = FrameBuilder(who, epoch, self.layers, [], None)

    def step(self, tokens: int, decode: int) -> None:
        """A forward pass over this worker's shard of the tokens."""
        self.sizes = StepRows([tokens, OTHER_RANK], None)
        self.taker.step_begins()
        self.capturer.begin_step(tokens, decode)
        shard = -(-tokens // 2)
        for ordinal, layer in enumerate(self.layers):
            lost = self.dropped | (self.bypassed if decode == tokens else frozenset())
            if layer.layer not in lost:
                ids = torch.randint(EXPERTS, (shard, layer.top_k), dtype=torch.int32)
                self.capturer.record(ordinal, ids)
        self.capturer.end_step()
        self.taker.step_ends()

    def idle(self) -> None:
        """A dummy step."""
        self.taker.step_begins()
        self.capturer.idle_step()
        self.taker.step_ends()


class Rank:
    """DP rank 0 of TP=2 and PP=2 under steady traffic, and the service that its workers report to."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.state = LiveState(Settings(), self.clock)
        self.workers = [
            Worker(tp, pp, [MoeLayer(layer, EXPERTS, 2) for layer in layers], self.clock)
            for pp, layers in enumerate(([1, 2], [3, 4]))
            for tp in range(2)
        ]
        self._steps = 0
        for worker in self.workers:  # each announces itself, and its intervals begin then
            self.clock.now += 0.23 * INTERVAL
            self._deliver(worker)

    def run(self, seconds: float) -> None:
        """Steps without a pause: mostly of decode; now and then with a prompt; sometimes a dummy step."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self._steps += 1
            self.clock.now += STEP
            # Each worker's thread looks four times in an interval, each at moments of its own.
            for number, worker in enumerate(self.workers):
                if self._steps % 13 == 0:
                    worker.idle()
                elif self._steps % 7 == 0:
                    worker.step(40, 0)
                else:
                    worker.step(5 + self._steps % 3, 5 + self._steps % 3)
                if (self._steps + 5 * number) % 23 == 0:
                    self._deliver(worker)

    def _deliver(self, worker: Worker) -> None:
        snapshot = worker.taker.collect()
        if snapshot is not None:
            self.state.ingest(decode_frame(encode_frame(worker.builder.build(snapshot, {}))))

    def law(self) -> list[StageHealth]:
        """The stages."""
        return stages(self.state.producers())

    def broken(self) -> set[tuple[int, str]]:
        """Layers and laws that are broken."""
        return {(found.layer, found.law) for stage in self.law() for found in stage.broken}

    def of(self, tp_rank: int | None, pp_rank: int | None) -> list[Worker]:
        """Workers with these ranks; None: any."""
        return [
            worker
            for worker in self.workers
            if tp_rank in (None, worker.tp_rank) and pp_rank in (None, worker.pp_rank)
        ]


@pytest.fixture
def rank() -> Rank:
    result = Rank()
    result.run(5.3)
    assert [(stage.state, stage.reason) for stage in result.law()] == [("holds", None)] * 2
    return result


def test_it_holds_and_is_compared_in_each_interval_under_steady_traffic(rank: Rank) -> None:
    for _ in range(20):
        rank.run(0.5)
        for stage in rank.law():
            assert stage.state == "holds"
            assert stage.compared_age is not None
            assert stage.compared_age <= 1.5 * INTERVAL


def test_one_tp_worker_that_drops_a_layer(rank: Rank) -> None:
    for worker in rank.of(tp_rank=1, pp_rank=0):
        worker.dropped = frozenset({2})
    rank.run(2 * INTERVAL)
    assert rank.broken() == {(2, "rows"), (2, "prefill_rows"), (2, "decode_rows")}


def test_one_or_two_steps_that_one_tp_worker_loses(rank: Rank) -> None:
    for worker in rank.of(tp_rank=1, pp_rank=0):
        worker.dropped = frozenset({2})
    rank.run(1.5 * STEP)  # one of two steps may be a dummy
    for worker in rank.workers:
        worker.dropped = frozenset()
    rank.run(2 * INTERVAL)
    [lost] = [found for stage in rank.law() for found in stage.broken if found.law == "rows"]
    assert lost.layer == 2
    assert 0 < lost.expected - lost.got < 25


def test_decode_that_bypasses_the_callback(rank: Rank) -> None:
    for worker in rank.of(tp_rank=None, pp_rank=1):
        worker.bypassed = frozenset({3})
    rank.run(2 * INTERVAL)
    assert rank.broken() == {(3, "rows"), (3, "decode_rows")}


def test_the_layer_of_a_pipeline_stage_that_stops(rank: Rank) -> None:
    for worker in rank.of(tp_rank=None, pp_rank=1):
        worker.dropped = frozenset({4})
    rank.run(2 * INTERVAL)
    assert {layer for layer, _ in rank.broken()} == {4}
    assert [stage.state for stage in rank.law()] == ["holds", "broken"]


def test_a_layout_rule_that_takes_shards_for_replicated_rows() -> None:
    # TP rank 0 then counts its shard as if it were all rows, and the others count nothing: half of the rows.
    rank = Rank()
    for worker in rank.workers:
        first = worker.tp_rank == 0
        worker.capturer._locate = lambda ids, first=first: RowSpan(  # type: ignore[method-assign]
            Layout.SINGLE_DP, 0, len(ids) if first else 0, 0
        )
    rank.run(2 * INTERVAL)
    assert {layer for layer, law in rank.broken() if law == "rows"} == {1, 2, 3, 4}
    [found] = [item for item in rank.law()[0].broken if item == _of(item, 1, "rows")]
    assert found.got == pytest.approx(found.expected / 2, rel=0.1)


def _of(item: Mismatch, layer: int, law: str) -> Mismatch | None:
    return item if (item.layer, item.law) == (layer, law) else None
