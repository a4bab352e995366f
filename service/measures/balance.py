"""Measures of balance, each defined once: pure numpy, vectorised over every axis but the last.

In all of them ``loads`` has shape [..., N]: what each of N ranks (or experts) got, in slots or tokens, any
numeric dtype, not negative; the result has shape [...], float64. Counts up to 2**53 convert exactly. Where
nothing was routed (the loads sum to zero, or N is zero) the result is NaN, which means *no sample*: an idle
layer is neither balanced nor unbalanced.

``imbalance_ratio`` and ``balancedness`` are each other's reciprocal, and peers mix them up: here the first
is at least 1 (1 is best), the second at most 1 (1 is best).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Loads = npt.NDArray[Any]


def max_and_mean(loads: Loads) -> tuple[FloatArray, FloatArray]:
    """Largest and mean load, each of shape [...]; NaN where nothing was routed."""
    values = np.asarray(loads, dtype=np.float64)
    if values.shape[-1] == 0:
        nothing = np.full(values.shape[:-1], np.nan)
        return nothing, nothing.copy()
    idle = values.sum(axis=-1) <= 0
    return (
        np.where(idle, np.nan, values.max(axis=-1)),
        np.where(idle, np.nan, values.mean(axis=-1)),
    )


def imbalance_ratio(loads: Loads) -> FloatArray:
    """Max / mean, from 1 (best) to N. The slowest rank's load as a multiple of a fair share."""
    most, mean = max_and_mean(loads)
    return np.asarray(most / mean)


def balancedness(loads: Loads) -> FloatArray:
    """Mean / max, from 1 / N to 1 (best). The share of the slowest rank's time in which a rank has work."""
    most, mean = max_and_mean(loads)
    return np.asarray(mean / most)


def max_vio(loads: Loads) -> FloatArray:
    """MaxVio, (max - mean) / mean, from 0 (best) to N - 1 (arXiv 2408.15664, section 4.1; over experts)."""
    most, mean = max_and_mean(loads)
    return np.asarray((most - mean) / mean)


def coefficient_of_variation(loads: Loads) -> FloatArray:
    """Population standard deviation / mean, from 0 (best) to sqrt(N - 1)."""
    relative = _relative(loads)
    return np.asarray(np.sqrt(_mean((relative - 1.0) ** 2)))


def normalised_entropy(loads: Loads) -> FloatArray:
    """exp(H) / N with H = -sum(p ln p), from 1 / N (one gets all) to 1 (best).

    The effective number of ranks or experts (the perplexity of the shares) over their true number; not the
    other quantity that goes by this name, H / ln N.
    """
    relative = _relative(loads)
    size = relative.shape[-1]
    if size == 0:
        return np.full(relative.shape[:-1], np.nan)
    return np.asarray(_perplexity(relative) / size)


def gini(loads: Loads) -> FloatArray:
    """Gini coefficient, from 0 (best) to 1 - 1 / N.

    With the shares p sorted to rise: sum over i = 1..N of (2 i - N - 1) p_i, over N.
    """
    relative = _relative(loads)
    size = relative.shape[-1]
    if size == 0:
        return np.full(relative.shape[:-1], np.nan)
    return _gini(np.sort(relative, axis=-1))


def dead(loads: Loads) -> FloatArray:
    """How many of the N got nothing at all, from 0 to N - 1."""
    values = np.asarray(loads)
    none = (values == 0).sum(axis=-1).astype(np.float64)
    return np.where(values.astype(np.float64).sum(axis=-1) <= 0, np.nan, none)


def dead_fraction(loads: Loads) -> FloatArray:
    """The share of the N that got nothing, from 0 (best) to 1 - 1 / N."""
    return np.asarray(dead(loads) / max(1, np.asarray(loads).shape[-1]))


def top_share(loads: Loads, k: int) -> FloatArray:
    """Share of everything that the k largest got, from k / N (best) to 1; all of it where k >= N.

    Raises:
        ValueError: k is not positive.
    """
    if k < 1:
        raise ValueError(f"the share of the top {k}: give 1 or more")
    relative = _relative(loads)
    size = relative.shape[-1]
    if size == 0:
        return np.full(relative.shape[:-1], np.nan)
    return _largest(np.sort(relative, axis=-1), k)


def top_tenth_share(loads: Loads) -> FloatArray:
    """Share of everything that the largest tenth got: the top k with k = N / 10, rounded up."""
    return top_share(loads, _tenth(np.asarray(loads).shape[-1]))


