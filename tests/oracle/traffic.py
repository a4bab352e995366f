"""What the workers of a fleet count while it runs, and the snapshots that they take of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from tests.oracle.layout import Copies, Fleet, Layer, Worker

BEGIN_S: Final = 1_700_000_000
"""Unix time at which all fleets start."""
TICK_NS: Final = 10**9 // 64
"""All instants are whole multiples of it, so that floats hold them exactly."""


@dataclass
class Totals:
    """What a worker counted since the start of its epoch; of each the part of decode by itself."""

    slots: dict[int, list[int]]
    decode_slots: dict[int, list[int]]
    rows: dict[int, int]
    decode_rows: dict[int, int]
    tokens: int = 0
    decode_tokens: int = 0
    steps: int = 0
    decode_steps: int = 0
    mixed_steps: int = 0
    idle_steps: int = 0

    def copy(self) -> Totals:
        slots = {index: list(values) for index, values in self.slots.items()}
        decode = {index: list(values) for index, values in self.decode_slots.items()}
        figures = (
            self.tokens,
            self.decode_tokens,
            self.steps,
            self.decode_steps,
            self.mixed_steps,
            self.idle_steps,
        )
        return Totals(slots, decode, dict(self.rows), dict(self.decode_rows), *figures)


@dataclass(frozen=True)
class Loads:
    """Slots by EP rank of the steps in [first, end) that had tokens: of each microbatch, by layer index."""

    first: int
    end: int
    steps: dict[int, list[dict[int, list[int]]]]


@dataclass(frozen=True)
class Snapshot:
    """One frame, in plain numbers; times are nanoseconds of Unix time."""

    worker: Worker
    epoch: int
    seq: int
    captured: int
    layers: list[Layer]
    totals: Totals
    phased: bool
    version: int
    placement: dict[int, Copies] | None
    loads: Loads | None


@dataclass
class Running:
    """A worker that runs."""

    worker: Worker
    epoch: int
    totals: Totals
    every: int
    seq: int = 0
    step: int = 0
    told: int = 0
    loads: dict[int, list[dict[int, list[int]]]] = field(default_factory=dict)


class Traffic:
    """Runs a fleet from its start; ``snapshots`` has what its workers would send, by time."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._rng = random.Random(f"traffic {fleet.seed}")
        big = not fleet.steps_told and self._rng.random() < 0.3
        self._most = self._rng.choice([1 << 36, 1 << 38]) if big else self._rng.choice([4, 40, 400])
        self._idle = self._rng.choice([0.0, 0.1, 0.5])
        self._skew = {
            layer.index: self._rng.sample(range(layer.experts), layer.experts) for layer in fleet.layers
        }
        self._cuts = random.Random(f"microbatches {fleet.seed}")
        self._most_parts = self._cuts.choice([1, 1, 2, 3])
        self._parts = 1
        self._version = 0
        self._running = {worker: self._start(worker, 0) for worker in fleet.workers()}
        self.length = self._rng.randint(60, 240) * 64  # ticks
        self.snapshots: list[Snapshot] = []
        self.lone_restart = False

    def run(self) -> None:
        """Run the fleet to its end."""
        events = [(self._instant(), 1, None) for _ in range(self._rng.randint(8, 40))]  # steps
        for running in self._running.values():
            at = self._rng.randrange(running.every)
            while at < self.length:
                events.append((at, 3, running.worker))
                at += running.every + self._rng.randint(-16, 16)
        events += [(self._instant(), 2, None) for _ in self._fleet.placements[1:]]
        if self._rng.random() < 0.3:
            events += [(self._instant(), 0, None) for _ in range(self._rng.randint(1, 2))]
        if self._rng.random() < 0.08:
            self.lone_restart = True
            events.append((self._instant(), 0, self._rng.choice(list(self._running))))
        for at, kind, worker in sorted(events, key=lambda event: (event[0], event[1], event[2] or ())):
            self._happen(at, kind, worker)

    def _instant(self) -> int:
        return self._rng.randrange(1, self.length)

    def _happen(self, at: int, kind: int, worker: Worker | None) -> None:
        if kind == 0:
            for name in self._running if worker is None else [worker]:
                self._running[name] = self._start(name, at)
        elif kind == 1:
            self._step()
        elif kind == 2:
            self._version += 1
        elif worker is not None:
            self._snapshot(self._running[worker], at)

    def _start(self, worker: Worker, at: int) -> Running:
        layers = self._fleet.covered(worker)
        zeros = {layer.index: [0] * layer.experts for layer in layers}
        more = {layer.index: [0] * layer.experts for layer in layers}
        none = dict.fromkeys(zeros, 0)
        epoch = BEGIN_S * 10**9 + (at - self._rng.randint(0, 16)) * TICK_NS
        every = self._rng.choice([5, 8, 12]) * 64
        return Running(worker, epoch, Totals(zeros, more, none, dict(none)), every)

    def _step(self) -> None:
        tokens = [self._tokens() for _ in range(self._fleet.dp)]
        busy = any(sum(pair) for pair in tokens)
        self._parts = self._cuts.choice([1, self._most_parts])
        for dp, (prefill, decode) in enumerate(tokens):
            mine = [w for w in self._running if w.dp == dp]
            for worker in mine:
                self._account(self._running[worker], prefill, decode, busy)
            for layer in self._fleet.layers:
                if (dp, layer.index) not in self._fleet.blind | self._fleet.uncovered:
                    self._route([w for w in mine if w.pp == layer.stage], layer, prefill, decode)
        for running in self._running.values():
            running.step += 1

    def _tokens(self) -> tuple[int, int]:
        """Prefill and decode tokens of a DP rank in a step."""
        if self._rng.random() < self._idle:
            return 0, 0
        kind = self._rng.choice(["prefill", "decode", "mixed"])
        prefill, decode = self._rng.randint(1, self._most), self._rng.randint(1, self._most)
        return (0 if kind == "decode" else prefill), (0 if kind == "prefill" else decode)

    def _account(self, running: Running, prefill: int, decode: int, busy: bool) -> None:
        totals = running.totals
        totals.tokens += prefill + decode
        totals.decode_tokens += decode
        totals.steps += prefill + decode > 0
        totals.idle_steps += busy and prefill + decode == 0
        totals.decode_steps += decode > 0 and not prefill
        totals.mixed_steps += decode > 0 and prefill > 0
        if prefill + decode:
            running.loads[running.step] = [
                {layer.index: [0] * self._fleet.ep for layer in self._fleet.covered(running.worker)}
                for _ in range(self._parts)
            ]

    def _route(self, stage: list[Worker], layer: Layer, prefill: int, decode: int) -> None:
        """The TP workers of a stage count a layer's rows of one step."""
        for rows, is_decode in ((prefill, False), (decode, True)):
            for tp, part in enumerate(self._shards(rows)):
                self._count(self._running[stage[tp]], layer, part, is_decode)

    def _shards(self, rows: int) -> list[int]:
        """How many rows each TP worker counts."""
        if not self._fleet.sharded:
            return [rows] + [0] * (self._fleet.tp - 1)
        each = -(-rows // self._fleet.tp)
        return [min(each, max(0, rows - tp * each)) for tp in range(self._fleet.tp)]

    def _count(self, running: Running, layer: Layer, rows: int, is_decode: bool) -> None:
        chosen = self._spread(layer, rows)
        totals = running.totals
        totals.rows[layer.index] += rows
        totals.decode_rows[layer.index] += rows if is_decode else 0
        for expert, slots in enumerate(chosen):
            totals.slots[layer.index][expert] += slots
            totals.decode_slots[layer.index][expert] += slots if is_decode else 0
            if self._fleet.steps_told and slots:
                rank = dict(self._fleet.placements[0][layer.index])[expert]
                for part in running.loads[running.step][:-1]:
                    some = self._cuts.randint(0, slots)
                    part[layer.index][rank] += some
                    slots -= some
                running.loads[running.step][-1][layer.index][rank] += slots

    def _spread(self, layer: Layer, rows: int) -> list[int]:
        """Slots by expert: rows x top-k in all, and for none more than rows."""
        left, chosen = rows * layer.top_k, [0] * layer.experts
        if layer.index in self._fleet.masking and left:
            left -= self._rng.randint(1, left)
        for done, expert in enumerate(self._skew[layer.index], start=1):
            least = max(0, left - rows * (layer.experts - done))
            most = min(rows, left)
            high = most if self._rng.random() < 0.3 else min(most, max(least, 3 * left // layer.experts))
            chosen[expert] = self._rng.randint(least, high)
            left -= chosen[expert]
        return chosen

    def _snapshot(self, running: Running, at: int) -> None:
        running.seq += 1
        loads = None
        if self._fleet.steps_told:
            loads = Loads(running.told, running.step, running.loads)
            running.loads, running.told = {}, running.step
        fleet, worker = self._fleet, running.worker
        self.snapshots.append(
            Snapshot(
                worker=worker,
                epoch=running.epoch,
                seq=running.seq,
                captured=BEGIN_S * 10**9 + at * TICK_NS,
                layers=fleet.covered(worker),
                totals=running.totals.copy(),
                phased=worker.dp in fleet.phased and at < fleet.phases_end.get(worker.dp, at + 1),
                version=self._version,
                placement=fleet.placements[self._version] if fleet.placements else None,
                loads=loads,
            )
        )
