"""Straggler cost over time. Only what it needs is subtracted, not everything that a window has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.counts.ep_slots import EpSlots, carried
from moescope.service.counts.totals import Totals, no_totals
from moescope.service.live.past import Remembered
from moescope.service.live.producers import ProducerState
from moescope.service.measures.arrays import FloatArray
from moescope.service.windows.step_window import Cost, cost_in


@dataclass(frozen=True, slots=True)
class Interval:
    """One interval: its joined steps, and the sums of max and of mean of its slots by EP rank over layers."""

    cost: Cost
    windowed: tuple[float, float]
    truncated: bool


def intervals_of(
    boundaries: Iterable[tuple[ProducerState, Remembered]], count: int, layers: Sequence[int], ep_size: int
) -> list[Interval]:
    """The B - 1 intervals between B boundaries.

    Args:
        boundaries: all producers of one deployment, with their totals at each of the boundaries; each is let
            go before the next one.
        count: B.
        layers: ids of the layers to take slots by EP rank of: those that are seen whole.
        ep_size: EP ranks there are now; further ones count where something went to them.
    """
    slots = _Slots(count, layers, ep_size)
    costs: list[list[tuple[int, Totals]]] = [[] for _ in range(count - 1)]
    truncated = [False] * (count - 1)
    for producer, memory in boundaries:
        slots.add(memory)
        if memory.found[-1].totals.stragglers is None:
            truncated = [was or _truncated(memory, i) for i, was in enumerate(truncated)]
            continue
        for i, span in enumerate(memory.spans()):
            delta = span.delta
            steps = replace(no_totals(delta.layout), stragglers=delta.stragglers)  # the counts may be large
            costs[i].append((producer.latest.producer.pp_rank, steps))
            truncated[i] |= span.truncated
    deltas = slots.differences()
    most = deltas.max(axis=2).sum(axis=1)
    mean = (deltas.sum(axis=2) / np.maximum(ep_size, _used(deltas))).sum(axis=1)
    return [
        Interval(cost_in(costs[i]), (float(most[i]), float(mean[i])), truncated[i]) for i in range(count - 1)
    ]


def _used(slots: FloatArray) -> Int64Array:
    """One past the last EP rank that got something, [..., R] to [...]."""
    got = slots != 0
    return np.where(got.any(axis=-1), got.shape[-1] - np.argmax(got[..., ::-1], axis=-1), 0)


def _truncated(memory: Remembered, i: int) -> bool:
    """Whether counts may be missing before the interval after boundary ``i``; see ``history.between``."""
    start = memory.instants[i]
    return start is not None and memory.found[i].at > start and memory.birth < start


class _Slots:
    """Slots by EP rank at B boundaries, of some layers, summed over producers."""

    def __init__(self, boundaries: int, layers: Sequence[int], ranks: int) -> None:
        self._layers, self._ranks = layers, ranks
        self._whole = np.zeros((boundaries, len(layers), ranks), dtype=np.int64)
        self._parts: Int64Array | None = None

    def add(self, memory: Remembered) -> None:
        """Add a producer's. From one boundary to the next they never sink."""
        self._widen(memory.found[-1].totals.ep_slots.ranks)
        last = memory.found[0]
        added = self._of(last.totals)
        for i, snapshot in enumerate(memory.found):
            if snapshot.totals is not last.totals and snapshot.at >= last.at:
                last = snapshot
                added = self._of(last.totals)
            self._whole[i] += added.whole
            if added.parts is not None:
                if self._parts is None:
                    self._parts = np.zeros_like(self._whole)
                self._parts[i] += added.parts

    def _widen(self, ranks: int) -> None:
        """Have room for so many ranks."""
        more = ranks - self._ranks
        if more <= 0:
            return
        room = ((0, 0), (0, 0), (0, more))
        self._ranks, self._whole = ranks, np.pad(self._whole, room)
        self._parts = None if self._parts is None else np.pad(self._parts, room)

    def differences(self) -> FloatArray:
        """What came between neighbouring boundaries, float64 [B - 1, layers, ranks]."""
        whole = np.diff(self._whole, axis=0)
        if self._parts is None:
            return EpSlots(whole).floats()
        return carried(whole, np.diff(self._parts, axis=0)).floats()

    def _of(self, totals: Totals) -> EpSlots:
        """[layers, ranks]; zeros for layers that the producer doesn't have."""
        index, slots = totals.layout.index, totals.ep_slots
        width = min(self._ranks, slots.ranks)
        if (
            len(self._layers) == len(slots.whole)
            and width == self._ranks
            and all(map(index.__contains__, self._layers))
        ):
            return slots
        mine = [i for i, layer in enumerate(self._layers) if layer in index]
        theirs = [index[self._layers[i]] for i in mine]
        size = (len(self._layers), self._ranks)
        whole = np.zeros(size, dtype=np.int64)
        whole[mine, :width] = slots.whole[theirs, :width]
        if slots.parts is None:
            return EpSlots(whole)
        parts = np.zeros(size, dtype=np.int64)
        parts[mine, :width] = slots.parts[theirs, :width]
        return EpSlots(whole, parts)
