"""The measures of balance, against hand-worked cases and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moescope.service.measures.balance import MEASURES, measure_all, top_share
from moescope.service.measures.loads import Spread, max_and_mean

LOADS = arrays(
    np.int64, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.integers(0, 2**53 // 16)
)


def test_a_steady_skew_of_two_to_one_is_an_imbalance_of_a_third() -> None:
    loads = np.array([200, 100])
    assert MEASURES["imbalance_ratio"](loads) == pytest.approx(4 / 3)
    assert MEASURES["balancedness"](loads) == pytest.approx(3 / 4)
    assert MEASURES["max_vio"](loads) == pytest.approx(1 / 3)
    assert MEASURES["coefficient_of_variation"](loads) == pytest.approx(1 / 3)
    assert MEASURES["gini"](loads) == pytest.approx(1 / 6)
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert MEASURES["normalised_entropy"](loads) == pytest.approx(math.exp(entropy) / 2)


def test_one_takes_all() -> None:
    loads = np.array([0, 0, 12, 0])
    assert MEASURES["imbalance_ratio"](loads) == 4
    assert MEASURES["balancedness"](loads) == 0.25
    assert MEASURES["max_vio"](loads) == 3
    assert MEASURES["normalised_entropy"](loads) == pytest.approx(0.25)
    assert MEASURES["gini"](loads) == pytest.approx(0.75)
    assert MEASURES["coefficient_of_variation"](loads) == pytest.approx(math.sqrt(3))
    assert MEASURES["dead"](loads) == 3
    assert MEASURES["dead_fraction"](loads) == 0.75
    assert MEASURES["top_tenth_share"](loads) == 1


def test_perfect_balance() -> None:
    loads = np.full(8, 2**53)
    best = {"imbalance_ratio": 1, "balancedness": 1, "normalised_entropy": 1, "top_tenth_share": 1 / 8}
    for name, measure in MEASURES.items():
        assert measure(loads) == pytest.approx(best.get(name, 0), abs=1e-12), name


@pytest.mark.parametrize("name", MEASURES)
def test_idle_is_no_sample_in_any_measure(name: str) -> None:
    values = MEASURES[name](np.array([[0, 0], [1, 3]]))
    assert math.isnan(values[0])
    assert not math.isnan(values[1])
    assert np.isnan(MEASURES[name](np.zeros((2, 0)))).all()


@given(LOADS)
def test_measures_agree_with_scipy_row_by_row(loads: np.ndarray) -> None:
    for i, row in enumerate(loads.astype(np.float64)):
        if row.sum() == 0:
            continue
        assert MEASURES["coefficient_of_variation"](loads)[i] == pytest.approx(
            scipy.stats.variation(row), abs=1e-9
        )
        perplexity = math.exp(scipy.stats.entropy(row))
        assert MEASURES["normalised_entropy"](loads)[i] == pytest.approx(perplexity / len(row))
        differences = np.abs(row[:, None] - row[None, :]).mean() / (2 * row.mean())
        assert MEASURES["gini"](loads)[i] == pytest.approx(differences, abs=1e-9)
        assert MEASURES["dead"](loads)[i] == len(row) - np.count_nonzero(row)
        assert MEASURES["imbalance_ratio"](loads)[i] == pytest.approx(1 / MEASURES["balancedness"](loads)[i])
        assert MEASURES["max_vio"](loads)[i] == pytest.approx(
            MEASURES["imbalance_ratio"](loads)[i] - 1, abs=1e-12
        )


def test_hot_is_three_times_a_fair_share() -> None:
    # The mean is 4: 12 is hot and 11 is not; then two of eight are; then nothing was routed.
    loads = np.array([[12, 11, 3, 2, 2, 1, 1, 0], [14, 12, 1, 1, 1, 1, 1, 1], [0] * 8])
    assert loads[0].mean() == loads[1].mean() == 4
    assert MEASURES["hot"](loads).tolist()[:2] == [1, 2]
    assert np.isnan(MEASURES["hot"](loads)[2])


@given(LOADS)
def test_hot_experts_are_counted_as_by_hand(loads: np.ndarray) -> None:
    for row, found in zip(loads.tolist(), MEASURES["hot"](loads).tolist(), strict=True):
        assert np.isnan(found) if sum(row) == 0 else found == sum(x * len(row) >= 3 * sum(row) for x in row)


def test_the_share_of_the_top_k() -> None:
    loads = np.array([[5, 1, 3, 1], [0, 0, 0, 0]])
    assert top_share(Spread(loads), 1)[0] == pytest.approx(0.5)
    assert top_share(Spread(loads), 2)[0] == pytest.approx(0.8)
    assert top_share(Spread(loads), 9)[0] == pytest.approx(1)
    assert np.isnan(top_share(Spread(loads), 1)[1])
    # A tenth of 4 is one of them, a tenth of 21 is three.
    assert MEASURES["top_tenth_share"](loads)[0] == pytest.approx(0.5)
    assert MEASURES["top_tenth_share"](np.arange(21)) == pytest.approx((20 + 19 + 18) / 210)
    with pytest.raises(ValueError, match="top 0"):
        top_share(Spread(loads), 0)


@given(LOADS)
def test_all_measures_at_once_are_each_alone(loads: np.ndarray) -> None:
    found = measure_all(loads)
    assert list(found) == list(MEASURES)
    for name, measure in MEASURES.items():
        assert found[name] == pytest.approx(measure(loads), abs=1e-9, nan_ok=True), name


def test_all_measures_of_no_ranks_or_experts_are_no_sample() -> None:
    for values in measure_all(np.zeros((2, 0))).values():
        assert np.isnan(values).all()
        assert values.shape == (2,)


def test_counts_up_to_two_to_the_53rd_neither_round_nor_overflow() -> None:
    most, mean = max_and_mean(np.array([2**53 - 1, 2**53 - 3]))
    assert (most, mean) == (2**53 - 1, 2**53 - 2)
    assert MEASURES["imbalance_ratio"](np.full(8192, 2**53)) == 1
