"""Simulated vLLM workers: real wire frames of a fleet whose tokens are routed by a model of routing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from moescope.capture import wire
from moescope.service.simulate_routing import FloatArray, Habits, Int64Array, RoutingModel, Shape


@dataclass(frozen=True, slots=True)
class Outage:
    """A rank that falls silent ``start`` seconds into the simulation; ``end`` is when it starts again."""

    rank: int
    start: float
    end: float | None = None

    def covers(self, elapsed: float) -> bool:
        """Whether the rank is silent at this moment."""
        return self.start <= elapsed and (self.end is None or elapsed < self.end)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate.

    Attributes:
        ranks: R workers, each one DP rank and one EP rank; experts are placed linearly.
        tokens_per_s: of one rank, on average over the ranks.
        steps_per_s: of each rank.
        rank_imbalance: max / mean of tokens over DP ranks, from 1 to R: rank 0 gets that many times its
            fair share, the others share the rest.
        outages: ranks that fail.
        rearrange_s: seconds between rearrangements of experts, by load, as EPLB would; None: never.
        uncovered: decoder layers that are reported as not seen.
    """

    server: str = "simulated"
    model: str = "simulated/moe"
    ranks: int = 32
    shape: Shape = field(default_factory=Shape)
    habits: Habits = field(default_factory=Habits)
    tokens_per_s: float = 2000.0
    steps_per_s: float = 25.0
    rank_imbalance: float = 1.0
    outages: tuple[Outage, ...] = ()
    rearrange_s: float | None = None
    uncovered: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rank_imbalance <= self.ranks:
            raise ValueError(f"rank imbalance {self.rank_imbalance:g} is not in 1..{self.ranks} (max / mean)")
        for outage in self.outages:
            if not 0 <= outage.rank < self.ranks:
                raise ValueError(f"rank {outage.rank} can't fail: ranks are 0..{self.ranks - 1}")


@dataclass(slots=True)
class _Worker:
    counts: Int64Array
    rows: Int64Array
    epoch: int
    seq: int = 0
    tokens: int = 0
    steps: int = 0
    idle_steps: int = 0
    silent: bool = field(default=False)


class Fleet:
    """All workers of a plan. ``started_ns`` is when they start, nanoseconds of Unix time."""

    def __init__(self, plan: Plan, started_ns: int) -> None:
        self.plan = plan
        self._model = RoutingModel(plan.shape, plan.habits, plan.seed)
        self._rng = np.random.default_rng(plan.seed + 1)
        self._started_ns = started_ns
        self._elapsed = 0.0
        self._placement = _linear(plan)
        self._layers = [
            wire.MoeLayer(layer, plan.shape.experts, plan.shape.top_k) for layer in _covered_layers(plan)
        ]
        self._rows = np.array([layer.layer - plan.shape.first_layer for layer in self._layers])
        self._workers = [self._start(started_ns) for _ in range(plan.ranks)]

    def advance(self, seconds: float) -> Iterator[wire.Frame]:
        """Let time pass; a frame of each rank that is not silent."""
        before = self._elapsed
        self._elapsed += seconds
        self._model.advance(seconds)
        inclusion = self._model.inclusion()[self._rows]
        period = self.plan.rearrange_s
        if period is not None and int(self._elapsed // period) > int(before // period):
            self._placement = _by_load(self.plan, inclusion, self._placement.version + 1)
        for rank in range(self.plan.ranks):
            if self._is_silent(rank):
                continue
            self._work(rank, seconds, inclusion)
            yield self._frame(rank)

    def _is_silent(self, rank: int) -> bool:
        worker = self._workers[rank]
        silent = any(item.rank == rank and item.covers(self._elapsed) for item in self.plan.outages)
        if worker.silent and not silent:
            self._workers[rank] = self._start(self._now_ns())
        worker.silent = silent
        return silent

    def _work(self, rank: int, seconds: float, inclusion: FloatArray) -> None:
        plan, worker = self.plan, self._workers[rank]
        fair = plan.tokens_per_s * seconds
        others = (plan.ranks - plan.rank_imbalance) / max(plan.ranks - 1, 1)
        tokens = int(self._rng.poisson(fair * (plan.rank_imbalance if rank == 0 else others)))
        steps = max(1, round(plan.steps_per_s * seconds))
        worker.counts += self._model.draw(tokens, inclusion)
        worker.rows += tokens
        worker.tokens += tokens
        worker.steps += min(steps, tokens)
        worker.idle_steps += steps - min(steps, tokens)

    def _frame(self, rank: int) -> wire.Frame:
        plan, worker = self.plan, self._workers[rank]
        worker.seq += 1
        size = plan.ranks
        return wire.Frame(
            wire=(wire.WIRE_MAJOR, wire.WIRE_MINOR),
            producer=wire.Producer(
                server=plan.server,
                model=plan.model,
                dp_rank=rank,
                dp_size=size,
                ep_rank=rank,
                ep_size=size,
                host=f"simulated-{rank // 8}",
                vllm_version="simulated",
            ),
            epoch=worker.epoch,
            seq=worker.seq,
            captured_at_ns=self._now_ns(),
            layers=self._layers,
            uncovered=[wire.UncoveredLayer(layer, "simulated") for layer in plan.uncovered],
            counts=wire.pack_counts(worker.counts),
            rows=wire.pack_counts(worker.rows),
            tokens=worker.tokens,
            steps=worker.steps,
            idle_steps=worker.idle_steps,
            placement=self._placement,
            strategy="simulated",
            drops={"sends_failed": 0, "snapshots_put_off": 0, "snapshots_superseded": 0},
        )

    def _start(self, epoch: int) -> _Worker:
        layers = len(self._layers)
        counts = np.zeros((layers, self.plan.shape.experts), dtype=np.int64)
        return _Worker(counts, np.zeros(layers, dtype=np.int64), epoch)

    def _now_ns(self) -> int:
        return self._started_ns + int(self._elapsed * 1e9)


def _covered_layers(plan: Plan) -> list[int]:
    first = plan.shape.first_layer
    return [layer for layer in range(first, first + plan.shape.layers) if layer not in plan.uncovered]


def _linear(plan: Plan) -> wire.Placement:
    """Experts in contiguous spans, alike in all layers."""
    experts = np.arange(plan.shape.experts)
    table = wire.PlacementTable(
        wire.pack_ids(experts), wire.pack_ids(experts * plan.ranks // plan.shape.experts)
    )
    return wire.Placement(version=1, tables=[table], table_of_layer=[0] * len(_covered_layers(plan)))


def _by_load(plan: Plan, inclusion: FloatArray, version: int) -> wire.Placement:
    """Each layer's experts dealt to the ranks from the most popular on, to and fro."""
    turn = np.arange(plan.shape.experts)
    there, lap = turn % plan.ranks, turn // plan.ranks
    ranks = np.where(lap % 2 == 0, there, plan.ranks - 1 - there)
    tables = [
        wire.PlacementTable(wire.pack_ids(np.argsort(-chances)), wire.pack_ids(ranks))
        for chances in inclusion
    ]
    return wire.Placement(version=version, tables=tables, table_of_layer=list(range(len(tables))))
