"""The loads that a measure is of; what several measures need of them is computed once."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from moescope.service.measures.arrays import FloatArray

Loads = npt.NDArray[Any]
"""[..., N]: what each of N ranks (or experts) got, in slots or tokens; any numeric dtype, not negative."""


def max_and_mean(loads: Loads) -> tuple[FloatArray, FloatArray]:
    """Largest and mean load, each of shape [...]; NaN where nothing was routed."""
    spread = Spread(loads)
    return spread.most, spread.mean


class Spread:
    """Loads of shape [..., N], N loads in each row; every value of a row is NaN where the loads sum to zero.

    Counts up to 2**53 convert exactly.

    Attributes:
        values: the loads, float64 [..., N].
        size: N.
    """

    def __init__(self, loads: Loads) -> None:
        self.values = np.asarray(loads, dtype=np.float64)
        self.size: int = self.values.shape[-1]

    @cached_property
    def sum(self) -> FloatArray:
        """Sum of the loads, [...]."""
        return np.asarray(self.values.sum(axis=-1))

    @cached_property
    def idle(self) -> npt.NDArray[np.bool_]:
        """Whether nothing was routed, [...]."""
        return np.asarray(self.sum <= 0)

    @cached_property
    def most(self) -> FloatArray:
        """Largest load, [...]."""
        return self.unless_idle(self.values.max(axis=-1)) if self.size else self._nothing()

    @cached_property
    def mean(self) -> FloatArray:
        """Mean load, [...]."""
        return self.unless_idle(self.sum / self.size) if self.size else self._nothing()

    @cached_property
    def zeros(self) -> FloatArray:
        """How many loads are zero, [...]."""
        return self.unless_idle(self.size - np.count_nonzero(self.values, axis=-1))

    @cached_property
    def relative(self) -> FloatArray:
        """Loads / mean, [..., N]."""
        return np.asarray(self.values / self.mean[..., np.newaxis])

    @cached_property
    def rising(self) -> FloatArray:
        """``relative``, sorted to rise, [..., N]."""
        return np.sort(self.relative, axis=-1)

    def unless_idle(self, found: npt.ArrayLike) -> FloatArray:
        """``found``, [...], with NaN where nothing was routed."""
        return np.where(self.idle, np.nan, found)

    def _nothing(self) -> FloatArray:
        return np.full(self.values.shape[:-1], np.nan)
