"""Where the copies of a deployment's experts are, and since when.

vLLM's EPLB gives each rearrangement a higher version, which frames carry. All workers hold the same map, so
the first worker that reports a version tells when it began, and the last one when it was in force everywhere.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from moescope.capture.wire import Frame, MoeLayer, Placement
from moescope.service.live.producers import Deployment
from moescope.service.store.records import PLACEMENT, Document, Key, name_of

_log = logging.getLogger(__name__)

KEPT: Final = 64  # placements remembered of each pipeline stage


@dataclass(frozen=True, slots=True)
class DatedPlacement:
    """A placement and when it was in force; times are seconds of Unix time on the service's clock.

    Attributes:
        pp_rank: the pipeline stage whose layers it places.
        layers, placement: as in the frame.
        at: when the first worker reported it; ``everywhere_at`` when the last one so far did.
    """

    pp_rank: int
    layers: tuple[MoeLayer, ...]
    placement: Placement
    at: float
    everywhere_at: float


class ToldPlacement(msgspec.Struct, frozen=True):
    """Where a producer said last that its experts are; kept under its key, so that every service knows it.

    Attributes:
        key: who.
        at: when it said so, ``started_at`` when its worker began to count: seconds of Unix time on the
            service's clock.
        layers, placement: as in the frame.
        epoch, seq: of the frame; 0: an earlier moescope kept this.
    """

    key: Key
    at: float
    started_at: float
    layers: tuple[MoeLayer, ...]
    placement: Placement
    epoch: int = 0
    seq: int = 0

    def is_over(self, other: ToldPlacement, counting: int | None) -> bool:
        """Whether it holds and the other one doesn't, whichever service heard it and kept it last.

        Both are of one producer. Services' clocks, which may differ, decide only where nothing else does.

        Args:
            other: the other one.
            counting: the epoch of the start that counts at present; None: not known.
        """
        if self.epoch and self.epoch == other.epoch:
            return self.seq > other.seq
        of_present = [item.epoch and item.epoch == counting for item in (self, other)]
        if of_present[0] != of_present[1]:
            return bool(of_present[0])
        return self._order > other._order

    @property
    def _order(self) -> tuple[float, int, bytes]:
        return self.at, self.placement.version, msgspec.msgpack.encode(self.placement)

    def by(self, now: float) -> ToldPlacement:
        """The same on a clock that shows ``now``: the clock of whoever heard it may have been ahead."""
        if max(self.at, self.started_at) <= now:
            return self
        return msgspec.structs.replace(self, at=min(self.at, now), started_at=min(self.started_at, now))

    def says_as(self, other: ToldPlacement | None) -> bool:
        """Whether both tell the same."""
        return other is not None and (self.placement, self.layers) == (other.placement, other.layers)

    def document(self) -> Document:
        """For the store."""
        return Document(PLACEMENT, name_of(self.key), msgspec.msgpack.encode(self))


def told_in(name: str, content: bytes) -> ToldPlacement | None:
    """What was kept; what can't be read is logged and None: the worker's next frame tells it again."""
    try:
        return msgspec.msgpack.decode(content, type=ToldPlacement)
    except msgspec.MsgspecError as error:
        _log.warning("the placement %s in the store can't be read and is left out: %s", name, error)
        return None


@dataclass(slots=True)
class _Held:
    layers: tuple[MoeLayer, ...]
    placement: Placement
    at: float
    everywhere_at: float
    workers: set[tuple[int, int]] = field(default_factory=set)


class Placements:
    """Each producer's newest placement, and those of each pipeline stage over time.

    Memory is bounded: a stage remembers its newest :data:`KEPT` placements, and nothing is kept of a stage
    whose producers are all forgotten. Its owner tells of producers in the roster only, of which there are
    ``max_producers``. Not safe for threads: its owner has a lock.
    """

    def __init__(self) -> None:
        self._newest: dict[Key, ToldPlacement] = {}
        self._held: dict[tuple[str, str, int], deque[_Held]] = {}
        self._rises: Counter[tuple[str, str, int]] = Counter()
        self._tellers: dict[Deployment, dict[int, set[Key]]] = {}
        """By deployment and pipeline stage: the producers that told a placement."""

    def note(self, frame: Frame, at: float, started_at: float | None = None) -> ToldPlacement | None:
        """Take the placement of a producer's newest frame into account; what it tells, if that is new.

        Args:
            frame: the frame.
            at: when it came, seconds of Unix time on the service's clock.
            started_at: when its worker began to count, on the same clock; None: the worker's clock agrees.
        """
        if frame.placement is None:
            return None
        key, before = frame.producer.key, self._newest.get(frame.producer.key)
        started_at = frame.epoch / 1e9 if started_at is None else started_at
        told = ToldPlacement(
            key, at, started_at, tuple(frame.layers), frame.placement, frame.epoch, frame.seq
        )
        self._take(told)
        return None if told.says_as(before) else told

    def set_back(self, now: float) -> None:
        """The service's clock was set back: what was told before was not told after ``now``."""
        self._newest = {key: told.by(now) for key, told in self._newest.items()}
        for held in (item for known in self._held.values() for item in known):
            held.at, held.everywhere_at = min(held.at, now), min(held.everywhere_at, now)

    def take(self, told: ToldPlacement, counting: int | None = None) -> ToldPlacement | None:
        """Take in what a store has of a producer; what it told since, which the store lacks, or None.

        ``counting`` is the epoch of its start that counts at present, if that is known.
        """
        newest = self._newest.get(told.key)
        if newest is None or told.is_over(newest, counting):
            self._take(told)
            return None
        return None if told.says_as(newest) else newest

    def _take(self, told: ToldPlacement) -> None:
        key, layers, placement, at = told.key, told.layers, told.placement, told.at
        self._newest[key] = told
        stage, worker = _stage_of(key), (key[2], key[4])
        self._tellers.setdefault(stage[:2], {}).setdefault(stage[2], set()).add(key)
        known = self._held.setdefault(stage, deque(maxlen=KEPT))
        if known and known[-1].placement == placement:
            if worker not in known[-1].workers:
                known[-1].workers.add(worker)
                known[-1].everywhere_at = at
            return
        # A worker that still reports an earlier version is late; one that started since counts anew.
        late = known and placement.version <= known[-1].placement.version
        if late and told.started_at <= known[-1].at:
            return
        self._rises[stage] += bool(known) and not late
        known.append(_Held(layers, placement, at, at, {worker}))

    def forget(self, key: Key) -> None:
        """Drop what is known of a producer, and of its stage if no other producer of it told a placement."""
        if self._newest.pop(key, None) is None:
            return
        stage = _stage_of(key)
        stages = self._tellers[stage[:2]]
        stages[stage[2]].remove(key)
        if stages[stage[2]]:
            return
        self._held.pop(stage, None)
        self._rises.pop(stage, None)
        del stages[stage[2]]
        if not stages:
            del self._tellers[stage[:2]]

    def of(self, key: Key) -> ToldPlacement | None:
        """What a producer told last; None: nothing that is known here."""
        return self._newest.get(key)

    def newest(self, keys: Iterable[Key]) -> list[tuple[tuple[MoeLayer, ...], Placement]]:
        """The layers of each of these producers and where their experts last were, parallel.

        Producers that never told a placement are left out.
        """
        found = [self._newest[key] for key in keys if key in self._newest]
        return [(told.layers, told.placement) for told in found]

    def rearrangements(self, server: str, model: str) -> int:
        """How often the placement's version rose, of the pipeline stage where it did most often."""
        stages = self._tellers.get((server, model), ())
        return max((self._rises[server, model, pp_rank] for pp_rank in stages), default=0)

    def history(self, server: str, model: str) -> list[DatedPlacement]:
        """All placements that are remembered, by pipeline stage; those of a stage rise in time."""
        return [
            DatedPlacement(pp_rank, item.layers, item.placement, item.at, item.everywhere_at)
            for pp_rank in sorted(self._tellers.get((server, model), ()))
            for item in self._held[server, model, pp_rank]
        ]


def _stage_of(key: Key) -> tuple[str, str, int]:
    """(server, model, pp_rank)."""
    return key[0], key[1], key[3]
