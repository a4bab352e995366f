"""Measures of single requests: cases worked out on paper, and draws whose scores are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moescope.service.measures.requests import (
    Surprises,
    busiest_share,
    expected_bits,
    own_bits,
    roots_of,
    similarity,
)


def begins_of(*experts: int) -> np.ndarray:
    """Where layers of so many experts begin."""
    return np.cumsum((0, *experts))[:-1]


def surprises(counts: np.ndarray, window: np.ndarray, experts: list[int], dtype: type = float) -> Surprises:
    begins = begins_of(*experts)
    bits = expected_bits(window, begins).astype(dtype)
    of_layer = np.add.reduceat(counts, begins, axis=-1)
    return Surprises.of(counts, of_layer, own_bits(counts, begins), bits, experts)


def alike(counts: np.ndarray, other: np.ndarray, begins: np.ndarray) -> np.ndarray:
    of_layer = np.add.reduceat(counts, begins, axis=-1)
    return similarity(counts, of_layer, roots_of(other, begins), begins)


def test_surprise_on_paper() -> None:
    # (2.5, 0.5) of 3, and (1.5, 1.5, 2.5) of 5.5.
    a, b = math.log2(3 / 2.5), math.log2(3 / 0.5)
    c, d = math.log2(5.5 / 1.5), math.log2(5.5 / 2.5)
    window, begins = np.array([2, 0, 1, 1, 2]), begins_of(2, 3)
    np.testing.assert_allclose(expected_bits(window, begins), [a, b, c, c, d])
    counts = np.array([3, 1, 2, 0, 2])
    own = 3 * math.log2(4 / 3) + math.log2(4), 4.0
    np.testing.assert_allclose(own_bits(counts, begins), own)
    found = surprises(counts, window, [2, 3])
    cost = 3 * a + b + 2 * c + 2 * d
    assert found.surprise_bits == pytest.approx(cost / 8)
    ratio = 2 * math.log(2) * (cost - sum(own))
    assert found.surprise_score == pytest.approx((ratio - 3) / math.sqrt(6))
    assert found.divergence_bits == pytest.approx((ratio - 3) / (2 * 8 * math.log(2)))
    # With the second layer only.
    second = Surprises.of(
        counts, np.array([0, 4]), np.array([0, 4.0]), np.array([0, 0, c, c, d]), np.array([2, 3])
    )
    assert second.surprise_bits == pytest.approx((2 * c + 2 * d) / 4)
    assert second.surprise_score == pytest.approx((2 * math.log(2) * (2 * c + 2 * d - 4) - 2) / 2)


def test_an_expert_that_no_slot_of_the_window_went_to_has_a_likelihood() -> None:
    found = surprises(np.array([[1, 0], [0, 1]]), np.array([1000, 0]), [2])
    assert np.isfinite(found.surprise_score).all()
    assert found.surprise_bits[1] == pytest.approx(math.log2(1001 / 0.5))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 2e-2)])
def test_scores_of_draws_have_no_mean_and_a_deviation_of_one(dtype: type, tolerance: float) -> None:
    rng = np.random.default_rng(3)
    likelihood = rng.dirichlet(np.full(32, 2), 4)
    draws = np.concatenate([rng.multinomial(4000, p, size=2000) for p in likelihood], axis=1)
    found = surprises(draws, likelihood.ravel() * 1e9, [32] * 4, dtype)
    assert found.surprise_score.dtype == dtype
    assert found.surprise_score.mean() == pytest.approx(0, abs=0.1)
    assert found.surprise_score.std() == pytest.approx(1, abs=0.06)
    exact = surprises(draws, likelihood.ravel() * 1e9, [32] * 4)
    np.testing.assert_allclose(found.surprise_score, exact.surprise_score, atol=tolerance)
    assert found.divergence_bits.mean() == pytest.approx(0, abs=1e-4)


def test_divergence_does_not_grow_with_length_and_the_score_does() -> None:
    window = np.full(8, 10**6)
    short = np.array([40, 0, 0, 0, 40, 40, 40, 40])
    of_short, of_long = (surprises(n * short, window, [8]) for n in (1, 100))
    assert of_long.divergence_bits == pytest.approx(math.log2(8 / 5), abs=1e-3)
    assert of_short.divergence_bits == pytest.approx(math.log2(8 / 5), abs=0.03)
    assert of_long.surprise_score > 50 * of_short.surprise_score > 0


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_flat_histogram_tells_a_request_that_takes_few_experts(dtype: type) -> None:
    """Its plain likelihood doesn't: all experts are equally likely."""
    window = np.full(21, 11)
    even = np.full(21, 4 * 10**5)
    narrow = np.zeros(21, int)
    narrow[[0, 7, 14]] = 7 * 4 * 10**5
    found = surprises(np.stack([even, narrow]), window, [7, 7, 7], dtype)
    np.testing.assert_allclose(found.surprise_bits, math.log2(7), rtol=1e-6)
    np.testing.assert_allclose(found.divergence_bits, [0, math.log2(7)], atol=1e-5)
    assert found.surprise_score[1] > 1e6 > 10 > abs(found.surprise_score[0])


def test_a_nearly_flat_histogram_tells_apart_what_its_draws_tell_apart() -> None:
    """One expert of 8 has a hundredth more: a request like that is usual, one with another is not."""
    window = np.full(8, 10**6)
    window[0] += 10_000
    share = window / window.sum()
    like, other = np.rint(share * 10**8).astype(int), np.rint(share[::-1] * 10**8).astype(int)
    found = surprises(np.stack([like, other]), window, [8])
    assert found.surprise_score[0] == pytest.approx(-math.sqrt(3.5), abs=0.01)  # G is 0
    wanted = 2e8 * (share[::-1] * np.log(share[::-1] / share)).sum()
    assert found.surprise_score[1] == pytest.approx((wanted - 7) / math.sqrt(14), rel=1e-3)


def test_layers_of_one_expert_tell_nothing() -> None:
    assert surprises(np.array([5, 5]), np.array([9, 9]), [1, 1]).surprise_score == 0


def test_a_request_without_slots_has_no_measure() -> None:
    nothing = np.zeros(8, int)
    found = surprises(nothing, np.array([1, 2, 3, 4] * 2), [4, 4])
    assert np.isnan([found.surprise_score, found.surprise_bits, found.divergence_bits]).all()
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
