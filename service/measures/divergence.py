"""How far two loads' shares are apart: pure numpy, vectorised over every axis but the last.

``loads`` and ``others`` have shape [..., N], slots by expert (or rank), any numeric dtype, not negative;
results have shape [...], float64, and are NaN where nothing was routed in one of them.
"""

from __future__ import annotations

import math

import numpy as np

from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.loads import Loads


def shares(loads: Loads) -> FloatArray:
    """Loads / their sum, [..., N]; NaN where nothing was routed."""
    values = np.asarray(loads, dtype=np.float64)
    total = values.sum(axis=-1, keepdims=True)
    return np.asarray(values / np.where(total > 0, total, np.nan))


def jensen_shannon(loads: Loads, others: Loads) -> FloatArray:
    """Jensen-Shannon divergence of the shares in bits, from 0 (alike) to 1 (nothing in common).

    With shares p and q and their middle m = (p + q) / 2: (KL(p, m) + KL(q, m)) / 2, logarithms to base 2
    (Lin, 1991, IEEE Trans. Inf. Theory 37(1)). Symmetric, and finite where one is zero.
    """
    p, q = shares(loads), shares(others)
    middle = (p + q) / 2
    found = np.asarray((_divergence(p, middle) + _divergence(q, middle)) / 2)
    # Rounding leaves some 1e-17 below zero where they are alike. `maximum` keeps NaN.
    return np.asarray(np.maximum(found, 0.0))


def total_variation(loads: Loads, others: Loads) -> FloatArray:
    """Half the sum of |p - q|, from 0 to 1: the share of slots that go to other experts."""
    return np.asarray(np.abs(shares(loads) - shares(others)).sum(axis=-1) / 2)


def sampling_noise(loads: Loads, others: Loads) -> FloatArray:
    """The Jensen-Shannon divergence, bits, to expect of two samples of these sizes from one distribution.

    (M - 1) (1 / n + 1 / m) / (8 ln 2) for n and m slots over the M experts that either took: the second order
    of the divergence around p = q, with multinomial variance. A divergence near it shows no drift.
    """
    a, b = np.asarray(loads, dtype=np.float64), np.asarray(others, dtype=np.float64)
    taken = np.count_nonzero(a + b, axis=-1)
    n, m = (np.where(x.sum(axis=-1) > 0, x.sum(axis=-1), np.nan) for x in (a, b))
    return np.asarray((taken - 1) * (1 / n + 1 / m) / (8 * math.log(2)))


def _divergence(p: FloatArray, of: FloatArray) -> FloatArray:
    """Kullback-Leibler divergence in bits over the last axis; ``of`` is positive wherever ``p`` is."""
    ratio = np.divide(p, of, out=np.ones_like(p), where=~(p <= 0))
    return np.asarray((p * np.log2(ratio)).sum(axis=-1))
