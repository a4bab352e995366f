"""Generated histories of several services on one store: what workers send, and what befalls the services.

A story is a list of events, so that parts of it can be left out while looking for the few that break a law.
Each deployment in it is a history of its own: frames of up to three starts of each worker, to any service, late,
doubled and in any order, over a change of the model in some.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

import numpy as np

from moescope.capture.wire import Frame, pack_counts
from tests.service.frames import frame, placement, producer

BEGIN: Final = 1_700_000_000.0
SERVICES: Final = 3
LAYERS: Final = (1, 4)
_STEPS: Final = (0.3, 1.0, 1.0, 2.0, 4.0, 9.0, 22.0)


@dataclass(frozen=True)
class Told:
    """A frame, and what is true once it was counted.

    Attributes:
        deployment: the number of the history.
        rank: DP rank. ``generation``: of the model's shape; 0 or 1.
        frame: as it is sent.
        counts: slots by expert of both layers. ``decode``: those of decode.
    """

    deployment: int
    rank: int
    generation: int
    frame: Frame
    counts: tuple[int, ...]
    decode: tuple[int, ...]


@dataclass(frozen=True)
class Event:
    """Something that happens, ``after`` seconds after the one before.

    ``kind``: ``send`` (frames to a service), ``kill``, ``start``, ``cut``, ``mend``, ``pin``, ``unpin``, ``quiet``
    (two rounds of news, and an instant to ask for later) or ``pass`` (time, and a round of news).
    """

    kind: str
    service: int = 0
    after: float = 0.0
    frames: tuple[Told, ...] = ()
    deployment: int = 0
    number: int = 0
    loses_answers: bool = False
    off: float = 0.0


@dataclass
class _Start:
    """One start of a worker, as it counts."""

    deployment: int
    rank: int
    ranks: int
    generation: int
    began: float
    experts: int
    told: list[Told] = field(default_factory=list)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0))
    decode: np.ndarray = field(default_factory=lambda: np.zeros(0))
    by_rank: np.ndarray = field(default_factory=lambda: np.zeros(0))
    first: int = 0

    def tell(self, rng: Random, now: float) -> Told:
        """Count something, and say all."""
        if not self.told:
            self.counts = np.zeros((len(LAYERS), self.experts), np.int64)
            self.decode = np.zeros_like(self.counts)
            self.by_rank = np.zeros((2, len(LAYERS), 2), np.int64)
        elif rng.random() < 0.15:
            self.first = 1 - self.first  # a rearrangement
        where = [(expert + self.first) % 2 for expert in range(self.experts)]
        for _ in range(rng.randrange(4)):
            expert, slots = rng.randrange(self.experts), rng.randint(1, 50)
            of_decode = rng.randint(0, slots)
            for layer in range(len(LAYERS)):
                at = (expert + layer) % self.experts
                self.counts[layer, at] += slots
                self.decode[layer, at] += of_decode
                self.by_rank[0, layer, where[at]] += slots
                self.by_rank[1, layer, where[at]] += of_decode
        seq = len(self.told) + 1
        made = frame(
            dict(zip(LAYERS, self.counts.tolist(), strict=True)),
            top_k=1,
            who=producer(
                server=f"history-{self.deployment}",
                dp_rank=self.rank,
                dp_size=self.ranks,
                ep_rank=self.rank,
                ep_size=2,
                pid=1000 * self.rank + int(self.began - BEGIN) + 1,
            ),
            epoch=int(self.began * 1e9),
            seq=seq,
            after_s=now - self.began,
            uptime_ns=max(1, int((now - self.began) * 1e9)),
            steps=seq,
            decode=dict(zip(LAYERS, self.decode.tolist(), strict=True)),
            ep_slots=pack_counts(self.by_rank[0].ravel()),
            decode_ep_slots=pack_counts(self.by_rank[1].ravel()),
            placement=placement(range(self.experts), where, len(LAYERS), 1 + seq),
        )
        counts, decode = (tuple(item.ravel().tolist()) for item in (self.counts, self.decode))
        self.told.append(Told(self.deployment, self.rank, self.generation, made, counts, decode))
        return self.told[-1]


def story(seed: int, deployments: int, steps: int = 22) -> list[Event]:
    """The events of a seed; the same each time."""
    return list(_events(Random(seed), deployments, steps))


def _events(rng: Random, deployments: int, steps: int) -> Iterator[Event]:
    change = rng.randint(steps // 3, 2 * steps // 3)
    changing = [rng.random() < 0.35 for _ in range(deployments)]
    ranks = [rng.randint(1, 2) for _ in range(deployments)]
    experts = [rng.choice((2, 4)) for _ in range(deployments)]
    workers = [(d, rank) for d in range(deployments) for rank in range(ranks[d])]
    starts: dict[tuple[int, int], _Start] = {}
    count = dict.fromkeys(workers, 0)
    waiting: list[tuple[int, int, Told]] = []  # (step, service, frame)
    cut: dict[int, int] = {}
    dead: dict[int, int] = {}
    now = BEGIN + 100
    for step in range(steps):
        yield from _faults(rng, step, cut, dead)
        for worker in workers:
            d, rank = worker
            generation = int(changing[d] and step > change)
            if changing[d] and step == change:
                starts.pop(worker, None)
                continue
            old = starts.get(worker)
            if old is None or (count[worker] < 3 and rng.random() < 0.12):
                allowed = 3 if not changing[d] or generation else 2
                if count[worker] >= allowed and old is None:
                    continue
                if old is None or count[worker] < allowed:
                    began = now - rng.uniform(0.05, 0.2)
                    starts[worker] = _Start(d, rank, ranks[d], generation, began, experts[d] + generation)
                    count[worker] += 1
            if rng.random() < 0.7:
                told = starts[worker].tell(rng, now)
                for _ in range(rng.choice((0, 1, 1, 1, 2))):
                    waiting.append((step + rng.choice((0, 0, 0, 1, 2, 5)), rng.randrange(SERVICES), told))
        due = [item for item in waiting if item[0] <= step]
        waiting = [item for item in waiting if item[0] > step]
        rng.shuffle(due)
        for service in range(SERVICES):
            told = tuple(item[2] for item in due if item[1] == service)
            if told:
                yield Event("send", service, frames=told)
        if rng.random() < 0.3:
            kind = rng.choice(("pin", "pin", "unpin"))
            yield Event(kind, rng.randrange(SERVICES), deployment=rng.randrange(deployments), number=step)
        after = 25.0 if step == change else rng.choice(_STEPS)
        now += after
        yield Event("quiet" if rng.random() < 0.2 else "pass", after=after)
        now += 2.0 if rng.random() < 0 else 0.0
    yield Event("end", frames=tuple(start.told[-1] for start in starts.values() if start.told))


def _faults(rng: Random, step: int, cut: dict[int, int], dead: dict[int, int]) -> Iterator[Event]:
    """What befalls services; how long it lasts is in ``cut`` and ``dead``, by service."""
    for service in range(SERVICES):
        if dead.get(service) == step:
            yield Event("start", service, off=rng.choice((0, 0, -600, 600, 86_400, -86_400)))
            del dead[service]
        if cut.get(service) == step:
            yield Event("mend", service)
            del cut[service]
        if service in dead or service in cut:
            continue
        chance = rng.random()
        if chance < 0.05:
            yield Event("kill", service)
            dead[service] = step + rng.randint(1, 4)
        elif chance < 0.15:
            yield Event("cut", service, number=rng.choice((0, 0, 1, 2, 4, 7)), loses_answers=rng.random() < 0.5)
            cut[service] = step + rng.randint(1, 6)
