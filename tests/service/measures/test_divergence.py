"""Distances of two histograms, against scipy and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from moescope.service.measures.divergence import jensen_shannon, sampling_noise, shares, total_variation


def test_jensen_shannon() -> None:
    random = np.random.default_rng(3)
    p, q = random.integers(0, 50, (2, 6, 9))
    q[0] *= 3
    expected = np.array([jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, q, strict=True)])
    assert jensen_shannon(p, q) == pytest.approx(expected)
    assert jensen_shannon(q, p) == pytest.approx(expected)
    assert jensen_shannon([1, 0], [0, 3]) == 1
    assert jensen_shannon([2, 4], [1, 2]) == 0
    assert np.isnan(jensen_shannon([0, 0], [1, 2]))


def test_jensen_shannon_of_counts_of_two_to_the_53rd() -> None:
    big = np.array([2**53, 2**53 - 1, 1, 0])
    assert jensen_shannon(big, big) == 0
    assert jensen_shannon(big, big[::-1]) == pytest.approx(1, abs=1e-12)


def test_total_variation_is_the_share_that_moved() -> None:
    assert total_variation([60, 40, 0], [30, 40, 30]) == pytest.approx(0.3)
    assert total_variation([1, 0], [0, 5]) == 1
    assert np.isnan(total_variation([0, 0], [1, 1]))


def test_shares_of_nothing_are_no_sample() -> None:
    found = shares([[1, 3], [0, 0]])
    assert found[0] == pytest.approx([0.25, 0.75])
    assert np.isnan(found[1]).all()


def test_sampling_noise_is_what_two_samples_of_one_distribution_show() -> None:
    random = np.random.default_rng(0)
    p = random.dirichlet(np.full(64, 2.0))
    a, b = random.multinomial(20_000, p, 400), random.multinomial(5_000, p, 400)
    assert jensen_shannon(a, b).mean() == pytest.approx(sampling_noise(a, b).mean(), rel=0.03)
    assert np.isnan(sampling_noise([0, 0], [1, 1]))
