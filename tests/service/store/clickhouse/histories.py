"""Plays a story on real services and one real store, and compares what all of them say with the truth."""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Sequence
from random import Random
from typing import Any, Final

import msgspec
import numpy as np

from moescope.capture.wire import Frame, MoeLayer, pack_counts
from moescope.service.counts.account_state import AccountState
from moescope.service.drift.baseline import Baseline, removal
from moescope.service.drift.watch import DriftWatch
from moescope.service.live.producers import Deployment
from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.instruments import Instruments
from moescope.service.store.limits import Retention
from tests.service.conftest import Clock
from tests.service.store.clickhouse.several import KEPT, REFUSED, Peer
from tests.service.store.clickhouse.stories import BEGIN, LAYERS, SERVICES, Event, Told, kind_of, story

OWN: Final = ("store", "ingest", "scrape", "build", "history", "query", "frames", "series", "rearrangements")
"""Metrics about a service itself."""
AGES: Final = Retention(fine_s=30.0, middle_s=300.0, coarse_s=1500.0)
"""How long what is kept in stories in which the store ages."""
Life = tuple[int, int, int]
"""Deployment, rank, epoch."""


class BrokenLawError(AssertionError):
    """What services say is not what is true; ``deployments`` are the histories of which that is seen."""

    def __init__(self, message: str, deployment: int) -> None:
        super().__init__(message)
        self.deployment = deployment

    @property
    def law(self) -> str:
        """Which law it is, roughly: the message without its numbers and places."""
        return re.sub(r"[\d.]+|[\[({].*", "", str(self))


