"""The measures of balance, each declared once: answers, page, metrics, boards and documents are made from it.

To add one, add it to ``_MEASURES``, with a test of its numbers, and run ``python -m
moescope.service.measures.document``, ``python -m moescope.dashboards.build`` and the other commands that
failing tests name.

``imbalance_ratio`` and ``balancedness`` are each other's reciprocal, and peers mix them up: here the first
is at least 1 (1 is best), the second at most 1 (1 is best).

A measure of loads that sum to zero is NaN, which means *no sample*: an idle layer is neither balanced nor
unbalanced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np

from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.loads import Loads, Spread
from moescope.service.measures.measure import Gauge, Limit, Measure

HOT: Final = 3.0
"""A rank or an expert is hot from this multiple of a fair share on."""


def _coefficient_of_variation(spread: Spread) -> FloatArray:
    off = spread.relative - 1.0
    return np.asarray(np.sqrt(np.einsum("...i,...i->...", off, off) / spread.size))


def _hot(spread: Spread) -> FloatArray:
    enough = HOT * spread.sum / spread.size
    hot = spread.values >= enough[..., np.newaxis]
    return spread.unless_idle(np.count_nonzero(hot, axis=-1))


def _perplexity(spread: Spread) -> FloatArray:
    """exp(H), with H = ln N - sum(r ln r) / N of the loads r in units of their mean, and 0 ln 0 = 0."""
    logs = np.log(np.where(spread.relative > 0, spread.relative, 1.0))
    return np.asarray(spread.size * np.exp(-np.einsum("...i,...i->...", spread.relative, logs) / spread.size))


def _gini(spread: Spread) -> FloatArray:
    """With the shares p sorted to rise: sum over i = 1..N of (2 i - N - 1) p_i, over N."""
    size = spread.size
    return np.asarray(spread.rising @ (2.0 * np.arange(1, size + 1) - size - 1) / size**2)


def top_share(spread: Spread, k: int) -> FloatArray:
    """Share of everything that the k largest of N > 0 got, from k / N (best) to 1; all of it where k >= N.

    Returns:
        float64 [...], NaN where nothing was routed.

    Raises:
        ValueError: k is not positive.
    """
    if k < 1:
        raise ValueError(f"the share of the top {k}: give 1 or more")
    return np.asarray(spread.rising[..., -k:].sum(axis=-1) / spread.size)


_MEASURES: Final = (
    Measure(
        name="imbalance_ratio",
        title="Imbalance ratio",
        formula="max / mean",
        meaning="The busiest one's load as a multiple of a fair share.",
        unit="ratio",
        best="1",
        worst="N",
        compute=lambda spread: spread.most / spread.mean,
        gauge=Gauge(
            name="moescope_layer_ep_imbalance_ratio",
            axis="over_ep_ranks",
            title="EP imbalance ratio",
            help="Max / mean of slots over EP ranks; 1 is best.",
            notable=1.3,
            bad=2.0,
        ),
    ),
    Measure(
        name="balancedness",
        title="Balancedness",
        formula="mean / max",
        meaning="The share of the busiest one's time in which an average one has work.",
        unit="share",
        best="1",
        worst="1 / N",
        compute=lambda spread: spread.mean / spread.most,
        source="inverse of the imbalance ratio",
    ),
    Measure(
        name="max_vio",
        title="MaxVio",
        formula="(max - mean) / mean",
        meaning="How far the busiest one is above a fair share, as a multiple of it.",
        unit="ratio",
        best="0",
        worst="N - 1",
        compute=lambda spread: (spread.most - spread.mean) / spread.mean,
        source="arXiv 2408.15664, section 4.1, over experts",
        gauge=Gauge(
            name="moescope_layer_max_vio_ratio",
            axis="over_experts",
            title="MaxVio",
            help="MaxVio, (max - mean) / mean of slots over experts; 0 is best.",
            notable=2,
            bad=4,
            limit=Limit(
                name="moescope_layer_max_vio_limit_ratio",
                help="The most that MaxVio can be, where each token chooses the same expert: "
                "experts / top-k - 1.",
                of=lambda experts, top_k: experts / top_k - 1,
            ),
        ),
    ),
    Measure(
        name="coefficient_of_variation",
        title="Coefficient of variation",
        formula="population standard deviation / mean",
        meaning="How far a load typically is from a fair share, as a multiple of it.",
        unit="ratio",
        best="0",
        worst="sqrt(N - 1)",
        compute=_coefficient_of_variation,
    ),
    Measure(
        name="normalised_entropy",
        title="Normalised entropy",
        formula="exp(H) / N",
        meaning="The effective number of ranks or experts, over their number. H is the entropy of the shares "
        "in nats. H / ln N, which others call so, is another quantity.",
        unit="share",
        best="1",
        worst="1 / N",
        compute=lambda spread: _perplexity(spread) / spread.size,
        gauge=Gauge(
            name="moescope_layer_normalised_entropy_ratio",
            axis="over_experts",
            title="Normalised entropy",
            help="exp(H) / N of slots over experts; 1 is best.",
        ),
    ),
    Measure(
        name="gini",
        title="Gini coefficient",
        formula="mean absolute difference of all pairs / (2 mean)",
        meaning="How unequal all loads are among each other.",
        unit="share",
        best="0",
        worst="1 - 1 / N",
        compute=_gini,
    ),
    Measure(
        name="dead",
        title="Dead",
        formula="number of loads that are 0",
        meaning="How many got nothing in the window: dead experts, or idle ranks.",
        unit="number",
        best="0",
        worst="N - 1",
        compute=lambda spread: spread.zeros,
        whole=True,
        gauge=Gauge(
            name="moescope_layer_dead_experts",
            axis="over_experts",
            title="Dead experts",
            help="Experts that no token chose.",
            notable=1,
        ),
    ),
    Measure(
        name="dead_fraction",
        title="Dead fraction",
        formula="dead / N",
        meaning="The share of ranks or experts that got nothing.",
        unit="share",
        best="0",
        worst="1 - 1 / N",
        compute=lambda spread: spread.zeros / spread.size,
    ),
    Measure(
        name="hot",
        title="Hot",
        formula="number of loads that are 3 means or more",
        meaning="How many got 3 times a fair share or more: hot experts, or hot ranks.",
        unit="number",
        best="0",
        worst="N / 3, rounded down",
        compute=_hot,
        whole=True,
        gauge=Gauge(
            name="moescope_layer_hot_experts",
            axis="over_experts",
            title="Hot experts",
            help="Experts with 3 times a fair share of slots or more; 0 is best.",
            notable=1,
        ),
    ),
    Measure(
        name="top_tenth_share",
        title="Share of the top tenth",
        formula="the k largest loads / all of them, k = N / 10 rounded up",
        meaning="What the busiest tenth carries.",
        unit="share",
        best="k / N",
        worst="1",
        compute=lambda spread: top_share(spread, max(1, -(-spread.size // 10))),
    ),
)

MEASURES: Final[Mapping[str, Measure]] = {measure.name: measure for measure in _MEASURES}
"""Every measure by its name, in the order of answers."""
GAUGES: Final[Mapping[str, Gauge]] = {
    measure.name: measure.gauge for measure in _MEASURES if measure.gauge is not None
}
"""The gauges of those measures that have one, by the measure's name."""


def measure_all(loads: Loads, names: Collection[str] = MEASURES) -> dict[str, FloatArray]:
    """The named ones of :data:`MEASURES` at once; equal to each alone, and several times as fast.

    ``loads`` has shape [..., N]; each measure is float64 [...].
    """
    spread = Spread(loads)
    return {measure.name: measure.of(spread) for measure in _MEASURES if measure.name in names}
