"""A model of routing: which experts a number of tokens choose, layer by layer.

Invariant: what is drawn for T tokens conserves slots exactly (each layer's counts sum to T x top-k) and no
expert is chosen twice by one token (no count is above T), as in a real router.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.measures.arrays import FloatArray
from moescope.service.simulation.crowd import Crowd


@dataclass(frozen=True, slots=True)
class Shape:
    """Layers and experts of a model.

    Attributes:
        layers: L, the number of MoE layers.
        experts: E, the number of experts in each layer.
        top_k: number of experts that a token takes in each layer.
        first_layer: index in the decoder of the first MoE layer.

    Raises:
        ValueError: a token takes more experts than there are.
    """

    layers: int = 58
    experts: int = 256
    top_k: int = 8
    first_layer: int = 3

    def __post_init__(self) -> None:
        if self.top_k > self.experts:
            raise ValueError(f"top-k {self.top_k} is above the number of experts, {self.experts}")


@dataclass(frozen=True, slots=True)
class Habits:
    """How popular experts are.

    Attributes:
        skew: exponent of Zipf's law over a layer's experts; each layer has its own order; 0 is uniform.
        drift: standard deviation of the random walk of each expert's log-popularity, per square root of a
            second; 0 stands still.
        hot: probability that a token chooses the layer's hot expert; 0 means that there is none.
        hot_moves_s: seconds after which another expert becomes the hot one.
        dead: experts of each layer that no token chooses.
        decode_shift: standard deviation of the difference between an expert's log-popularity for decode
            tokens and for prefill tokens; 0: both phases have the same habit.
        shift: standard deviation of the difference from the popularity that the seed alone makes.
    """

    skew: float = 0.3
    drift: float = 0.005
    hot: float = 0.0
    hot_moves_s: float = 60.0
    dead: int = 0
    decode_shift: float = 0.5
    shift: float = 0.0


class RoutingModel:
    """Popularity of all experts in all layers, which changes with time.

    Raises:
        ValueError: too many experts are dead for a token to take top-k of them.
    """

    def __init__(self, shape: Shape, habits: Habits, seed: int, crowd: Crowd | None = None) -> None:
        if shape.experts - habits.dead < shape.top_k:
            raise ValueError(
                f"{shape.experts} experts, {habits.dead} of them dead, leave fewer than top-k {shape.top_k}"
            )
        self.shape = shape
        self._habits = habits
        self._crowd = crowd or Crowd()
        self._rng = np.random.default_rng(seed)
        zipf = -habits.skew * np.log(np.arange(1, shape.experts + 1))
        self._order = np.argsort(self._rng.random((shape.layers, shape.experts)), axis=1)
        self._logits = np.take_along_axis(np.tile(zipf, (shape.layers, 1)), self._order, axis=1)
        self._dead = self._order >= shape.experts - habits.dead
        if habits.shift:
            off = np.random.default_rng(seed + 4).standard_normal(self._logits.shape)
            self._logits = self._logits + habits.shift * off
        aside = np.random.default_rng(seed + 2)
        self._shift = habits.decode_shift * aside.standard_normal(self._logits.shape)
        self._time = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass: popularity drifts, the hot expert moves."""
        self._time += seconds
        step = self._habits.drift * np.sqrt(seconds)
        self._logits = self._logits + step * self._rng.standard_normal(self._logits.shape)

    def inclusion(self, decode: bool = False) -> FloatArray:
        """Probability that a token of a phase chooses an expert, float64 [L, E]; rows sum to top-k."""
        logits = self._logits + self._shift if decode else self._logits
        weights = np.where(self._dead, 0.0, np.exp(logits - logits.max(axis=1, keepdims=True)))
        top_k = float(self.shape.top_k)
        if self._crowd.ratio > 1:
            members = self._crowd.members(*weights.shape)
            part = np.full(self.shape.layers, top_k * self._crowd.ratio / self._crowd.ranks)
            inside = _capped(np.where(members, weights, 0.0), part)
            return inside + _capped(np.where(members, 0.0, weights), top_k - part)
        chances = _capped(weights, np.full(self.shape.layers, top_k))
        if not self._habits.hot:
            return chances
        rows, hot = np.arange(self.shape.layers), self._hot_experts()
        weights[rows, hot] = 0.0
        rest = _capped(weights, np.full(self.shape.layers, self.shape.top_k - self._habits.hot))
        rest[rows, hot] = self._habits.hot
        return rest

    def draw(self, tokens: int, inclusion: FloatArray) -> Int64Array:
        """Slots of ``tokens`` tokens, int64 [L, E]: a normal approximation of the binomial, made exact."""
        spread = np.sqrt(tokens * inclusion * (1.0 - inclusion))
        # A dead expert gets nothing, even where the sum has to be corrected.
        most = np.where(inclusion > 0, tokens, 0)
        totals = np.full(len(inclusion), tokens * self.shape.top_k)
        return draw_exact(tokens * inclusion, spread, most, totals, self._rng)

    def _hot_experts(self) -> Int64Array:
        """The hot expert of each layer at this time, int64 [L]; it is never a dead one."""
        alive = self.shape.experts - self._habits.dead
        turn = int(self._time // self._habits.hot_moves_s)
        places = (np.arange(self.shape.layers) * 7 + turn * 11) % alive
        return np.asarray(np.argmax(self._order == places[:, np.newaxis], axis=1), dtype=np.int64)


def draw_exact(
    mean: FloatArray, spread: FloatArray, most: Int64Array, totals: Int64Array, rng: np.random.Generator
) -> Int64Array:
    """Whole numbers around ``mean``, from 0 to ``most``, whose rows sum to ``totals``.

    They are drawn from normal distributions on the condition of their sum, then rounded and corrected.

    Args:
        mean: float64 [N, E], whose rows sum to ``totals``.
        spread: standard deviation, float64 [N, E].
        most: largest value of each, int64 [N, E].
        totals: int64 [N], none above the row's sum of ``most``.
        rng: random numbers.
    """
    noise = spread * rng.standard_normal(mean.shape)
    variance = spread**2
    noise -= variance * (noise.sum(axis=1) / np.maximum(variance.sum(axis=1), 1e-300))[:, np.newaxis]
    counts = np.clip(np.rint(mean + noise), 0, most).astype(np.int64)
    missing = totals - counts.sum(axis=1)
    counts += _spread(np.maximum(missing, 0), most - counts, rng)
    counts -= _spread(np.maximum(-missing, 0), counts, rng)
    return counts


def _capped(weights: FloatArray, totals: FloatArray) -> FloatArray:
    """Scale each row to its total with no value above 1; what is above 1 goes to the others in proportion.

    Args:
        weights: float64 [L, E], none negative; each row has at least as many above 0 as its total says.
        totals: float64 [L].
    """
    chances = np.zeros_like(weights)
    full = np.zeros(weights.shape, dtype=bool)
    for _ in range(weights.shape[1]):
        open_weights = np.where(full, 0.0, weights)
        left = totals - full.sum(axis=1)
        scale = left / np.maximum(open_weights.sum(axis=1), 1e-300)
        chances = np.where(full, 1.0, open_weights * scale[:, np.newaxis])
        over = (chances > 1.0) & ~full
        if not over.any():
            break
        full |= over
    return np.clip(chances, 0.0, 1.0)


def _spread(amounts: Int64Array, room: Int64Array, rng: np.random.Generator) -> Int64Array:
    """Whole numbers in proportion to ``room`` that sum to ``amounts``, none above its room.

    Systematic rounding: the cumulative shares are cut at whole numbers after a random shift, in whole
    numbers throughout. As each share is at most its (whole) room, so is what it is rounded to.

    Args:
        amounts: int64 [L], none above the row's sum of room.
        room: int64 [L, E].
        rng: for the shift.
    """
    total = np.maximum(room.sum(axis=1), 1)[:, np.newaxis]
    shift = rng.integers(0, total)
    reached = (np.cumsum(room, axis=1) * amounts[:, np.newaxis] + shift) // total
    return np.asarray(np.diff(reached, axis=1, prepend=0))
