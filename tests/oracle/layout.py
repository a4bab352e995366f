"""A fleet that does not exist: its workers, its layers, where its experts are, what is wrong with it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Worker(NamedTuple):
    """The ranks of one vLLM worker process."""

    dp: int
    pp: int
    tp: int


@dataclass(frozen=True)
class Layer:
    """An MoE layer: index in the model, logical experts, experts that a token takes, pipeline stage."""

    index: int
    experts: int
    top_k: int
    stage: int


Copies = list[tuple[int, int]]
"""Physical experts of one layer: (logical expert, EP rank)."""


@dataclass
class Fleet:
    """What stays the same while the fleet runs.

    Attributes:
        seed: what it was made from.
        server, model: its names.
        dp, pp, tp, ep: sizes. A worker's EP rank is ``(dp * tp size + tp) % ep``.
        layers: by rising index.
        uncovered: (DP rank, layer index) that can't be counted.
        blind: (DP rank, layer index) that are covered and never show a row.
        masking: layer indices whose router masks some slots: a layer's counts are below rows x top-k.
        silent: workers that never report.
        sharded: rows are split over the TP workers; else TP rank 0 counts them all.
        phased: DP ranks whose capturers tell phases.
        phases_end: DP rank to the tick from which on its capturers tell no phases any more.
        placements: by version, layer index to copies; empty: not known where the experts are.
        steps_told: capturers tell the loads of single steps.
    """

    seed: int
    server: str
    model: str
    dp: int
    pp: int
    tp: int
    ep: int
    layers: list[Layer]
    uncovered: set[tuple[int, int]] = field(default_factory=set)
    blind: set[tuple[int, int]] = field(default_factory=set)
    masking: set[int] = field(default_factory=set)
    silent: set[Worker] = field(default_factory=set)
    sharded: bool = False
    phased: set[int] = field(default_factory=set)
    phases_end: dict[int, int] = field(default_factory=dict)
    placements: list[dict[int, Copies]] = field(default_factory=list)
    steps_told: bool = False

    def workers(self) -> Iterator[Worker]:
        """All that exist, silent ones too."""
        for dp in range(self.dp):
            for pp in range(self.pp):
                for tp in range(self.tp):
                    yield Worker(dp, pp, tp)

    def covered(self, worker: Worker) -> list[Layer]:
        """The layers that a worker counts."""
        return [a for a in self.layers if a.stage == worker.pp and (worker.dp, a.index) not in self.uncovered]

    def not_covered(self, worker: Worker) -> list[Layer]:
        """The layers of a worker's stage that it can't count."""
        return [a for a in self.layers if a.stage == worker.pp and (worker.dp, a.index) in self.uncovered]


def make_fleet(seed: int) -> Fleet:
    """A fleet from a seed, the same each time."""
    rng = random.Random(f"fleet {seed}")
    dp = rng.choice([1, 1, 2, 2, 2, 3, 4, 5, 8, 12])
    pp = rng.choice([1, 1, 1, 2, 3])
    tp = rng.choice([1, 1, 1, 2, 3]) if dp <= 5 else 1
    ep = rng.choice([1, dp * tp, dp * tp, dp * tp, max(1, dp * tp // 2)])
    layers = _make_layers(rng, pp)
    fleet = Fleet(seed, f"fleet-{seed}", "model", dp, pp, tp, ep, layers, sharded=rng.random() < 0.5)
    fleet.phased = {d for d in range(dp) if rng.random() < 0.85} if rng.random() < 0.5 else set(range(dp))
    if rng.random() < 0.1:
        fleet.phased = set()
    if rng.random() < 0.1:
        fleet.phases_end = {rng.randrange(dp): rng.randint(64 * 20, 64 * 100)}
    if rng.random() < 0.9:
        fleet.placements = _make_placements(rng, fleet)
    single = len(fleet.placements) == 1 and all(
        len(fleet.placements[0][a.index]) == a.experts for a in layers
    )
    fleet.steps_told = single and ep > 1 and rng.random() < 0.8
    _break(rng, fleet)
    return fleet


def _make_layers(rng: random.Random, pp: int) -> list[Layer]:
    """Each stage has a layer at least; half of all models have layers of one shape."""
    count = rng.randint(pp, pp + 3)
    indices = sorted(rng.sample(range(12), count))
    experts, top_k = rng.choice([2, 4, 6, 7, 8, 12, 16]), rng.choice([1, 2, 4])
    ragged = rng.random() < 0.5
    layers = []
    for place, index in enumerate(indices):
        if ragged:
            experts, top_k = rng.choice([3, 4, 7, 8, 12, 20]), rng.choice([1, 2, 3])
        stage = min(place * pp // count, pp - 1)
        layers.append(Layer(index, experts, min(top_k, experts), stage))
    return layers


def _make_placements(rng: random.Random, fleet: Fleet) -> list[dict[int, Copies]]:
    """One placement, or several versions of it with redundant experts."""
    kind = rng.choice(["linear", "linear", "round_robin", "any", "replicas", "replicas", "eplb"])
    versions = rng.randint(2, 3) if kind == "eplb" else 1
    return [
        {layer.index: _place(rng, layer, fleet.ep, kind) for layer in fleet.layers} for _ in range(versions)
    ]


def _place(rng: random.Random, layer: Layer, ep: int, kind: str) -> Copies:
    """Experts on EP ranks; their number need not be a multiple of the number of ranks."""
    experts = list(range(layer.experts))
    if kind == "linear":
        return [(e, e * ep // layer.experts) for e in experts]
    if kind == "round_robin":
        return [(e, e % ep) for e in experts]
    if kind in ("replicas", "eplb"):
        experts += [rng.randrange(layer.experts) for _ in range(rng.randint(1, 6))]
        rng.shuffle(experts)
    return [(e, rng.randrange(ep)) for e in experts]


def _break(rng: random.Random, fleet: Fleet) -> None:
    """Uncovered, blind and masking layers, silent workers: nothing at all in half of the fleets."""
    if rng.random() < 0.5:
        return
    for layer in fleet.layers:
        kind = rng.random()
        some = set(range(fleet.dp)) if rng.random() < 0.5 else {rng.randrange(fleet.dp)}
        if kind < 0.12:
            fleet.uncovered |= {(d, layer.index) for d in some}
        elif kind < 0.24:
            fleet.blind |= {(d, layer.index) for d in some}
        elif kind < 0.3:
            fleet.masking.add(layer.index)
    if rng.random() < 0.4:
        everyone = list(fleet.workers())
        chosen = rng.choice(everyone)
        silent = {chosen} if rng.random() < 0.7 else {w for w in everyone if w.dp == chosen.dp}
        if len(silent) < len(everyone):
            fleet.silent = silent