class Play:
    """One story on a database of its own.

    Args:
        clickhouse: the server.
        seed: of what the story leaves open.
    """

    def __init__(self, clickhouse: str, seed: int) -> None:
        self._url = f"{clickhouse}/story_{uuid.uuid4().hex}"
        self._rng = Random(seed)
        self._ages = AGES if kind_of(seed) == "ageing" else Retention()
        self._aged = False
        self._clock = Clock(BEGIN + 100)
        self._peers: dict[int, Peer | None] = {}
        self._frames: dict[Life, dict[int, Told]] = defaultdict(dict)
        self._kept: dict[Life, int] = {}
        self._changed: set[int] = set()
        self._unkept: set[int] = set()
        self._instants: list[tuple[float, dict[Life, int], set[int]]] = []
        self._pinned: dict[tuple[int, str], set[int | None]] = defaultdict(lambda: {None})

    def run(self, events: Sequence[Event]) -> None:
        """Play it to its end, and check.

        Raises:
            BrokenLawError: a law is broken.
        """
        try:
            for number in range(SERVICES):
                self._start(number, 0.0)
            for event in events:
                self._do(event)
            self._settle(())
            self._check("before all are killed", alike=not self._aged)
            for number in range(SERVICES):
                self._kill(number)
            for number in range(SERVICES):
                self._start(number, self._rng.choice((0.0, 3600.0, -86_400.0)))
            self._check("after all were killed")
        finally:
            for number in range(SERVICES):
                self._kill(number)

    def _start(self, number: int, off: float) -> None:
        if self._peers.get(number) is None:
            self._peers[number] = Peer(self._url, self._clock, off, self._ages)

    def _kill(self, number: int) -> None:
        peer, self._peers[number] = self._peers.get(number), None
        if peer is not None:
            peer.kill()

    def _do(self, event: Event) -> None:
        peer = self._peers.get(event.service)
        self._clock.now = max(self._clock.now, event.at)
        match event.kind:
            case "send":
                self._send(event.service, event.frames)
            case "kill":
                self._kill(event.service)
            case "start":
                self._start(event.service, event.off)
            case "cut" if peer is not None:
                peer.line.cut(event.number, event.loses_answers)
            case "mend" if peer is not None:
                peer.line.mend()
            case "pin" | "unpin" if peer is not None:
                self._pin(peer, event)
            case "maintain" if peer is not None:
                peer.maintain()
                self._aged = True
            case "pass":
                self._news()
            case "end":
                self._settle(event.frames)
            case "quiet":
                self._quiet()

    def _send(self, number: int, frames: Sequence[Told]) -> list[str]:
        peer = self._peers.get(number)
        if peer is None:
            return []
        answers = peer.take(*map(self._sent, frames))
        for told, answer in zip(frames, answers, strict=True):
            life = told.deployment, told.rank, told.frame.epoch
            if answer == REFUSED:
                continue
            self._frames[life][told.frame.seq] = told
            if told.generation:
                self._changed.add(told.deployment)
            if answer == KEPT:
                self._kept[life] = max(told.frame.seq, self._kept.get(life, 0))
            else:
                self._unkept.add(told.deployment)
        return answers

    def _sent(self, told: Told) -> Frame:
        """A frame as its worker sends it: with what it knows to be kept."""
        kept = self._kept.get((told.deployment, told.rank, told.frame.epoch), 0)
        return msgspec.structs.replace(told.frame, acknowledged=min(kept, told.frame.seq))

    def _pin(self, peer: Peer, event: Event) -> None:
        name = f"base-{event.number % 3}"
        where = f"history-{event.deployment}", "tiny"
        tokens = None if event.kind == "unpin" else event.number + 1
        document = removal(where, name) if tokens is None else _baseline(where, name, tokens).document()
        possible = self._pinned[event.deployment, name]
        if peer.keep(document):
            possible.clear()
        possible.add(tokens)

    def _news(self) -> None:
        for peer in self._peers.values():
            if peer is not None:
                peer.hear()

    def _quiet(self) -> None:
        for _ in range(2):
            self._clock.now += 1
            self._news()
        self._clock.now += 1
        if all(peer is not None and not peer.line.is_cut for peer in self._peers.values()):
            self._instants.append((self._clock.now, dict(self._kept), set(self._unkept)))
        self._clock.now += 1

    def _settle(self, last: Sequence[Told]) -> None:
        """Mend everything; workers that live go on until what they say is kept."""
        for number in range(SERVICES):
            self._start(number, 0.0)
            peer = self._peers[number]
            assert peer is not None
            peer.line.mend()
        for told in last:
            for _ in range(6):
                if self._send(self._rng.randrange(SERVICES), [told]) == [KEPT]:
                    break
                self._clock.now += 16
                self._news()
            else:
                why = {peer.why_refused for peer in self._peers.values() if peer is not None}
                raise BrokenLawError(f"the newest frame of a worker is never kept: {why}", told.deployment)
        self._quiet()

    def _check(self, when: str, alike: bool = True) -> None:
        """Compare.

        Args:
            when: it is done, in words.
            alike: history too must be alike; memory has it finer than a store that has aged.
        """
        for deployment in sorted({life[0] for life in self._frames}):
            peers = [(number, peer) for number, peer in self._peers.items() if peer is not None]
            said = {number: self._said(peer, deployment) for number, peer in peers}
            for number, answers in said.items():
                for name, answer in answers.items():
                    if name == "history" and (deployment in self._unkept or not alike):
                        continue  # what was not acknowledged may be counted, and when is open
                    if answer != said[0].get(name):
                        text = (
                            f"{when}: service {number} says {name} = {answer}, service 0 {said[0].get(name)}"
                        )
                        raise BrokenLawError(text, deployment)
            faults = [self._fault(peer, deployment, said[number]) for number, peer in peers]
            fault = next(filter(None, faults), None)
            if fault:
                raise BrokenLawError(f"{when}: {fault}", deployment)
        self._check_metrics(when)

    def _said(self, peer: Peer, deployment: int) -> dict[str, Any]:
        """All that a service says of one history."""
        where = f"history-{deployment}", "tiny"
        found: dict[str, Any] = {}
        found["ranks"] = [item.latest.producer.dp_rank for item in peer.state.producers(where)]
        for item in peer.state.producers(where):
            totals, rank = item.totals, item.latest.producer.dp_rank
            assert totals.decode is not None
            found[f"totals of rank {rank}"] = (
                totals.tokens,
                totals.steps,
                totals.counts.tolist(),
                totals.decode.counts.tolist(),
                totals.ep_slots.whole.tolist(),
                totals.unplaced.tolist(),
                totals.unphased_tokens,
            )
            found[f"rank {rank}"] = (item.latest.epoch, item.latest.seq, item.restarts, item.state)
        edges = [None, *(instant for instant, _, _ in self._instants), None]
        spans = peer.state.series(where, edges)
        found["history"] = [
            {item.producer.latest.producer.dp_rank: item.span.delta.counts.tolist() for item in interval}
            for interval in spans
        ]
        found["placements"] = peer.state.placements(where)
        found["baselines"] = [(item.name, item.tokens) for item in peer.book.of(where)]
        return found

    def _fault(self, peer: Peer, deployment: int, said: dict[str, Any]) -> str | None:
        """What of a service's answers is not true, or None."""
        where = f"history-{deployment}", "tiny"
        for item in peer.state.producers(where):
            rank = item.latest.producer.dp_rank
            entry = peer.state._ledger.roster.get(item.latest.producer.key)
            assert entry is not None
            fault = self._fault_of_rank(
                (deployment, rank), entry.account.state(), said[f"totals of rank {rank}"]
            )
            if fault:
                return f"of rank {rank} {fault}"
        generation = int(deployment in self._changed)
        ranks = {
            life[1] for life in self._kept if life[0] == deployment and self._generation(life) == generation
        }
        if not ranks <= set(said["ranks"]):
            return f"of ranks {ranks} frames were acknowledged: {said['ranks']}"
        for name in {name for d, name in self._pinned if d == deployment}:
            tokens = dict(said["baselines"]).get(name)
            if tokens not in self._pinned[deployment, name]:
                return f"baseline {name} is {tokens}, not {self._pinned[deployment, name]}"
        return self._fault_of_history(deployment, generation, said["history"])

    def _generation(self, life: Life) -> int:
        return next(iter(self._frames[life].values())).generation

    def _fault_of_rank(self, worker: tuple[int, int], account: AccountState, answer: Any) -> str | None:
        """What is not true of the totals of a rank.

        Of each start that is remembered the frame counts whose number it has. Of one that is forgotten that
        of some frame counts, not before the last one that was acknowledged.
        """
        generation = int(worker[0] in self._changed)
        counted = {life.epoch: life.seq for life in account.epochs}
        least: list[Told] = []
        most: list[Told] = []
        for life, frames in self._frames.items():
            epoch, kept = life[2], self._kept.get(life, 0)
            if life[:2] != worker or self._generation(life) != generation:
                continue
            if epoch in account.forgotten:
                least += [frames[kept]] if kept else []
                most.append(frames[max(frames)])
            elif kept > counted.get(epoch, 0):
                return f"start {epoch} was acknowledged up to {kept}: {counted}"
        for epoch, seq in counted.items():
            told = self._frames[*worker, epoch][seq]
            if told.generation != generation:
                return "the former model counts"
            least.append(told)
            most.append(told)
        for place, name in ((2, "counts"), (3, "decode")):
            low, high = (np.sum([getattr(told, name) for told in these], axis=0) for these in (least, most))
            if not (np.all(low <= answer[place]) and np.all(answer[place] <= high)):
                return f"{name} are {answer[place]}, true is {low.tolist()} to {high.tolist()}"
        if any(answer[5]) or answer[6] or sum(map(sum, answer[4])) != sum(answer[2]):
            return f"slots or tokens are not placed or of no phase: {answer[4:]}"
        return None

    def _fault_of_history(
        self, deployment: int, generation: int, history: list[dict[int, list[int]]]
    ) -> str | None:
        for n, interval in enumerate(history):
            for rank, counts in interval.items():
                if min(counts, default=0) < 0:
                    return f"rank {rank} counted {counts} in interval {n}"
        if generation or self._aged:
            return None  # history begins with the new model; what has aged is of few instants
        before: dict[int, Any] = {}
        for (instant, kept, unkept), interval in zip(self._instants, history, strict=False):
            if deployment in unkept:
                return None  # what was not acknowledged may be counted, and when is open
            now: dict[int, Any] = {}
            for (d, rank, epoch), seq in kept.items():
                if d == deployment:
                    now[rank] = now.get(rank, 0) + np.array(self._frames[d, rank, epoch][seq].counts)
            for rank, counts in now.items():
                if rank not in before:
                    continue  # when what its first frame told was counted is not known
                right = (counts - before[rank]).tolist()
                if interval.get(rank) != right:
                    return f"up to {instant} rank {rank} counted {interval.get(rank)}, true is {right}"
            before = now
        return None

    def _check_metrics(self, when: str) -> None:
        said = [_metrics(peer) for peer in self._peers.values() if peer is not None]
        for number, answers in enumerate(said):
            for name in sorted(answers.keys() | said[0].keys()):
                if not _alike(name[0], answers.get(name), said[0].get(name)):
                    deployment = int(dict(name[1])["server"].removeprefix("history-"))
                    text = (
                        f"{when}: {name[0]} of {dict(name[1])} is {answers.get(name)} at service {number}, "
                        f"{said[0].get(name)} at 0"
                    )
                    raise BrokenLawError(text, deployment)


