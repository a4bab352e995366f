"""The way of snapshots to the service: lost, late, doubled, reordered."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.oracle.layout import Fleet, make_fleet
from tests.oracle.traffic import TICK_NS, Snapshot, Traffic


@dataclass(frozen=True)
class Arrival:
    """A frame that comes at an instant of the service's clock, Unix seconds."""

    at: float
    snapshot: Snapshot


@dataclass(frozen=True)
class Story:
    """A fleet and all that the service gets of it, in order of arrival."""

    fleet: Fleet
    arrivals: list[Arrival]
    lone_restart: bool


def make_story(seed: int) -> Story:
    """A fleet, its run and what came of it; the same for the same seed."""
    fleet = make_fleet(seed)
    traffic = Traffic(fleet)
    traffic.run()
    rng = random.Random(f"delivery {seed}")
    lost, late, doubled = rng.choice([(0.0, 0.0, 0.0), (0.05, 0.1, 0.1), (0.3, 0.2, 0.2)])
    sent = [a for a in traffic.snapshots if a.worker not in fleet.silent]
    arrivals = []
    for snapshot in sent:
        if rng.random() < lost:
            continue
        arrivals.append(_arrival(rng, snapshot, late))
        if rng.random() < doubled:
            arrivals.append(_arrival(rng, snapshot, 0.5))
    return Story(fleet, sorted(arrivals, key=lambda arrival: arrival.at), traffic.lone_restart)


def _arrival(rng: random.Random, snapshot: Snapshot, late: float) -> Arrival:
    ticks = rng.randint(64, 64 * 60) if rng.random() < late else rng.randint(0, 16)
    return Arrival((snapshot.captured // TICK_NS + ticks) / 64, snapshot)
