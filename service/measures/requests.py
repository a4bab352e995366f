"""What sets single requests apart, by their slots per expert: each measure of a request is declared once.

``counts`` are slots per logical expert, [..., C]: those of all L layers one after the other, where a layer's
begin is in ``begins``, int64 [L]; any numeric dtype, not negative. The axes before the last are requests.
Results are NaN where a request has no slots. They have the float type of what the counts are compared with:
float32 is enough to rank thousands of requests, and takes half of the time. Sums are made without products of
matrices, which would take as many threads as there are cores for each caller.
"""

from __future__ import annotations

import math
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
        name="surprise_score",
        title="Surprise score",
        formula="(G - f) / sqrt(2 f); G = 2 sum n_e ln(p_e / q_e), over all experts e of all layers; "
        "f = sum over layers (E - 1); q_e = (N_e + 0.5) / (N + 0.5 E) in each layer",
        meaning="The log-likelihood ratio of the request's n_e slots, which are shares p_e of their layer's: "
        "their own shares against the histogram N_e of the requests that are compared (N slots over E "
        "experts in the layer). It is in standard deviations of what as many slots drawn from the histogram "
        "have by chance, where a layer has more slots than experts. The slots of a request are not drawn "
        "apart from each other, so ordinary requests are some deviations from 0, and long ones more than "
        "short ones. Half a slot is added to each expert, so that an expert without slots has a likelihood.",
        unit="standard deviations",
        source="the ratio's distribution: Wilks 1938, Ann. Math. Stat. 9(1); the half a slot: Krichevsky and "
        "Trofimov 1981, IEEE Trans. Inf. Theory 27(2)",
    ),
    RequestMeasure(
        name="divergence_bits",
        title="Divergence of a request",
        formula="(G - f) / (2 n ln 2), n the request's slots of all layers",
        meaning="The mean Kullback-Leibler divergence of the request's shares from the histogram's, less "
        "what as many slots have by chance. It does not grow with the length of a request, and it is "
        "uncertain for short ones.",
        unit="bits per slot",
    ),
    RequestMeasure(
        name="surprise_bits",
        title="Surprise",
        formula="- sum n_e log2 q_e / n, over all experts e of all layers",
        meaning="The mean negative log-likelihood of the request's slots under the histogram. Where experts "
        "are equally loaded it is the same for all requests, however few experts they take: it finds those "
        "that take rare experts.",
        unit="bits per slot",
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
class Surprises:
    """How well a histogram expects the slots of requests; see :data:`REQUEST_MEASURES`.

    Attributes:
        surprise_score, divergence_bits, surprise_bits: [...].
    """

    surprise_score: Floats
    divergence_bits: Floats
    surprise_bits: Floats

    @classmethod
    def of(cls, counts: Loads, of_layer: Loads, own: Loads, bits: Floats, experts: Loads) -> Surprises:
        """Those of some requests.

        Args:
            counts: [..., C].
            of_layer: their slots in each layer, [..., L]; 0 in layers that don't count.
            own: what :func:`own_bits` says of them, [..., L]; 0 in layers that don't count.
            bits: what :func:`expected_bits` says of the histogram, [C]; 0 in layers that don't count.
            experts: of each layer, [L].
        """
        slots = np.asarray(of_layer, dtype=bits.dtype)
        total = slots.sum(axis=-1)
        cost = np.einsum("...c,c->...", np.asarray(counts, dtype=bits.dtype), bits)
        above = (cost - np.asarray(own, dtype=bits.dtype).sum(axis=-1)) * (2 * math.log(2))
        free = np.where(slots > 0, np.asarray(experts, dtype=bits.dtype) - 1, 0).sum(axis=-1)
        known = np.where(total > 0, total, np.nan)
        score = np.where(free > 0, (above - free) / np.sqrt(2 * np.where(free > 0, free, 1)), 0)
        return cls(
            np.asarray(np.where(total > 0, score, np.nan), dtype=bits.dtype),
            np.asarray((above - free) / (2 * math.log(2) * known), dtype=bits.dtype),
            np.asarray(cost / known, dtype=bits.dtype),
        )


def expected_bits(window: Loads, begins: Begins) -> FloatArray:
    """What a slot of each expert costs under a histogram, -log2 of its likelihood in its layer: float64 [C].

    In a layer without any slots, all experts are alike.

    Args:
        window: the histogram's slots, [C].
        begins: of the layers.
    """
    slots = np.asarray(window, dtype=np.float64) + PRIOR_SLOTS
    totals = np.repeat(np.add.reduceat(slots, begins), np.diff(begins, append=len(slots)))
    return np.asarray(np.log2(totals / slots))


def own_bits(counts: Loads, begins: Begins) -> FloatArray:
    """The least bits that the slots of requests can cost, - sum n_e log2 p_e: float64 [..., L].

    Args:
        counts: [..., C].
        begins: of the layers.
    """
    slots = np.asarray(counts, dtype=np.float64)
    of_layer = np.add.reduceat(slots, begins, axis=-1)
    each = np.add.reduceat(slots * np.log2(np.maximum(slots, 1.0)), begins, axis=-1)
    return np.asarray(of_layer * np.log2(np.maximum(of_layer, 1.0)) - each)


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
