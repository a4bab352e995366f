"""Plays a story on real services and one real store."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from random import Random
from typing import Final

import msgspec
import numpy as np

from moescope.capture.wire import Frame, MoeLayer, pack_counts
from moescope.service.drift.baseline import Baseline, removal
from moescope.service.live.producers import Deployment
from moescope.service.store.limits import Retention
from tests.service.conftest import Clock
from tests.service.store.clickhouse.laws import BrokenLawError, Laws, Truth
from tests.service.store.clickhouse.several import KEPT, REFUSED, Peer
from tests.service.store.clickhouse.stories import BEGIN, LAYERS, SERVICES, Event, Told, kind_of

AGES: Final = Retention(fine_s=30.0, middle_s=300.0, coarse_s=1500.0)
"""How long what is kept in stories in which the store ages."""


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
        self._clock = Clock(BEGIN + 100)
        self._peers: dict[int, Peer | None] = {}
        self._truth = Truth()

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
            self._check("before all are killed", alike=not self._truth.aged)
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
                self._truth.aged = True
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
            self._truth.frames[life][told.frame.seq] = told
            if told.generation:
                self._truth.changed.add(told.deployment)
            if answer == KEPT:
                self._truth.kept[life] = max(told.frame.seq, self._truth.kept.get(life, 0))
            else:
                self._truth.unkept.add(told.deployment)
        return answers

    def _sent(self, told: Told) -> Frame:
        """A frame as its worker sends it: with what it knows to be kept."""
        kept = self._truth.kept.get((told.deployment, told.rank, told.frame.epoch), 0)
        return msgspec.structs.replace(told.frame, acknowledged=min(kept, told.frame.seq))

    def _pin(self, peer: Peer, event: Event) -> None:
        name = f"base-{event.number % 3}"
        where = f"history-{event.deployment}", "tiny"
        tokens = None if event.kind == "unpin" else event.number + 1
        document = removal(where, name) if tokens is None else _baseline(where, name, tokens).document()
        possible = self._truth.pinned[event.deployment, name]
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
            self._truth.instants.append((self._clock.now, dict(self._truth.kept), set(self._truth.unkept)))
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
        """See :meth:`Laws.check`."""
        peers = {number: peer for number, peer in self._peers.items() if peer is not None}
        Laws(self._truth, peers).check(when, alike)


def _baseline(where: Deployment, name: str, tokens: int) -> Baseline:
    layers, counts = (MoeLayer(LAYERS[0], 2, 1),), pack_counts(np.array([tokens, 1]))
    return Baseline(
        *where, name, "", 1.0, 2.0, 3.0, tokens, layers, counts, pack_counts(np.array([tokens + 1]))
    )
