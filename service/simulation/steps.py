"""Single steps of a simulated rank: tokens of either phase, and the slots that they send to every EP rank.

Invariant: a layer's loads in a step sum to the step's tokens x top-k. Over all steps, the loads of an EP rank
sum to the slots of its experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.measures.arrays import FloatArray
from moescope.service.simulation.routing import draw_exact

PREFILL_STEPS: Final = 0.2
"""Share of a rank's steps that may have prefill tokens; every step may have decode tokens."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of n steps by phase, int64 [n] each."""

    prefill: Int64Array
    decode: Int64Array

    @property
    def all(self) -> Int64Array:
        """Tokens of both phases, int64 [n]."""
        return self.prefill + self.decode


def draw_tokens(steps: int, per_step: float, decode_share: float, rng: np.random.Generator) -> Tokens:
    """Poisson-distributed tokens of n steps: decode in all of them, prefill in some.

    Args:
        steps: n.
        per_step: tokens of a step on average, both phases together.
        decode_share: share of them that are of decode.
        rng: random numbers.
    """
    some = rng.random(steps) < PREFILL_STEPS
    prefill = rng.poisson(per_step * (1 - decode_share) / PREFILL_STEPS, steps) * some
    return Tokens(prefill.astype(np.int64), rng.poisson(per_step * decode_share, steps).astype(np.int64))


@dataclass(frozen=True, slots=True)
class Skew:
    """One EP rank is hot in each step: rank s modulo R in step s.

    ``ratio`` is the hot rank's load over the mean of all EP ranks; 1: none is hot.
    """

    ratio: float = 1.0

    def apply(self, masses: FloatArray, steps: Int64Array) -> FloatArray:
        """Slots that a token of each step sends to every EP rank on average, float64 [n, L, R].

        Args:
            masses: these slots without a hot rank, float64 [L, R].
            steps: numbers of the steps, int64 [n].
        """
        ranks = masses.shape[1]
        every = np.repeat(masses[np.newaxis], len(steps), axis=0)
        if self.ratio <= 1.0:
            return every
        hot = (np.arange(ranks) == (steps % ranks)[:, np.newaxis])[:, np.newaxis, :]
        whole = masses.sum(axis=1)[:, np.newaxis]
        target = whole * self.ratio / ranks
        rest = np.where(hot, 0.0, every)
        rest *= (whole - target) / rest.sum(axis=2, keepdims=True)
        return np.where(hot, target, rest)


class Router:
    """Draws where the tokens of a phase go, while popularity and placement stand still.

    Args:
        inclusion: probability that a token chooses an expert, float64 [L, E].
        owners: EP rank of every expert, int64 [L, E].
        ranks: R.
        skew: how hot the hot EP rank of a step is.
    """

    def __init__(self, inclusion: FloatArray, owners: Int64Array, ranks: int, skew: Skew) -> None:
        layers, experts = inclusion.shape
        self._ranks, self._skew = ranks, skew
        self._top_k = np.rint(inclusion.sum(axis=1)).astype(np.int64)
        flat = (np.arange(layers)[:, np.newaxis] * ranks + owners).ravel()
        masses = np.bincount(flat, inclusion.ravel(), layers * ranks).astype(np.float64)
        self._masses: FloatArray = masses.reshape(layers, ranks)
        alive = (inclusion > 0).ravel().astype(np.float64)
        self._alive = np.bincount(flat, alive, layers * ranks).reshape(layers, ranks).astype(np.int64)
        # The experts of each EP rank side by side, padded to the largest number of them.
        order = np.argsort(flat, kind="stable")
        sizes = np.bincount(flat, minlength=layers * ranks)
        place = np.arange(layers * experts) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self._cell = (flat[order], place)
        self._order = order
        self._grouped = np.zeros((layers * ranks, int(sizes.max())))
        self._grouped[self._cell] = inclusion.ravel()[order]

    def draw(
        self, steps: Int64Array, tokens: Int64Array, rng: np.random.Generator
    ) -> tuple[Int64Array, Int64Array]:
        """Slots of n steps' tokens: by expert, int64 [L, E], and by step and EP rank, int64 [n, L, R].

        Args:
            steps: numbers of the steps, int64 [n].
            tokens: tokens of each step, int64 [n].
            rng: random numbers.
        """
        layers, ranks = self._masses.shape
        loads = np.zeros((len(steps), layers, ranks), dtype=np.int64)
        busy = np.flatnonzero(tokens)
        if busy.size:
            loads[busy] = self._loads(steps[busy], tokens[busy], rng)
        return self._experts(loads.sum(axis=0), int(tokens.sum()), rng), loads

    def _loads(self, steps: Int64Array, tokens: Int64Array, rng: np.random.Generator) -> Int64Array:
        masses = np.minimum(self._skew.apply(self._masses, steps), self._alive)
        mean = tokens[:, np.newaxis, np.newaxis] * masses
        spread = np.sqrt(mean * (1.0 - masses / np.maximum(self._alive, 1)))
        most = tokens[:, np.newaxis, np.newaxis] * self._alive
        totals = (tokens[:, np.newaxis] * self._top_k).ravel()
        flat = (-1, self._ranks)
        drawn = draw_exact(mean.reshape(flat), spread.reshape(flat), most.reshape(flat), totals, rng)
        return drawn.reshape(mean.shape)

    def _experts(self, slots: Int64Array, tokens: int, rng: np.random.Generator) -> Int64Array:
        """Deal the slots of each EP rank, int64 [L, R], to its experts; the slots by expert, int64 [L, E].

        No expert gets more slots than there are tokens.
        """
        totals = slots.ravel()
        share = self._grouped / np.maximum(self._grouped.sum(axis=1, keepdims=True), 1e-300)
        mean = totals[:, np.newaxis] * share
        most = np.where(self._grouped > 0, tokens, 0)
        grouped = draw_exact(mean, np.sqrt(mean * (1.0 - share)), most, totals, rng)
        counts = np.zeros(self._order.size, dtype=np.int64)
        counts[self._order] = grouped[self._cell]
        return counts.reshape(slots.shape[0], -1)
