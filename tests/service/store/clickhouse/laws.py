"""What must be true of services that share a store: all say the same, and what they say is the truth."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from moescope.service.counts.account_state import AccountState
from moescope.service.drift.watch import DriftWatch
from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.instruments import Instruments
from tests.service.store.clickhouse.several import Peer
from tests.service.store.clickhouse.stories import Told

OWN: Final = ("store", "ingest", "scrape", "build", "history", "query", "frames", "series", "rearrangements")
"""Metrics about a service itself."""
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


@dataclass
class Truth:
    """What happened in a story.

    Attributes:
        frames: what was taken, by start and number. ``kept``: the last number that was acknowledged.
        changed: deployments whose model has another shape since.
        unkept: those of which something was taken and not acknowledged.
        instants: when all was quiet, with ``kept`` and ``unkept`` as they were then.
        pinned: by deployment and name, the tokens that a baseline may have; None: it may be gone.
        aged: the store was maintained.
    """

    frames: dict[Life, dict[int, Told]] = field(default_factory=lambda: defaultdict(dict))
    kept: dict[Life, int] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    unkept: set[int] = field(default_factory=set)
    instants: list[tuple[float, dict[Life, int], set[int]]] = field(default_factory=list)
    pinned: dict[tuple[int, str], set[int | None]] = field(
        default_factory=lambda: defaultdict(lambda: {None})
    )
    aged: bool = False


class Laws:
    """Compares what services say with each other, and with the truth.

    Args:
        truth: what happened.
        peers: the services that run.
    """

    def __init__(self, truth: Truth, peers: Mapping[int, Peer]) -> None:
        self._truth = truth
        self._peers = peers

    def check(self, when: str, alike: bool = True) -> None:
        """Compare.

        Args:
            when: it is done, in words.
            alike: history too must be alike; memory has it finer than a store that has aged.

        Raises:
            BrokenLawError: a law is broken.
        """
        for deployment in sorted({life[0] for life in self._truth.frames}):
            said = {number: self._said(peer, deployment) for number, peer in self._peers.items()}
            for number, answers in said.items():
                for name, answer in answers.items():
                    if name == "history" and (deployment in self._truth.unkept or not alike):
                        continue  # what was not acknowledged may be counted, and when is open
                    if answer != said[0].get(name):
                        text = (
                            f"{when}: service {number} says {name} = {answer}, service 0 {said[0].get(name)}"
                        )
                        raise BrokenLawError(text, deployment)
            faults = [self._fault(peer, deployment, said[number]) for number, peer in self._peers.items()]
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
        edges = [None, *(instant for instant, _, _ in self._truth.instants), None]
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
        generation = int(deployment in self._truth.changed)
        ranks = {
            life[1]
            for life in self._truth.kept
            if life[0] == deployment and self._generation(life) == generation
        }
        if not ranks <= set(said["ranks"]):
            return f"of ranks {ranks} frames were acknowledged: {said['ranks']}"
        for name in {name for d, name in self._truth.pinned if d == deployment}:
            tokens = dict(said["baselines"]).get(name)
            if tokens not in self._truth.pinned[deployment, name]:
                return f"baseline {name} is {tokens}, not {self._truth.pinned[deployment, name]}"
        return self._fault_of_history(deployment, generation, said["history"])

    def _generation(self, life: Life) -> int:
        return next(iter(self._truth.frames[life].values())).generation

    def _fault_of_rank(self, worker: tuple[int, int], account: AccountState, answer: Any) -> str | None:
        """What is not true of the totals of a rank.

        Of each start that is remembered the frame counts whose number it has. Of one that is forgotten that
        of some frame counts, not before the last one that was acknowledged.
        """
        generation = int(worker[0] in self._truth.changed)
        counted = {life.epoch: life.seq for life in account.epochs}
        least: list[Told] = []
        most: list[Told] = []
        for life, frames in self._truth.frames.items():
            epoch, kept = life[2], self._truth.kept.get(life, 0)
            if life[:2] != worker or self._generation(life) != generation:
                continue
            if epoch in account.forgotten:
                least += [frames[kept]] if kept else []
                most.append(frames[max(frames)])
            elif kept > counted.get(epoch, 0):
                return f"start {epoch} was acknowledged up to {kept}: {counted}"
        for epoch, seq in counted.items():
            told = self._truth.frames[*worker, epoch][seq]
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
        if generation or self._truth.aged:
            return None  # history begins with the new model; what has aged is of few instants
        before: dict[int, Any] = {}
        for (instant, kept, unkept), interval in zip(self._truth.instants, history, strict=False):
            if deployment in unkept:
                return None  # what was not acknowledged may be counted, and when is open
            now: dict[int, Any] = {}
            for (d, rank, epoch), seq in kept.items():
                if d == deployment:
                    now[rank] = now.get(rank, 0) + np.array(self._truth.frames[d, rank, epoch][seq].counts)
            for rank, counts in now.items():
                if rank not in before:
                    continue  # when what its first frame told was counted is not known
                right = (counts - before[rank]).tolist()
                if interval.get(rank) != right:
                    return f"up to {instant} rank {rank} counted {interval.get(rank)}, true is {right}"
            before = now
        return None

    def _check_metrics(self, when: str) -> None:
        said = [_metrics(peer) for peer in self._peers.values()]
        for number, answers in enumerate(said):
            for name in sorted(answers.keys() | said[0].keys()):
                if not _alike(name[0], answers.get(name), said[0].get(name)):
                    deployment = int(dict(name[1])["server"].removeprefix("history-"))
                    text = (
                        f"{when}: {name[0]} of {dict(name[1])} is {answers.get(name)} at service {number}, "
                        f"{said[0].get(name)} at 0"
                    )
                    raise BrokenLawError(text, deployment)


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
