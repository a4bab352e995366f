"""Ids as JSON are what msgspec makes of them, byte by byte."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.service.api.schemas.json_ids import json_ids


@given(
    st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 9)),
    st.sampled_from([(np.int16, -1, 32767), (np.int16, -1, 127), (np.uint8, 0, 255), (np.uint16, 0, 65535)]),
    st.integers(0, 1 << 16),
)
def test_the_bytes_are_those_of_lists(
    shape: tuple[int, int, int], kind: tuple[type, int, int], seed: int
) -> None:
    dtype, low, high = kind
    ids = np.random.default_rng(seed).integers(low, high, shape, endpoint=True).astype(dtype)
    assert json_ids(ids) == msgspec.json.encode(ids.tolist())


@pytest.mark.parametrize("number", [-1, 0, 9, 10, 99, 100, 999, 1000, 9999, 10000, 32767])
def test_each_number_of_digits(number: int) -> None:
    ids = np.full((2, 2, 3), number, np.int16)
    ids[1, 1, 0] = -1
    assert json_ids(ids) == msgspec.json.encode(ids.tolist())
    assert json_ids(ids[:, ::-1]) == msgspec.json.encode(ids[:, ::-1].tolist())


def test_ids_in_any_order_in_memory() -> None:
    ids = np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(2, 1, 0)
    assert json_ids(ids) == msgspec.json.encode(ids.tolist())
