"""The torch reference against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.capture.counting import CountBuffers, count_rows
from moescope.capture.layout import Layout, RowSpan
from moescope.capture.wire import MoeLayer

CPU = torch.device("cpu")


def count(ids: torch.Tensor, span: RowSpan, valid: int, num_experts: int) -> tuple[list[int], int]:
    buffers = CountBuffers([MoeLayer(0, num_experts, 1)], CPU)
    count_rows(ids, span, torch.tensor([valid]), buffers.counts_of(0), buffers.rows_of(0))
    return buffers.counts_of(0).tolist(), int(buffers.rows_of(0).item())


@settings(deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from([torch.int16, torch.int32, torch.int64, torch.uint8]),
    num_experts=st.sampled_from([1, 16, 60, 160]),
    top_k=st.integers(1, 9),
    num_rows=st.integers(0, 20),
)
def test_equals_numpy(
    data: st.DataObject, dtype: torch.dtype, num_experts: int, top_k: int, num_rows: int
) -> None:
    low = 0 if dtype is torch.uint8 else -1
    values = data.draw(
        st.lists(st.integers(low, num_experts), min_size=num_rows * top_k, max_size=num_rows * top_k),
        label="ids",
    )
    start = data.draw(st.integers(0, num_rows))
    length = data.draw(st.integers(0, num_rows - start))
    first_token, valid = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 30))
    ids = torch.tensor(values, dtype=dtype).reshape(num_rows, top_k)

    kept = ids.numpy()[start : start + length].astype(np.int64)[: max(0, valid - first_token)]
    in_range = kept[(kept >= 0) & (kept < num_experts)]
    expected = np.bincount(in_range, minlength=num_experts).tolist()

    span = RowSpan(Layout.LOCAL, start, length, first_token)
    assert count(ids, span, valid, num_experts) == (expected, len(kept))


def test_layers_with_different_numbers_of_experts_share_one_buffer() -> None:
    layers = [MoeLayer(1, 4, 2), MoeLayer(3, 7, 1)]
    buffers = CountBuffers(layers, CPU)
    for ordinal, layer in enumerate(layers):
        ids = torch.full((5, layer.top_k), layer.num_experts - 1)
        count_rows(
            ids,
            RowSpan(Layout.SINGLE_DP, 0, 5, 0),
            torch.tensor([5]),
            buffers.counts_of(ordinal),
            buffers.rows_of(ordinal),
        )
    assert buffers.flat.tolist() == [0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 5, 5, 5]


def test_counts_do_not_overflow_int32() -> None:
    buffers = CountBuffers([MoeLayer(0, 2, 1)], CPU)
    buffers.counts_of(0).fill_(2**31 - 1)
    count_rows(
        torch.zeros(3, 1, dtype=torch.int32),
        RowSpan(Layout.SINGLE_DP, 0, 3, 0),
        torch.tensor([2**40]),
        buffers.counts_of(0),
        buffers.rows_of(0),
    )
    assert buffers.counts_of(0).tolist() == [2**31 + 2, 2**31 - 1]


def test_ids_without_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[n, top_k\], got shape \(4,\)"):
        count(torch.zeros(4), RowSpan(Layout.SINGLE_DP, 0, 4, 0), 4, 4)
