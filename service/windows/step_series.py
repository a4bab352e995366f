"""Straggler cost over time. Only what it needs is subtracted, not everything that a window has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.counts.totals import Totals
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
    boundaries: Sequence[tuple[ProducerState, Remembered]], layers: Sequence[int], ep_size: int
) -> list[Interval]:
    """The B - 1 intervals between B boundaries.

    Args:
        boundaries: all producers of one deployment, with their totals at each of the boundaries.
        layers: ids of the layers to take slots by EP rank of: those that are seen whole.
        ep_size: EP ranks there are now; further ones count where something went to them.
    """
    count = len(boundaries[0][1].found)
    widths = (memory.found[-1].totals.ep_slots.shape[1] for _, memory in boundaries)
    slots = np.zeros((count, len(layers), max(ep_size, *widths)))
    costs: list[list[tuple[int, Totals]]] = [[] for _ in range(count - 1)]
    truncated = [False] * (count - 1)
    for producer, memory in boundaries:
        _add_slots(slots, memory, layers)
        if memory.found[-1].totals.stragglers is None:
            truncated = [was or _truncated(memory, i) for i, was in enumerate(truncated)]
            continue
        for i, span in enumerate(memory.spans()):
            costs[i].append((producer.latest.producer.pp_rank, span.delta))
            truncated[i] |= span.truncated
    deltas = np.diff(slots, axis=0)
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


def _add_slots(slots: FloatArray, memory: Remembered, layers: Sequence[int]) -> None:
    """Add a producer's slots by EP rank at each boundary. From one boundary to the next they never sink."""
    last = memory.found[0]
    added = _slots(last.totals, layers, slots.shape[2])
    for i, snapshot in enumerate(memory.found):
        if snapshot.totals is not last.totals and snapshot.at >= last.at:
            last = snapshot
            added = _slots(last.totals, layers, slots.shape[2])
        slots[i] += added


def _slots(totals: Totals, layers: Sequence[int], ranks: int) -> FloatArray:
    """[len(layers), R]; zeros for layers that the producer doesn't have."""
    index, width = totals.layout.index, min(ranks, totals.ep_slots.shape[1])
    if len(layers) == len(totals.ep_slots) and width == ranks and all(map(index.__contains__, layers)):
        return totals.ep_slots
    result = np.zeros((len(layers), ranks))
    for i, layer in enumerate(layers):
        at = index.get(layer)
        if at is not None:
            result[i, :width] = totals.ep_slots[at, :width]
    return result