MEASURES: Final[Mapping[str, Callable[[Loads], FloatArray]]] = {
    "imbalance_ratio": imbalance_ratio,
    "balancedness": balancedness,
    "max_vio": max_vio,
    "coefficient_of_variation": coefficient_of_variation,
    "normalised_entropy": normalised_entropy,
    "gini": gini,
    "dead": dead,
    "dead_fraction": dead_fraction,
    "top_tenth_share": top_tenth_share,
}


def measure_all(loads: Loads) -> dict[str, FloatArray]:
    """Every one of :data:`MEASURES` at once, keyed alike; equal to each alone, and several times as fast."""
    values = np.asarray(loads, dtype=np.float64)
    size = values.shape[-1]
    if size == 0:
        return {name: np.full(values.shape[:-1], np.nan) for name in MEASURES}
    most, mean = max_and_mean(values)
    relative = values / mean[..., np.newaxis]
    none = np.where(np.isnan(mean), np.nan, size - np.count_nonzero(values, axis=-1))
    found = {
        "imbalance_ratio": most / mean,
        "balancedness": mean / most,
        "max_vio": (most - mean) / mean,
        "normalised_entropy": _perplexity(relative) / size,
        "dead": none,
        "dead_fraction": none / size,
    }
    relative.sort(axis=-1)  # its own copy
    found["gini"] = _gini(relative)
    found["top_tenth_share"] = _largest(relative, _tenth(size))
    relative -= 1.0
    found["coefficient_of_variation"] = np.sqrt(np.einsum("...i,...i->...", relative, relative) / size)
    return {name: np.asarray(found[name]) for name in MEASURES}


@dataclass(frozen=True, slots=True)
class Summary:
    """The imbalance ratio across layers; every value is None when no layer has a sample.

    Attributes:
        worst: the largest ratio; ``worst_layer`` is the id of its layer (the lowest, among equals).
        p50: median over layers; ``p90`` the 90th percentile (both with linear interpolation).
        ratio_of_sums: sum over layers of max / sum over layers of mean: an estimate of the straggler's
            cost, because the ranks wait for each other in every layer. A mean of ratios would hide it.
        layers: how many layers had a sample.
    """

    worst: float | None
    worst_layer: int | None
    p50: float | None
    p90: float | None
    ratio_of_sums: float | None
    layers: int


def summarise(layer_ids: list[int], most: FloatArray, mean: FloatArray) -> Summary:
    """Summarise the imbalance ratio over L layers.

    Args:
        layer_ids: L ids.
        most: largest load of each layer, shape [L], NaN for no sample.
        mean: mean load of each layer, shape [L], NaN for no sample.
    """
    sampled = np.flatnonzero(~np.isnan(most) & ~np.isnan(mean))
    if not sampled.size:
        return Summary(None, None, None, None, None, 0)
    ratios = most[sampled] / mean[sampled]
    worst = int(np.argmax(ratios))
    p50, p90 = np.percentile(ratios, [50, 90])
    return Summary(
        worst=float(ratios[worst]),
        worst_layer=layer_ids[int(sampled[worst])],
        p50=float(p50),
        p90=float(p90),
        ratio_of_sums=float(most[sampled].sum() / mean[sampled].sum()),
        layers=int(sampled.size),
    )


def _relative(loads: Loads) -> FloatArray:
    """Loads / mean, shape [..., N]; NaN where nothing was routed."""
    values = np.asarray(loads, dtype=np.float64)
    _, mean = max_and_mean(values)
    return np.asarray(values / mean[..., np.newaxis])


def _perplexity(relative: FloatArray) -> FloatArray:
    """exp(H) of loads in units of their mean: H = ln N - sum(r ln r) / N, with 0 ln 0 = 0."""
    size = relative.shape[-1]
    logs = np.log(np.where(relative > 0, relative, 1.0))
    return np.asarray(size * np.exp(-np.einsum("...i,...i->...", relative, logs) / size))


def _gini(rising: FloatArray) -> FloatArray:
    """Of loads in units of their mean, sorted to rise."""
    size = rising.shape[-1]
    return np.asarray(rising @ (2.0 * np.arange(1, size + 1) - size - 1) / size**2)


def _largest(rising: FloatArray, k: int) -> FloatArray:
    """Share of the k largest, of loads in units of their mean, sorted to rise."""
    return np.asarray(rising[..., -k:].sum(axis=-1) / rising.shape[-1])


def _tenth(size: int) -> int:
    return max(1, -(-size // 10))


def _mean(values: FloatArray) -> FloatArray:
    """Mean over the last axis; NaN, without a warning, where it is empty."""
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(values.mean(axis=-1))
