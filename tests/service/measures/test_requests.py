"""Measures of single requests: cases worked out on paper, and draws whose scores are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moescope.service.measures.requests import (
    Expected,
    busiest_share,
    roots_of,
    similarity,
    surprise_bits,
    surprise_score,
)


def begins_of(*experts: int) -> np.ndarray:
    """Where layers of so many experts begin."""
    return np.cumsum((0, *experts))[:-1]


def bits_of(counts: np.ndarray, expected: Expected) -> np.ndarray:
    return surprise_bits(counts, np.add.reduceat(counts, expected.begins, axis=-1), expected)


def score_of(counts: np.ndarray, expected: Expected) -> np.ndarray:
    return surprise_score(counts, np.add.reduceat(counts, expected.begins, axis=-1), expected)


def alike(counts: np.ndarray, other: np.ndarray, begins: np.ndarray) -> np.ndarray:
    of_layer = np.add.reduceat(counts, begins, axis=-1)
    return similarity(counts, of_layer, roots_of(other, begins), begins)


def test_surprise_on_paper() -> None:
    # (2.5, 0.5) of 3, and (1.5, 1.5, 2.5) of 5.5.
    expected = Expected.of(np.array([2, 0, 1, 1, 2]), begins_of(2, 3))
    a, b = math.log2(3 / 2.5), math.log2(3 / 0.5)
    c, d = math.log2(5.5 / 1.5), math.log2(5.5 / 2.5)
    np.testing.assert_allclose(expected.bits, [a, b, c, c, d])
    counts = np.array([3, 1, 2, 0, 2])
    np.testing.assert_allclose(bits_of(counts, expected), (3 * a + b + 2 * c + 2 * d) / 8)
    means = 5 / 6 * a + 1 / 6 * b, 6 / 11 * c + 5 / 11 * d
    variances = 5 / 36 * (b - a) ** 2, 30 / 121 * (d - c) ** 2  # of coins
    np.testing.assert_allclose(
        score_of(counts, expected),
        (3 * a + b - 4 * means[0] + 2 * c + 2 * d - 4 * means[1]) / math.sqrt(4 * sum(variances)),
    )
    # With the second layer only.
    second = expected.among(np.array([False, True]))
    of_layer = np.array([0, 4])
    np.testing.assert_allclose(surprise_bits(counts, of_layer, second), (2 * c + 2 * d) / 4)
    np.testing.assert_allclose(
        surprise_score(counts, of_layer, second),
        (2 * c + 2 * d - 4 * means[1]) / math.sqrt(4 * variances[1]),
    )


def test_an_expert_that_no_slot_of_the_window_went_to_has_a_likelihood() -> None:
    expected = Expected.of(np.array([1000, 0]), begins_of(2))
    bits = bits_of(np.array([[1, 0], [0, 1]]), expected)
    assert np.isfinite(bits).all()
    assert bits[1] == pytest.approx(math.log2(1001 / 0.5))


def test_scores_of_short_and_of_long_draws_are_alike_in_both_float_types() -> None:
    """The mean of the bits of short requests varies more; their scores don't."""
    rng = np.random.default_rng(3)
    likelihood = rng.dirichlet(np.full(32, 0.7), 4)
    expected = Expected.of(likelihood.ravel() * 1e9, begins_of(32, 32, 32, 32))
    for slots in (40, 4000):
        draws = np.concatenate([rng.multinomial(slots, p, size=2000) for p in likelihood], axis=1)
        scores = score_of(draws, expected)
        assert scores.mean() == pytest.approx(0, abs=0.1)
        assert scores.std() == pytest.approx(1, abs=0.06)
        rough = score_of(draws, expected.rough())
        assert rough.dtype == np.float32
        np.testing.assert_allclose(rough, scores, atol=2e-3)


@pytest.mark.parametrize("rough", [False, True])
def test_where_all_experts_are_alike_no_request_is_unusual(rough: bool) -> None:
    expected = Expected.of(np.full(21, 11), begins_of(7, 7, 7))
    expected = expected.rough() if rough else expected
    counts = np.zeros(21, int)
    counts[[0, 7, 14]] = 10**6
    assert score_of(counts, expected) == 0
    assert bits_of(counts, expected) == pytest.approx(math.log2(7))


def test_a_nearly_flat_histogram_still_tells_requests_apart() -> None:
    """One expert of 8 has a thousandth more: its slots have a likelihood that is a little higher."""
    window = np.full(8, 10**6)
    window[0] += 1000
    expected = Expected.of(window, begins_of(8))
    counts = np.zeros((2, 8), int)
    counts[0, 0] = counts[1, 1] = 10_000
    likelihood = (window + 0.5) / (window + 0.5).sum()
    cost = -np.log2(likelihood)
    spread = math.sqrt(likelihood @ (cost - likelihood @ cost) ** 2)
    np.testing.assert_allclose(
        score_of(counts, expected), 100 * (cost[:2] - likelihood @ cost) / spread, rtol=1e-6
    )
    assert score_of(counts, expected)[0] < -200 < 30 < score_of(counts, expected)[1]


def test_a_request_without_slots_has_no_measure() -> None:
    nothing = np.zeros(8, int)
    expected = Expected.of(np.array([1, 2, 3, 4] * 2), begins_of(4, 4))
    assert np.isnan(bits_of(nothing, expected))
    assert np.isnan(score_of(nothing, expected))
    assert np.isnan(busiest_share(np.zeros(3)))
    assert np.isnan(alike(nothing, nothing + 1, begins_of(4, 4)))
    assert np.isnan(alike(nothing + 1, nothing, begins_of(4, 4)))


def test_the_share_of_the_busiest_rank() -> None:
    np.testing.assert_allclose(busiest_share(np.array([[6, 2], [3, 3], [0, 5]])), [0.75, 0.5, 1])


def test_similarity() -> None:
    begins = begins_of(3, 2)
    one = np.array([4, 4, 0, 0, 8])
    several = np.array([3 * one, [0, 0, 5, 1, 0], [1, 1, 0, 0, 0], [7, 0, 0, 0, 1], [1, 3, 0, 1, 3]])
    # A layer that one of them lacks says nothing.
    quarter = (math.sqrt(1 / 8) + math.sqrt(3 / 8) + math.sqrt(3 / 4)) / 2
    wanted = [1, 0, 1, (math.sqrt(1 / 2) + 1) / 2, quarter]
    np.testing.assert_allclose(alike(several, one, begins), wanted, atol=1e-12)
    for other, value in zip(several, wanted, strict=True):
        assert alike(one, other, begins) == pytest.approx(value)
