"""Single steps joined over the workers of a pipeline stage, and what /v1/stragglers should answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tests.oracle.delivery import Arrival
from tests.oracle.deployment import Deployment
from tests.oracle.layout import Worker
from tests.oracle.ledger import Number

Loads = dict[tuple[int, int], list[int]]
"""Microbatch and layer index to slots by EP rank, of one step."""


@dataclass(frozen=True)
class Joined:
    """A step of which all workers told, and the instant at which it counts."""

    at: float
    loads: Loads


class Stage:
    """The steps of one pipeline stage."""

    def __init__(self, deployment: Deployment, stage: int) -> None:
        self._deployment, self.stage = deployment, stage
        fleet = deployment.fleet
        self._workers = {worker for worker in fleet.workers() if worker.pp == stage}
        self._told: dict[int, dict[Worker, Loads]] = {}
        self._complete: dict[int, float] = {}

    def take(self, arrival: Arrival) -> None:
        """Frames of every result but a refusal tell of steps."""
        snapshot = arrival.snapshot
        if snapshot.loads is None or snapshot.worker not in self._workers:
            return
        for step in range(snapshot.loads.first, snapshot.loads.end):
            told = self._told.setdefault(step, {})
            parts = snapshot.loads.steps.get(step, [])
            loads = {(i, layer): slots for i, part in enumerate(parts) for layer, slots in part.items()}
            told.setdefault(snapshot.worker, loads)
            if told.keys() == self._workers:
                self._complete.setdefault(step, arrival.at)

    @property
    def pending(self) -> int:
        """Steps up to the last that a worker told of, less those joined; of some perhaps nobody told."""
        return max(self._told) - min(self._told) + 1 - len(self._complete) if self._told else 0

    def joined(self) -> list[Joined]:
        """The joined steps, with the instants at which they count."""
        first = self._deployment.ledgers.get(Worker(0, self.stage, 0))
        if first is None:
            return []
        result = []
        for step, complete in self._complete.items():
            earlier = [at for at in first.times if at <= complete]
            loads = _summed(self._told[step].values())
            result.append(Joined(earlier[-1] if earlier else first.times[0], loads))
        return result


def _summed(parts: Iterable[Loads]) -> Loads:
    total: Loads = {}
    for part in parts:
        for at, loads in part.items():
            before = total.get(at, [0] * len(loads))
            total[at] = [a + b for a, b in zip(before, loads, strict=True)]
    return total


def stragglers(stages: list[Stage], ep: int, start: float | None, end: float) -> dict[str, Any]:
    """/v1/stragglers: stages, layers that had a step with work, and the sums over them."""
    told, by_layer = [], dict[int, list[list[list[int]]]]()
    for stage in stages:
        steps = [one for one in stage.joined() if (start is None or one.at > start) and one.at <= end]
        told.append({"pp_rank": stage.stage, "joined": len(steps), "incomplete": 0, "pending": stage.pending})
        for step in steps:
            for layer in {layer for _, layer in step.loads}:
                parts = [loads for (_, other), loads in step.loads.items() if other == layer and any(loads)]
                if parts:
                    by_layer.setdefault(layer, []).append(parts)
    layers = [
        {"layer": layer, "steps": len(steps), **_cost(steps, ep)} for layer, steps in sorted(by_layer.items())
    ]
    every = [parts for steps in by_layer.values() for parts in steps]
    return {"stages": told, **_cost(every, ep), "layers": layers}


def _cost(steps: list[list[list[int]]], ep: int) -> dict[str, Any]:
    """Of the loads of steps, by microbatch with work: sums, cost, who was the hottest and what it caused."""
    most = sum(max(loads) for parts in steps for loads in parts)
    mean = sum((Fraction(sum(loads), ep) for parts in steps for loads in parts), Fraction(0))
    hottest: list[Number] = [Fraction(0)] * ep
    caused: list[Number] = [Fraction(0)] * ep
    for parts in steps:
        for loads in parts:
            ties = [rank for rank, load in enumerate(loads) if load == max(loads)]
            for rank in ties:
                hottest[rank] += Fraction(1, len(ties) * len(parts))
                caused[rank] += (max(loads) - Fraction(sum(loads), ep)) / len(ties)
    return {
        "max_slots": most,
        "mean_slots": mean,
        "straggler_cost": 1 - mean / most if most else None,
        "hottest": hottest if steps else [],
        "caused": caused if steps else [],
        "hottest_rank": hottest.index(max(hottest)) if steps else None,
    }
