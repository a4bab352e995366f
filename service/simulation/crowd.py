"""One EP rank whose experts are popular together, the same in all layers or another one in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Crowd:
    """Experts that are popular together: those that a linear placement puts on one EP rank.

    Attributes:
        ratio: the rank's load over the mean of all EP ranks; 1: none is hot.
        ranks: R, EP ranks.
        by_layer: rank l modulo R is hot in the l-th MoE layer; else rank 0 is in all layers.
    """

    ratio: float = 1.0
    ranks: int = 1
    by_layer: bool = False

    def members(self, layers: int, experts: int) -> npt.NDArray[np.bool_]:
        """Whether an expert is of the crowd, [L, E]."""
        hot = np.arange(layers) % self.ranks if self.by_layer else np.zeros(layers, dtype=np.int64)
        owners = np.arange(experts) * self.ranks // experts
        return np.asarray(owners == hot[:, np.newaxis])
