"""A snapshot taker over counters that the test raises, with a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from moescope.capture.counting.load_ring import LoadRing
from moescope.capture.frames.snapshot import Snapshot
from moescope.capture.frames.step_history import StepHistory
from moescope.capture.frames.taker import SnapshotTaker
from moescope.capture.step.totals import StepTokens, Totals


@dataclass
class Source:
    """What a taker asks for besides the counts."""

    totals: Totals = field(default_factory=Totals)
    disabled_reason: str | None = None


class Bench:
    """A taker over two counters that every step raises together, with a clock that the test moves."""

    def __init__(
        self, interval: float = 1.0, ring: LoadRing | None = None, history: StepHistory | None = None
    ) -> None:
        self.now = 100.0
        self.source = Source()
        self.flat = torch.zeros(2, dtype=torch.int64)
        self.taker = SnapshotTaker(self.flat, self.source, interval, lambda: self.now, ring, history)

    def begin(self) -> None:
        self.taker.step_begins()

    def end(self) -> None:
        self.flat.add_(1)
        self.source.totals = self.source.totals.with_step(StepTokens(1, 0))
        self.taker.step_ends()

    def step(self) -> None:
        self.begin()
        self.end()

    def collect(self) -> Snapshot | None:
        return self.taker.collect()
