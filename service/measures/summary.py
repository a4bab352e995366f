"""The imbalance ratio across the layers of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moescope.service.measures.arrays import FloatArray


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

    worst: float | None = None
    worst_layer: int | None = None
    p50: float | None = None
    p90: float | None = None
    ratio_of_sums: float | None = None
    layers: int = 0


def summarise(layer_ids: list[int], most: FloatArray, mean: FloatArray) -> Summary:
    """Summarise the imbalance ratio over L layers.

    Args:
        layer_ids: L ids.
        most: largest load of each layer, shape [L], NaN for no sample.
        mean: mean load of each layer, shape [L], NaN for no sample.
    """
    sampled = np.flatnonzero(~np.isnan(most) & ~np.isnan(mean))
    if not sampled.size:
        return Summary()
    ratios = most[sampled] / mean[sampled]
    worst = int(np.argmax(ratios))
    p50, p90 = _percentiles(ratios, (50, 90))
    return Summary(
        worst=float(ratios[worst]),
        worst_layer=layer_ids[int(sampled[worst])],
        p50=p50,
        p90=p90,
        ratio_of_sums=float(most[sampled].sum() / mean[sampled].sum()),
        layers=int(sampled.size),
    )


def _percentiles(values: FloatArray, wanted: tuple[int, ...]) -> list[float]:
    """As ``np.percentile``, bit for bit, in a tenth of its time for a few values; none of them NaN."""
    rising, found = np.sort(values).tolist(), []
    for percent in wanted:
        at = percent / 100 * (len(rising) - 1)
        below = int(at)
        low, high = rising[below], rising[min(below + 1, len(rising) - 1)]
        share = at - below
        found.append(low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share))
    return found