def _baseline(where: Deployment, name: str, tokens: int) -> Baseline:
    layers, counts = (MoeLayer(LAYERS[0], 2, 1),), pack_counts(np.array([tokens, 1]))
    return Baseline(
        *where, name, "", 1.0, 2.0, 3.0, tokens, layers, counts, pack_counts(np.array([tokens + 1]))
    )


def _alike(name: str, one: float | None, other: float | None) -> bool:
    if name.endswith("_age_seconds"):
        return (one is None) == (other is None)  # a frame that comes twice came when a service heard it last
    if name.endswith("_created") and one is not None and other is not None:
        return abs(one - other) < 0.01  # births are kept in milliseconds
    return one == other


def _metrics(peer: Peer) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    drift = DriftWatch(peer.state, peer.book, peer.settings.min_tokens)
    collector = RoutingCollector(peer.state, peer.settings, Instruments(), drift)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in collector.collect()
        if not family.name.startswith(tuple(f"moescope_{own}" for own in OWN))
        for sample in family.samples
        if "server" in sample.labels
    }


def play(clickhouse: str, seed: int, deployments: int) -> None:
    """Play a seed's story; if a law is broken, say the shortest story that was found to break it.

    Raises:
        BrokenLawError: a law is broken.
    """
    events = story(seed, deployments)
    fault = _fault_of(clickhouse, seed, events)
    if fault is not None:
        events, fault = shrunk(clickhouse, seed, events, fault)
        lines = "\n".join(_line(event) for event in events)
        raise BrokenLawError(f"seed {seed}: {fault}\n{lines}", fault.deployment)


