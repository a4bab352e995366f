"""What sets single requests apart, by their slots per expert: each measure of a request is declared once.

``counts`` are slots per logical expert, [..., C]: those of all L layers one after the other, where a layer's
begin is in ``begins``, int64 [L]; any numeric dtype, not negative. The axes before the last are requests.
Results are NaN where a request has no slots. They have the float type of what the counts are compared with:
float32 is enough to rank thousands of requests, and takes half of the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.loads import Loads, Spread

PRIOR_SLOTS: Final = 0.5
"""What is added to each expert's slots of a window, so that one that no slot went to has a likelihood."""

Begins = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

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
        meaning="The mean negative log-likelihood of the request's n_e slots under the histogram N_e of the "
        "requests that are compared, N slots over E experts in the layer. Half a slot is added to each "
        "expert, so that an expert without slots has a likelihood.",
        unit="bits per slot",
        source="the half a slot: Krichevsky and Trofimov 1981, IEEE Trans. Inf. Theory 27(2)",
    ),
    RequestMeasure(
        name="surprise_score",
        title="Surprise score",
        formula="sum over layers (s - n H) / sqrt(sum over layers n V); "
        "H = - sum q_e log2 q_e, V = sum q_e (log2 q_e)^2 - H^2",
        meaning="How far the surprise s = - sum n_e log2 q_e of the request's n slots in a layer is above "
        "that of n slots drawn from the histogram, in standard deviations of such draws. The slots of a "
        "request are not drawn apart from each other, so ordinary requests are some deviations from 0, and "
        "long ones more of them than short ones.",
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
        formula="mean over layers of sum over experts sqrt(p_e q_e), p and q the requests' shares of slots",
        meaning="1: the same shares in every layer; 0: no expert in common. The layers are those in which "
        "both have slots. Two short requests of one kind are less alike than two long ones.",
        unit="share",
        source="Bhattacharyya 1943, Bull. Calcutta Math. Soc. 35",
    ),
)

REQUEST_MEASURES: Final[Mapping[str, RequestMeasure]] = {item.name: item for item in _MEASURES}
"""Every measure of a request by its name."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a slot costs under a histogram.

    Attributes:
        begins: of the layers, int64 [L].
        bits: -log2 of each expert's likelihood in its layer, [C].
        above: the bits less their mean over slots that are drawn from the layer's histogram, [C].
        variance: of the bits of such a slot, [L].
    """

    begins: Begins
    bits: Floats
    above: Floats
    variance: Floats

    @classmethod
    def of(cls, window: Loads, begins: Begins) -> Expected:
        """By the slots per expert, [C], in float64; in a layer without any, all experts are alike."""
        slots = np.asarray(window, dtype=np.float64) + PRIOR_SLOTS
        experts = np.diff(begins, append=len(slots))
        likelihood = slots / np.repeat(np.add.reduceat(slots, begins), experts)
        bits = -np.log2(likelihood)
        above = bits - np.repeat(np.add.reduceat(likelihood * bits, begins), experts)
        return cls(begins, bits, above, np.add.reduceat(likelihood * above * above, begins))

    def among(self, chosen: npt.NDArray[np.bool_]) -> Expected:
        """The same where slots of other layers than the chosen ones, bool [L], cost nothing."""
        in_them = np.repeat(chosen, np.diff(self.begins, append=len(self.bits)))
        return Expected(
            self.begins,
            np.where(in_them, self.bits, 0.0),
            np.where(in_them, self.above, 0.0),
            np.where(chosen, self.variance, 0.0),
        )

    def rough(self) -> Expected:
        """In float32."""
        return Expected(
            self.begins,
            self.bits.astype(np.float32),
            self.above.astype(np.float32),
            self.variance.astype(np.float32),
        )


def surprise_bits(counts: Loads, of_layer: Loads, expected: Expected) -> Floats:
    """The surprise of requests over all layers, bits per slot, [...].

    Args:
        counts: [..., C].
        of_layer: their slots in each layer, [..., L].
        expected: of these layers.
    """
    total = np.asarray(of_layer, dtype=expected.bits.dtype).sum(axis=-1)
    return np.asarray(_cost(counts, expected.bits) / np.where(total > 0, total, np.nan))


def surprise_score(counts: Loads, of_layer: Loads, expected: Expected) -> Floats:
    """The surprise of requests against what so many slots have by chance, in standard deviations, [...].

    Where the histogram is flat, no request can be told from another: 0. See :func:`surprise_bits`.
    """
    slots = np.asarray(of_layer, dtype=expected.bits.dtype)
    total = slots.sum(axis=-1)
    above = _cost(counts, expected.above)
    spread = np.sqrt(_cost(slots, expected.variance))
    # Bits that differ by rounding only are no spread.
    flat = spread <= _ROUNDING * expected.bits.max(initial=1) * np.sqrt(total)
    score = np.where(flat, 0, above / np.where(flat, 1, spread))
    return np.asarray(np.where(total > 0, score, np.nan), dtype=expected.bits.dtype)


_ROUNDING: Final = 1e-6
"""Half of the digits of float32, and more than the rounding of float64."""


def busiest_share(loads: Loads) -> FloatArray:
    """The share of all slots that the busiest of N ranks has, [...], of loads [..., N]."""
    spread = Spread(loads)
    return np.asarray(spread.most / np.where(spread.idle, np.nan, spread.sum))


def similarity(counts: Loads, of_layer: Loads, to: Floats, begins: Begins) -> Floats:
    """How alike the experts of requests and of one other are, from 0 to 1, over the layers that both have.

    It compares shares, so that a short request and a long one can be alike. Cosine would be decided by the
    few experts that all requests take most.

    Args:
        counts: [..., C].
        of_layer: their slots in each layer, [..., L].
        to: what :func:`roots_of` says of the other request, [C].

    Returns:
        [...], NaN where there is no such layer.
    """
    roots = np.sqrt(np.asarray(counts, dtype=to.dtype))
    roots *= to
    slots = np.asarray(of_layer, dtype=to.dtype)
    both = (slots > 0) & (np.add.reduceat(to, begins) > 0)
    alike = np.add.reduceat(roots, begins, axis=-1) / np.sqrt(np.where(both, slots, 1))
    layers = both.sum(axis=-1)
    return np.asarray(np.where(both, alike, 0).sum(axis=-1) / np.where(layers > 0, layers, np.nan))


def roots_of(counts: Loads, begins: Begins) -> FloatArray:
    """The square roots of the shares of slots within each layer, float64 [C]; 0 where a layer has none."""
    slots = np.asarray(counts, dtype=np.float64)
    totals = np.repeat(np.add.reduceat(slots, begins), np.diff(begins, append=len(slots)))
    return np.asarray(np.sqrt(slots / np.where(totals > 0, totals, 1.0)))


def _cost(counts: Loads, each: Floats) -> Floats:
    """The sum over the last axis of counts times what each costs.

    A product of matrices would take as many threads as there are cores, for each caller.
    """
    return np.asarray(np.einsum("...c,c->...", np.asarray(counts, dtype=each.dtype), each))
