"""Generated histories of several services on one store: what workers send, and what befalls the services.

A story is a list of events, so that parts of it can be left out while looking for the few that break a law.
Each deployment in it is a history of its own: frames of up to three starts of each worker, to any service,
late, doubled and in any order, over a change of the model in some. There are stories of three kinds: in some
the store is maintained with short ages, in others workers start so often that starts are forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

import numpy as np

from moescope.capture.wire import Frame, pack_counts
from tests.service.frames import frame, placement, producer

BEGIN: Final = 1_700_000_000.0
SERVICES: Final = 3
MOST_STARTS: Final = 3
LAYERS: Final = (1, 4)
OFTEN: Final = 14
"""Starts of a restless worker, at most; an account remembers 8."""
KINDS: Final = ("usual", "ageing", "restless")
_STEPS: Final = (0.3, 1.0, 1.0, 2.0, 4.0, 9.0, 22.0)
_LONG_STEPS: Final = (*_STEPS, 120.0, 700.0)


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
    """Something that happens at an instant, or as soon as what was before has ended.

    ``kind``: ``send`` (frames to a service), ``kill``, ``start``, ``cut``, ``mend``, ``pin``, ``unpin``,
    ``maintain`` (the store), ``quiet`` (two rounds of news, and an instant to ask for later), ``pass`` (a
    round of news) or ``end``.
    """

    kind: str
    service: int = 0
    at: float = 0.0
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


def kind_of(seed: int) -> str:
    """The kind of a seed's story."""
    return KINDS[seed % len(KINDS)]


def story(seed: int, deployments: int, steps: int = 22) -> list[Event]:
    """The events of a seed; the same each time."""
    return list(_Story(Random(seed), deployments, steps, kind_of(seed)).events())


class _Story:
    """Makes a story step by step."""

    def __init__(self, rng: Random, deployments: int, steps: int, kind: str) -> None:
        self._rng = rng
        self._steps = steps
        self._ages = kind == "ageing"
        self._restless = [kind == "restless" and rng.random() < 0.5 for _ in range(deployments)]
        self._change = rng.randint(steps // 3, 2 * steps // 3)
        self._changing = [rng.random() < 0.35 for _ in range(deployments)]
        self._ranks = [rng.randint(1, 2) for _ in range(deployments)]
        self._experts = [rng.choice((2, 4)) for _ in range(deployments)]
        self._starts: dict[tuple[int, int], _Start] = {}
        self._count: Counter[tuple[int, int]] = Counter()
        self._waiting: list[tuple[int, int, Told]] = []  # step, service, frame
        self._heard: set[tuple[int, int, int]] = set()
        self._cut: dict[int, int] = {}
        self._dead: dict[int, int] = {}
        self._now = BEGIN + 100

    def events(self) -> Iterator[Event]:
        """All of it."""
        rng = self._rng
        for step in range(self._steps):
            yield from self._faults(step)
            for deployment, ranks in enumerate(self._ranks):
                for rank in range(ranks):
                    self._tell(step, deployment, rank)
            yield from self._sends(step)
            if rng.random() < 0.3:
                kind, deployment = rng.choice(("pin", "pin", "unpin")), rng.randrange(len(self._ranks))
                yield Event(kind, rng.randrange(SERVICES), self._now, deployment=deployment, number=step)
            if self._ages and rng.random() < 0.3:
                yield Event("maintain", rng.randrange(SERVICES), self._now)
            steps = _LONG_STEPS if self._ages else _STEPS
            self._now += 25.0 if step == self._change else rng.choice(steps)
            quiet = rng.random() < 0.2
            yield Event("quiet" if quiet else "pass", at=self._now)
            self._now += 4.0 if quiet else 0.0
        newest = [start for start in self._starts.values() if start.told]
        yield Event("end", at=self._now, frames=tuple(start.told[-1] for start in newest))
        # The last minutes have these frames only: windows that end now begin while nothing came.
        self._now += 900.0
        yield Event("end", at=self._now, frames=tuple(start.tell(rng, self._now) for start in newest))

    def _tell(self, step: int, deployment: int, rank: int) -> None:
        """Let a worker count for a step, or start again, or end as the model changes."""
        rng, worker, changing = self._rng, (deployment, rank), self._changing[deployment]
        if changing and step == self._change:
            self._starts.pop(worker, None)
            return
        generation = int(changing and step > self._change)
        restless = self._restless[deployment]
        allowed = OFTEN if restless else 2 if changing and not generation else MOST_STARTS
        chance = 0.6 if restless else 0.12
        if worker not in self._starts or (self._count[worker] < allowed and rng.random() < chance):
            began = self._now - rng.uniform(0.05, 0.2)
            experts = self._experts[deployment] + generation
            self._starts[worker] = _Start(
                deployment, rank, self._ranks[deployment], generation, began, experts
            )
            self._count[worker] += 1
        if rng.random() < 0.7:
            told = self._starts[worker].tell(rng, self._now)
            for _ in range(rng.choice((0, 1, 1, 1, 2))):
                self._waiting.append((step + rng.choice((0, 0, 0, 1, 2, 5)), rng.randrange(SERVICES), told))

    def _sends(self, step: int) -> Iterator[Event]:
        due = [item for item in self._waiting if item[0] <= step]
        self._waiting = [item for item in self._waiting if item[0] > step]
        self._rng.shuffle(due)
        for service in range(SERVICES):
            frames = tuple(
                told for _, number, told in due if number == service and self._may_come(step, told)
            )
            if frames:
                yield Event("send", service, self._now, frames)
                if service not in self._cut and service not in self._dead:
                    self._heard |= {_start_of(told) for told in frames}

    def _may_come(self, step: int, told: Told) -> bool:
        """Whether what a start says is not its first word, which comes after the model has changed.

        Then nobody could tell which of the two starts is the older one: hosts have clocks of their own.
        """
        late = self._changing[told.deployment] and told.generation == 0 and step >= self._change
        return not late or _start_of(told) in self._heard

    def _faults(self, step: int) -> Iterator[Event]:
        """What befalls services."""
        rng = self._rng
        for service in range(SERVICES):
            if self._dead.get(service) == step:
                yield Event("start", service, self._now, off=rng.choice((0, 0, -600, 600, 86_400, -86_400)))
                del self._dead[service]
            if self._cut.get(service) == step:
                yield Event("mend", service, self._now)
                del self._cut[service]
            if service in self._dead or service in self._cut:
                continue
            chance = rng.random()
            if chance < 0.05:
                yield Event("kill", service, self._now)
                self._dead[service] = step + rng.randint(1, 4)
            elif chance < 0.15:
                questions, loses = rng.choice((0, 0, 1, 2, 4, 7)), rng.random() < 0.5
                yield Event("cut", service, self._now, number=questions, loses_answers=loses)
                self._cut[service] = step + rng.randint(1, 6)


def _start_of(told: Told) -> tuple[int, int, int]:
    return told.deployment, told.rank, told.frame.epoch
