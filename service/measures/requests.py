"""What sets single requests apart, by their slots per expert: each measure of a request is declared once.

``counts`` are a request's slots per logical expert of one layer, [..., E], where the axes before the last are
requests, layers, or both; any numeric dtype, not negative. ``window`` has the slots of all requests that are
compared, [..., E]. Results are float64, and NaN where the request has no slots there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.divergence import jensen_shannon
from moescope.service.measures.loads import Loads, Spread

PRIOR_SLOTS: Final = 0.5
"""What is added to each expert's slots of a window, so that one that no slot went to has a likelihood."""

RequestUnit = Literal["bits per slot", "standard deviations", "share"]


@dataclass(frozen=True, slots=True)
class RequestMeasure:
    """One measure of a request.

    Attributes:
        name: of the field in answers.
        title: as people read it.
        formula: in words or signs.
        meaning: one sentence or two.
        unit: what its values are.
        source: where the formula is from, or empty.
    """

    name: str
    title: str
    formula: str
    meaning: str
    unit: RequestUnit
    source: str = ""


_MEASURES: Final = (
    RequestMeasure(
        name="surprise_bits",
        title="Surprise",
        formula="- sum n_e log2 q_e / sum n_e, over all experts e of all layers; "
        "q_e = (N_e + 0.5) / (N + 0.5 E) in each layer",
        meaning="The mean negative log-likelihood of the request's n_e slots under the window's histogram "
        "N_e of the layer's E experts. Half a slot is added to each expert, so that an expert without slots "
        "has a likelihood.",
        unit="bits per slot",
        source="the half a slot: Krichevsky and Trofimov 1981, IEEE Trans. Inf. Theory 27(2)",
    ),
    RequestMeasure(
        name="surprise_score",
        title="Surprise score",
        formula="sum over layers (s - n H) / sqrt(sum over layers n V); "
        "H = - sum q_e log2 q_e, V = sum q_e (log2 q_e)^2 - H^2",
        meaning="How far the surprise s = - sum n_e log2 q_e of the request's n slots in a layer is above "
        "that of n slots drawn from the window's histogram, in standard deviations of such draws. The slots "
        "of a request are not drawn apart from each other, so ordinary requests are some deviations from 0.",
        unit="standard deviations",
    ),
    RequestMeasure(
        name="busiest_ep_rank_share",
        title="Share of the busiest EP rank",
        formula="max / sum of the request's slots over EP ranks, all layers added up",
        meaning="The share of the request's slots that went to one EP rank: 1 / N at least, 1 at most.",
        unit="share",
    ),
    RequestMeasure(
        name="similarity",
        title="Similarity",
        formula="1 - mean over layers of the Jensen-Shannon divergence, bits, of both requests' shares of "
        "slots by expert",
        meaning="1: the same shares in every layer; 0: no expert in common. The layers are those in which "
        "both have slots.",
        unit="share",
        source="Lin 1991, IEEE Trans. Inf. Theory 37(1)",
    ),
)

REQUEST_MEASURES: Final[Mapping[str, RequestMeasure]] = {item.name: item for item in _MEASURES}
"""Every measure of a request by its name."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a slot of each layer costs under a window's histogram.

    Attributes:
        bits: -log2 of each expert's likelihood, float64 [..., E].
        mean, variance: of the bits of a slot that is drawn from the histogram, float64 [...].
    """

    bits: FloatArray
    mean: FloatArray
    variance: FloatArray

    @classmethod
    def of(cls, window: Loads) -> Expected:
        """By the slots per expert of the window, [..., E], E > 0; without any, all experts are alike."""
        slots = np.asarray(window, dtype=np.float64) + PRIOR_SLOTS
        likelihood = slots / slots.sum(axis=-1, keepdims=True)
        bits = -np.log2(likelihood)
        mean = (likelihood * bits).sum(axis=-1)
        off = bits - mean[..., np.newaxis]
        return cls(bits, np.asarray(mean), np.asarray((likelihood * off * off).sum(axis=-1)))


def surprise_bits(counts: Loads, expected: Expected) -> FloatArray:
    """The surprise of requests over all layers, bits per slot.

    Args:
        counts: [..., L, E].
        expected: of these L layers.

    Returns:
        [...]
    """
    slots = np.asarray(counts, dtype=np.float64)
    total = slots.sum(axis=(-2, -1))
    return np.asarray((slots * expected.bits).sum(axis=(-2, -1)) / np.where(total > 0, total, np.nan))


def surprise_score(counts: Loads, expected: Expected) -> FloatArray:
    """The surprise of requests against what so many slots have by chance, in standard deviations.

    Where the window's slots are spread evenly, no request can be told from another: 0.

    Args:
        counts: [..., L, E].
        expected: of these L layers.

    Returns:
        [...]
    """
    slots = np.asarray(counts, dtype=np.float64)
    of_layer = slots.sum(axis=-1)
    above = (slots * (expected.bits - expected.mean[..., np.newaxis])).sum(axis=(-2, -1))
    spread = np.sqrt((of_layer * expected.variance).sum(axis=-1))
    # Bits that differ by rounding only are no spread.
    flat = spread <= 1e-9 * np.maximum(1.0, of_layer.sum(axis=-1))
    score = np.where(flat, 0.0, above / np.where(flat, 1.0, spread))
    return np.asarray(np.where(of_layer.sum(axis=-1) > 0, score, np.nan))


def busiest_share(loads: Loads) -> FloatArray:
    """The share of all slots that the busiest of N ranks has, [...], of loads [..., N]."""
    spread = Spread(loads)
    return np.asarray(spread.most / np.where(spread.idle, np.nan, spread.sum))


def similarity(counts: Loads, others: Loads) -> FloatArray:
    """How alike two requests' experts are, from 0 to 1, over the layers in which both have slots.

    The divergence is bounded, symmetric, and finite where only one of them took an expert. It compares
    shares, so that a short request and a long one can be alike. Cosine would be decided by the few experts
    that all requests take most.

    Args:
        counts, others: [..., L, E].

    Returns:
        [...], NaN where there is no such layer.
    """
    apart = jensen_shannon(counts, others)
    known = ~np.isnan(apart)
    layers = known.sum(axis=-1)
    mean = np.where(known, apart, 0.0).sum(axis=-1) / np.where(layers > 0, layers, np.nan)
    return np.asarray(1.0 - mean)
