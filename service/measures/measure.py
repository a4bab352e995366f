"""What a measure of balance is. :mod:`moescope.service.measures.balance` declares them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.loads import Loads, Spread

Unit = Literal["ratio", "share", "number"]
"""``ratio``: a multiple of a fair share. ``share``: from 0 to 1. ``number``: of ranks or experts."""
Axis = Literal["over_ep_ranks", "over_dp_ranks", "over_experts"]
"""What the N loads are of, by the name that answers use."""
AXES: Final[Mapping[Axis, str]] = {
    "over_ep_ranks": "EP ranks",
    "over_dp_ranks": "DP ranks",
    "over_experts": "experts",
}


@dataclass(frozen=True, slots=True)
class Limit:
    """A gauge of the most that a measure over experts can be in a layer.

    Attributes:
        name: of the metric.
        help: one sentence.
        of: from the layer's experts and top-k to the limit.
    """

    name: str
    help: str
    of: Callable[[int, int], float]


@dataclass(frozen=True, slots=True)
class Gauge:
    """How ``/metrics`` and the boards show a measure: one series a layer, along one axis.

    Attributes:
        name: of the metric, with its unit as the last word.
        axis: the axis that it is measured along.
        title: of its board panel.
        help: one sentence: what is measured, over what.
        notable, bad: values from which on a board shows it in orange, and in red; None: never.
        limit: a gauge beside it of the most that it can be, or None.
    """

    name: str
    axis: Axis
    title: str
    help: str
    notable: float | None = None
    bad: float | None = None
    limit: Limit | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of N loads. Calling it measures.

    Attributes:
        name: of the field in the API's answers.
        title: as people read it.
        formula: in words or signs, of the loads; N is how many there are.
        meaning: one sentence or two.
        unit: what its values are.
        best, worst: the values between which it lies, in terms of N.
        compute: from loads with N > 0 to the measure, [...]; NaN where nothing was routed.
        whole: it is always a whole number.
        source: where the formula is from, or empty.
        gauge: how metrics and boards show it; None: only answers and the page do.
    """

    name: str
    title: str
    formula: str
    meaning: str
    unit: Unit
    best: str
    worst: str
    compute: Callable[[Spread], FloatArray]
    whole: bool = False
    source: str = ""
    gauge: Gauge | None = None

    def __call__(self, loads: Loads) -> FloatArray:
        """Measure loads of shape [..., N]: float64 [...], NaN where they sum to zero or N is zero."""
        return self.of(Spread(loads))

    def of(self, spread: Spread) -> FloatArray:
        """Measure loads of which other measures are taken too."""
        if spread.size == 0:
            return np.full(spread.values.shape[:-1], np.nan)
        return np.asarray(self.compute(spread))

    def over(self, axis: Axis) -> str:
        """Its title along an axis, such as "MaxVio over experts"."""
        return f"{self.title} over {AXES[axis]}"

    @property
    def description(self) -> str:
        """All that there is to say, in one line."""
        parts = [f"{self.title}: {self.formula}; {self.best} is best, {self.worst} is worst. {self.meaning}"]
        return " ".join([*parts, *([f"Source: {self.source}."] if self.source else [])])
