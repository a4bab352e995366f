"""The imbalance ratio across layers, against a hand-worked case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moescope.service.measures.loads import max_and_mean
from moescope.service.measures.summary import Summary, summarise


def test_the_summary_weighs_layers_by_load_and_names_the_worst() -> None:
    loads = np.array([[30.0, 10.0], [500.0, 500.0], [0.0, 0.0], [2.0, 1.0]])
    found = summarise([3, 5, 7, 9], *max_and_mean(loads))
    assert (found.worst, found.worst_layer, found.layers) == (1.5, 3, 3)
    assert found.ratio_of_sums == pytest.approx((30 + 500 + 2) / (20 + 500 + 1.5))
    assert found.p50 == pytest.approx(4 / 3)
    assert found.p90 == pytest.approx(4 / 3 + 0.8 * (1.5 - 4 / 3))


def test_the_summary_of_idle_layers_is_empty() -> None:
    found = summarise([0], *max_and_mean(np.zeros((1, 2))))
    assert found == Summary(None, None, None, None, None, 0)


@given(arrays(np.float64, st.integers(1, 12), elements=st.floats(1, 1e6)))
def test_the_percentiles_are_numpys_bit_for_bit(ratios: np.ndarray) -> None:
    found = summarise(list(range(len(ratios))), ratios, np.ones(len(ratios)))
    assert [found.p50, found.p90] == np.percentile(ratios, [50, 90]).tolist()