def shrunk(
    clickhouse: str, seed: int, events: list[Event], fault: BrokenLawError, tries: int = 150
) -> tuple[list[Event], BrokenLawError]:
    """Fewer events that still break the law.

    What ends a story stays: without it windows that end now begin while frames came, which services know with
    what precision they had it.
    """
    only = [_only(event, fault.deployment) for event in events]
    smaller = _fault_of(clickhouse, seed, only)
    if smaller is not None and smaller.law == fault.law:
        events, fault, tries = only, smaller, tries - 1
    size = max(1, len(events) // 2)
    while size and tries > 0:
        at = 0
        while at < len(events) and tries > 0:
            ends = [event for event in events[at : at + size] if event.kind == "end"]
            fewer = events[:at] + ends + events[at + size :]
            if len(fewer) == len(events):
                at += size
                continue
            found = _fault_of(clickhouse, seed, fewer)
            tries -= 1
            if found is None or found.law != fault.law:
                at += size
            else:
                events, fault = fewer, found
        size //= 2
    return events, fault


def _only(event: Event, deployment: int) -> Event:
    frames = tuple(told for told in event.frames if told.deployment == deployment)
    return Event(**{**event.__dict__, "frames": frames})


def _fault_of(clickhouse: str, seed: int, events: Sequence[Event]) -> BrokenLawError | None:
    try:
        Play(clickhouse, seed).run(events)
    except BrokenLawError as error:
        return error
    return None


def _line(event: Event) -> str:
    frames = ", ".join(
        f"history {told.deployment} rank {told.rank} generation {told.generation} "
        f"start {told.frame.epoch / 1e9 - BEGIN:.2f} seq {told.frame.seq} = {told.counts}"
        for told in event.frames
    )
    rest = f"number {event.number} loses {event.loses_answers} off {event.off}"
    return f"{event.at - BEGIN:.1f} {event.kind} {event.service}: {frames or rest}"
