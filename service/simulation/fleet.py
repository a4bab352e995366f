"""Simulated vLLM workers: real wire frames of a fleet whose tokens are routed by a model of routing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from moescope.capture import wire
from moescope.capture.wire import Int64Array
from moescope.capture.wire.traces import TracePart
from moescope.service.simulation.placement import by_load, linear
from moescope.service.simulation.plan import Deployment, Plan
from moescope.service.simulation.routing import RoutingModel
from moescope.service.simulation.steps import Router, Skew, Tokens, draw_tokens
from moescope.service.simulation.traces import TOKENS_OF_A_REQUEST, RequestTracer

RING: Final = 512
"""Number of steps whose loads a worker remembers until its next frame; it loses the loads of older steps."""
_CHUNK: Final = 64  # steps drawn at once


@dataclass(slots=True)
class _Worker:
    """Totals of one epoch of a rank; counts are int64 [L, E], and ``steps_run`` counts dummy steps too."""

    counts: Int64Array
    decode_counts: Int64Array
    epoch: int
    seq: int = 0
    acknowledged: int = 0
    tokens: int = 0
    decode_tokens: int = 0
    steps: int = 0
    decode_steps: int = 0
    mixed_steps: int = 0
    accepted_drafts: int = 0
    rejected_drafts: int = 0
    steps_run: int = 0
    silent: bool = field(default=False)

    def count_steps(self, tokens: Tokens) -> None:
        """Add the tokens of n steps."""
        prefill, decode = tokens.prefill > 0, tokens.decode > 0
        self.tokens += int(tokens.all.sum())
        self.decode_tokens += int(tokens.decode.sum())
        self.steps += int((prefill | decode).sum())
        self.decode_steps += int((decode & ~prefill).sum())
        self.mixed_steps += int((decode & prefill).sum())
        self.steps_run += len(prefill)

    def count_drafts(self, drafts: int, accepted: int) -> None:
        """Add the drafts among the tokens."""
        self.accepted_drafts += accepted
        self.rejected_drafts += drafts - accepted


class Fleet:
    """All workers of one deployment.

    Args:
        deployment: it, or a plan of one deployment.
        started_ns: when they start, nanoseconds of Unix time.
    """

    def __init__(self, deployment: Plan | Deployment, started_ns: int) -> None:
        self._deployment = Deployment(deployment) if isinstance(deployment, Plan) else deployment
        self.plan = plan = self._deployment.plan
        self._model = RoutingModel(plan.shape, plan.habits, plan.seed, plan.crowd)
        self._rng = np.random.default_rng(plan.seed + 1 + 1000 * self._deployment.number)
        self._started_ns = started_ns
        self._elapsed = 0.0
        self._steps_run = 0
        self._routers: list[Router] = []
        self._layers = [
            wire.MoeLayer(layer, plan.shape.experts, plan.shape.top_k) for layer in plan.covered_layers
        ]
        self._rows = np.array(
            [layer.layer - plan.shape.first_layer for layer in self._layers], dtype=np.int64
        )
        self._placement, self._owners = linear(plan)
        self._tracer = RequestTracer(self._layers, plan.seed + 3 + 1000 * self._deployment.number)
        self._workers = [self._start(started_ns) for _ in range(plan.ranks)]

    def advance(self, seconds: float) -> Iterator[wire.Frame]:
        """Let ``seconds`` pass; a frame of each rank that is not silent, with the plan's faults."""
        before = self._elapsed
        self._elapsed += seconds
        self._model.advance(seconds)
        prefill, decode = (self._model.inclusion(decode)[self._rows] for decode in (False, True))
        period = self.plan.rearrange_s
        if period is not None and int(self._elapsed // period) > int(before // period):
            mixed = prefill + self.plan.decode_share * (decode - prefill)
            self._placement, self._owners = by_load(self.plan, mixed, self._placement.version + 1)
        skew = Skew(self.plan.alternate)
        self._routers = [
            Router(chances, self._owners, self.plan.ranks, skew) for chances in (prefill, decode)
        ]
        if self.plan.faults.restarts(before, self._elapsed):
            self._workers[0] = self._start(self._now_ns())
        steps = max(1, round(self.plan.steps_per_s * self._elapsed) - self._steps_run)
        for rank in range(self.plan.ranks):
            if self._is_silent(rank):
                continue
            yield from self.plan.faults.applied(
                self._frame(rank, self._work(rank, seconds, steps)), self._age(rank)
            )
        self._steps_run += steps

    def delivered(self, frame: wire.Frame) -> None:
        """A service has taken this frame, which later ones then say."""
        worker = self._workers[frame.producer.dp_rank]
        if worker.epoch == frame.epoch:
            worker.acknowledged = frame.seq

    def traces(self, seconds: float) -> Iterator[TracePart]:
        """Traces of requests that ended in the last ``seconds``, of the ranks that are not silent."""
        if not self.plan.trace_rate:
            return
        prefill, decode = (self._model.inclusion(decode)[self._rows] for decode in (False, True))
        for rank, worker in enumerate(self._workers):
            if worker.silent:
                continue
            tokens = self.plan.tokens_per_s * self._share(rank) * seconds
            for _ in range(self._tracer.ended(self.plan.trace_rate * tokens / TOKENS_OF_A_REQUEST)):
                who = self._producer(rank)
                yield self._tracer.trace(who, worker.epoch, self._now_ns(), prefill, decode)

    def _age(self, rank: int) -> float:
        """Seconds since the rank's worker started."""
        return (self._now_ns() - self._workers[rank].epoch) / 1e9

    def _share(self, rank: int) -> float:
        """Tokens of the rank as a multiple of a fair share."""
        plan = self.plan
        if rank == 0:
            return plan.rank_imbalance
        return (plan.ranks - plan.rank_imbalance) / max(plan.ranks - 1, 1)

    def _is_silent(self, rank: int) -> bool:
        worker = self._workers[rank]
        silent = any(item.rank == rank and item.covers(self._elapsed) for item in self.plan.outages)
        if worker.silent and not silent:
            self._workers[rank] = self._start(self._now_ns())
        worker.silent = silent
        return silent

    def _work(self, rank: int, seconds: float, steps: int) -> wire.StepLoads | None:
        """Let a rank compute that many steps; the loads of the latest of them."""
        plan, worker = self.plan, self._workers[rank]
        share = self._share(rank)
        first = worker.steps_run
        kept: list[Int64Array] = []
        for start in range(0, steps, _CHUNK):
            numbers = np.arange(start, min(start + _CHUNK, steps)) + self._steps_run
            per_step = plan.tokens_per_s * share * seconds / steps
            tokens = draw_tokens(len(numbers), per_step, plan.decode_share, self._rng)
            worker.count_steps(tokens)
            if plan.draft_share:
                drafts = int(self._rng.binomial(int(tokens.decode.sum()), plan.draft_share))
                worker.count_drafts(drafts, int(self._rng.binomial(drafts, plan.draft_acceptance)))
            loads = []
            for router, drawn in zip(self._routers, (tokens.prefill, tokens.decode), strict=True):
                counts, by_step = router.draw(numbers, drawn, self._rng)
                worker.counts += counts
                worker.decode_counts += counts if drawn is tokens.decode else 0
                loads.append(by_step)
            kept = [*kept[-RING // _CHUNK :], loads[0] + loads[1]]
        lost = steps - min(RING, steps) + int(self._rng.binomial(min(RING, steps), plan.lost_steps))
        return self._step_loads(first + lost, np.concatenate(kept), steps - lost)

    def _step_loads(self, first: int, loads: Int64Array, steps: int) -> wire.StepLoads | None:
        """The loads of the last ``steps`` steps for a frame.

        Args:
            first: number of the first of these steps.
            loads: slots by step, layer and EP rank, int64 [n, L, R]; n is ``steps`` or more.
            steps: how many of them the frame has.
        """
        if self.plan.ranks == 1 or not self.plan.phases:
            return None
        loads = loads[len(loads) - steps :]
        busy = np.flatnonzero(loads.any(axis=(1, 2)))
        version = self._placement.version
        return wire.pack_step_loads(first, first + steps, first + busy, loads[busy], version)

    def _frame(self, rank: int, step_loads: wire.StepLoads | None) -> wire.Frame:
        plan, worker = self.plan, self._workers[rank]
        worker.seq += 1
        layers = len(self._layers)
        told = plan.phases
        return wire.Frame(
            wire=(wire.WIRE_MAJOR, wire.WIRE_MINOR if told else 2),
            producer=self._producer(rank),
            epoch=worker.epoch,
            seq=worker.seq,
            acknowledged=worker.acknowledged if told else None,
            captured_at_ns=self._now_ns(),
            layers=self._layers,
            uncovered=[wire.UncoveredLayer(layer, "simulated") for layer in plan.uncovered],
            counts=wire.pack_counts(worker.counts),
            rows=wire.pack_counts(np.full(layers, worker.tokens)),
            tokens=worker.tokens,
            steps=worker.steps,
            idle_steps=worker.steps_run - worker.steps,
            placement=self._placement,
            strategy="simulated",
            drops={"sends_failed": 0, "snapshots_put_off": 0, "snapshots_superseded": 0},
            decode_counts=wire.pack_counts(worker.decode_counts) if told else b"",
            decode_rows=wire.pack_counts(np.full(layers, worker.decode_tokens)) if told else b"",
            decode_tokens=worker.decode_tokens if told else 0,
            decode_steps=worker.decode_steps if told else 0,
            mixed_steps=worker.mixed_steps if told else 0,
            step_loads=step_loads,
            accepted_drafts=worker.accepted_drafts if told else 0,
            rejected_drafts=worker.rejected_drafts if told else 0,
            absent=[wire.UncoveredLayer(layer, "simulated") for layer in plan.absent],
        )

    def _producer(self, rank: int) -> wire.Producer:
        size = self.plan.ranks
        return wire.Producer(
            server=self.plan.server,
            model=self.plan.model,
            dp_rank=rank,
            dp_size=size,
            ep_rank=rank,
            ep_size=size,
            host=self._host(rank),
            vllm_version="simulated",
            pool=self.plan.pool,
            role=self._deployment.role,
        )

    def _host(self, rank: int) -> str:
        node = f"simulated-{rank // 8}"
        return node if self.plan.replicas == 1 else f"{node}-{self._deployment.number}"

    def _start(self, epoch: int) -> _Worker:
        counts = np.zeros((len(self._layers), self.plan.shape.experts), dtype=np.int64)
        return _Worker(counts, counts.copy(), epoch)

    def _now_ns(self) -> int:
        return self._started_ns + int(self._elapsed * 1e9)
