"""Measures of single requests: cases worked out on paper, and draws whose scores are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moescope.service.measures.requests import (
    Expected,
    busiest_share,
    similarity,
    surprise_bits,
    surprise_score,
)


def test_surprise_on_paper() -> None:
    # (2.5, 0.5) of 3, and (1.5, 1.5) of 3.
    expected = Expected.of(np.array([[2, 0], [1, 1]]))
    a, b = math.log2(3 / 2.5), math.log2(3 / 0.5)
    np.testing.assert_allclose(expected.bits, [[a, b], [1, 1]])
    np.testing.assert_allclose(surprise_bits(np.array([[3, 1], [2, 2]]), expected), (3 * a + b + 4) / 8)
    mean = 5 / 6 * a + 1 / 6 * b
    deviation = math.sqrt(5 / 36) * (b - a)  # of a coin with 5/6 and 1/6
    np.testing.assert_allclose(
        surprise_score(np.array([[3, 1], [2, 2]]), expected), (3 * a + b - 4 * mean) / (2 * deviation)
    )


def test_an_expert_that_no_slot_of_the_window_went_to_has_a_likelihood() -> None:
    expected = Expected.of(np.array([[1000, 0]]))
    bits = surprise_bits(np.array([[[1, 0]], [[0, 1]]]), expected)
    assert np.isfinite(bits).all()
    assert bits[1] == pytest.approx(math.log2(1001 / 0.5))


def test_scores_of_short_and_of_long_draws_are_alike() -> None:
    """The mean of the bits of short requests varies more; their scores don't."""
    rng = np.random.default_rng(3)
    likelihood = rng.dirichlet(np.full(32, 0.7), 4)
    expected = Expected.of(likelihood * 1e9)
    for slots in (40, 4000):
        draws = np.stack([rng.multinomial(slots, p, size=2000) for p in likelihood], axis=1)
        scores = surprise_score(draws, expected)
        assert scores.mean() == pytest.approx(0, abs=0.1)
        assert scores.std() == pytest.approx(1, abs=0.06)


def test_where_all_experts_are_alike_no_request_is_unusual() -> None:
    expected = Expected.of(np.full((3, 7), 11))
    counts = np.zeros((3, 7), int)
    counts[:, 0] = 10**6
    assert surprise_score(counts, expected) == 0
    assert surprise_bits(counts, expected) == pytest.approx(math.log2(7))


def test_a_request_without_slots_has_no_measure() -> None:
    nothing = np.zeros((2, 4), int)
    expected = Expected.of(np.array([[1, 2, 3, 4]] * 2))
    assert np.isnan(surprise_bits(nothing, expected))
    assert np.isnan(surprise_score(nothing, expected))
    assert np.isnan(busiest_share(np.zeros(3)))
    assert np.isnan(similarity(nothing, nothing + 1))


def test_the_share_of_the_busiest_rank() -> None:
    np.testing.assert_allclose(busiest_share(np.array([[6, 2], [3, 3], [0, 5]])), [0.75, 0.5, 1])


def test_similarity() -> None:
    one = np.array([[4, 4, 0], [0, 0, 8]])
    np.testing.assert_allclose(similarity(one, 3 * one), 1)
    np.testing.assert_allclose(similarity(one, np.array([[0, 0, 5], [1, 1, 0]])), 0, atol=1e-12)
    # A layer that one of them lacks says nothing; the other layer is the same in both.
    np.testing.assert_allclose(similarity(one, np.array([[1, 1, 0], [0, 0, 0]])), 1)
    # Layer 0: (1/2, 1/2) against (1, 0) has 1.5 - 0.75 log2(3) bits; layer 1 is the same.
    half = (1.5 - 0.75 * math.log2(3)) / 2
    np.testing.assert_allclose(similarity(one, np.array([[7, 0, 0], [0, 0, 1]])), 1 - half)
    np.testing.assert_allclose(similarity(one, one[::-1]), similarity(one[::-1], one))
