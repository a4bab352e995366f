"""Sums over joined steps of what the EP ranks had to do: cumulative, or the difference of two."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.counts.layers import Layout
from moescope.service.measures.arrays import FloatArray


@dataclass(frozen=True, eq=False, slots=True)
class Stragglers:
    """Steps of which the loads of all ranks are known, over L layers and R EP ranks.

    A step's load of an EP rank is the slots, of all DP ranks' tokens, whose expert the rank holds. Where vLLM
    splits a step into microbatches, the ranks wait for each other in each: each has a busiest EP rank.

    Attributes:
        max_slots: sum over steps, and their microbatches, of the busiest EP rank's load, int64 [L].
        mean_slots: sum over steps of the EP ranks' mean load, float64 [L].
        busy_steps: steps in which the layer had any slot, int64 [L].
        hottest: busy steps in which each EP rank was busiest, float64 [L, R]; ranks that tie share a step, as
            do those of its microbatches with any slot.
        caused: waiting that each EP rank caused, slots, float64 [L, R]: the sum of max - mean over the steps,
            and microbatches, in which it was the busiest; ranks that tie share it. Over ranks it adds up to
            ``max_slots - mean_slots``, but for steps that were stored before it was counted: it has none of
            theirs.
        joined: steps whose loads were known, dummy steps of all ranks included.
        incomplete: steps that were given up because the loads of some rank didn't come.
    """

    max_slots: Int64Array
    mean_slots: FloatArray
    busy_steps: Int64Array
    hottest: FloatArray
    caused: FloatArray
    joined: int = 0
    incomplete: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        arrays = (self.max_slots, self.mean_slots, self.busy_steps, self.hottest, self.caused)
        return sum(array.nbytes for array in arrays)

    def plus(self, other: Stragglers, sign: int = 1) -> Stragglers:
        """Sum of both, of one layout; or the difference, for a sign of -1."""
        ranks = max(self.hottest.shape[1], other.hottest.shape[1])
        return Stragglers(
            max_slots=self.max_slots + sign * other.max_slots,
            mean_slots=self.mean_slots + sign * other.mean_slots,
            busy_steps=self.busy_steps + sign * other.busy_steps,
            hottest=_wide(self.hottest, ranks) + sign * _wide(other.hottest, ranks),
            caused=_wide(self.caused, ranks) + sign * _wide(other.caused, ranks),
            joined=self.joined + sign * other.joined,
            incomplete=self.incomplete + sign * other.incomplete,
        )

    def widened(self, old: Layout, layout: Layout) -> Stragglers:
        """These sums in the arrays of another layout, which has all layers of the old one."""
        if old == layout:
            return self
        return Stragglers(
            max_slots=layout.widened_layers(old, self.max_slots),
            mean_slots=layout.widened_ranks(old, self.mean_slots[:, np.newaxis], 1)[:, 0],
            busy_steps=layout.widened_layers(old, self.busy_steps),
            hottest=layout.widened_ranks(old, self.hottest, self.hottest.shape[1]),
            caused=layout.widened_ranks(old, self.caused, self.caused.shape[1]),
            joined=self.joined,
            incomplete=self.incomplete,
        )


def no_stragglers(layers: int, ranks: int = 0) -> Stragglers:
    """The sums over no step."""
    none = np.zeros(layers, dtype=np.int64)
    by_rank = np.zeros((layers, ranks))
    return Stragglers(none, np.zeros(layers), none, by_rank, by_rank)


def stragglers_of(
    loads: Int64Array, joined: int, incomplete: int = 0, step_of: Int64Array | None = None
) -> Stragglers:
    """The sums over n steps, or microbatches of steps.

    Args:
        loads: integers [n, L, R], of the joined steps that had any slot, or of the microbatches of these.
        joined: how many steps were joined, those without a slot included.
        incomplete: how many were given up.
        step_of: [n], rising, where steps are split: which entries are of one step; None: each is a step.
    """
    layers, ranks = loads.shape[1:]
    if not len(loads):
        return replace(no_stragglers(layers, ranks), joined=joined, incomplete=incomplete)
    most = loads.max(axis=2)
    busy = most > 0
    hot = (loads == most[:, :, np.newaxis]) & busy[:, :, np.newaxis]
    ties = sharing = np.maximum(hot.sum(axis=2), 1)
    busy_steps = busy
    if step_of is not None:
        begins = np.diff(step_of, prepend=-1) > 0
        parts = np.add.reduceat(busy, np.flatnonzero(begins), axis=0, dtype=np.int64)
        busy_steps = parts > 0
        sharing = sharing * np.maximum(parts, 1)[np.cumsum(begins) - 1]
    waiting = most - loads.sum(axis=2, dtype=np.int64) / ranks
    return Stragglers(
        max_slots=most.sum(axis=0, dtype=np.int64),
        mean_slots=loads.sum(axis=(0, 2), dtype=np.int64) / ranks,
        busy_steps=busy_steps.sum(axis=0, dtype=np.int64),
        hottest=(hot / sharing[:, :, np.newaxis]).sum(axis=0),
        caused=(hot * (waiting / ties)[:, :, np.newaxis]).sum(axis=0),
        joined=joined,
        incomplete=incomplete,
    )


def _wide(by_rank: FloatArray, ranks: int) -> FloatArray:
    if by_rank.shape[1] == ranks:
        return by_rank
    wide = np.zeros((by_rank.shape[0], ranks))
    wide[:, : by_rank.shape[1]] = by_rank
    return wide
