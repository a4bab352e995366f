"""The torch reference against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.capture.counting.reference import CountBuffers, count_rows
from moescope.capture.seam.rows import Layout, RowSpan
from moescope.capture.step.word import MAX_TOKENS, Phase, pack_step
from moescope.capture.wire import MoeLayer

CPU = torch.device("cpu")


def buffers_for(layers: list[MoeLayer], valid: int, decode: list[bool] | None = None) -> CountBuffers:
    """Buffers in a step of `valid` true tokens: all of prefill, or of the phases given."""
    buffers = CountBuffers(layers, CPU, max_tokens=0 if decode is None else len(decode))
    if decode is not None:
        buffers.phases.copy_(torch.tensor(decode))
    buffers.step_word.fill_(pack_step(valid, Phase.PREFILL if decode is None else Phase.MIXED))
    return buffers


@settings(deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from([torch.int16, torch.int32, torch.int64, torch.uint8]),
    num_experts=st.sampled_from([1, 16, 60, 160]),
    top_k=st.integers(1, 9),
    num_rows=st.integers(0, 20),
    phase=st.sampled_from(Phase),
)
def test_equals_numpy(
    data: st.DataObject, dtype: torch.dtype, num_experts: int, top_k: int, num_rows: int, phase: Phase
) -> None:
    low = 0 if dtype is torch.uint8 else -1
    values = data.draw(
        st.lists(st.integers(low, num_experts), min_size=num_rows * top_k, max_size=num_rows * top_k),
        label="ids",
    )
    start = data.draw(st.integers(0, num_rows))
    length = data.draw(st.integers(0, num_rows - start))
    first_token, valid = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 26))
    of_tokens = data.draw(st.lists(st.booleans(), min_size=26, max_size=26))
    ids = torch.tensor(values, dtype=dtype).reshape(num_rows, top_k)

    layers = [MoeLayer(0, 3, 1), MoeLayer(1, num_experts, 1)]
    buffers = buffers_for(layers, valid, of_tokens)
    buffers.step_word.fill_(pack_step(valid, phase))
    count_rows(buffers, 1, ids, RowSpan(Layout.LOCAL, start, length, first_token), buffers.flat)

    kept = ids.numpy()[start : start + length].astype(np.int64)[: max(0, valid - first_token)]
    decode = np.array(of_tokens[first_token : first_token + len(kept)], bool)
    if phase is not Phase.MIXED:
        decode[:] = phase is Phase.DECODE
    for part, rows in ((Phase.PREFILL, kept[~decode]), (Phase.DECODE, kept[decode])):
        in_range = rows[(rows >= 0) & (rows < num_experts)]
        expected = np.bincount(in_range, minlength=num_experts).tolist()
        assert buffers.counts_of(1, part).tolist() == expected
        assert int(buffers.rows_of(1, part)) == len(rows)
    assert buffers.counts_of(0).sum() == buffers.rows_of(0) == 0


def test_layers_with_different_numbers_of_experts_share_one_buffer() -> None:
    layers = [MoeLayer(1, 4, 2), MoeLayer(3, 7, 1)]
    buffers = buffers_for(layers, 5, [False, True, True, False, False])
    for ordinal, layer in enumerate(layers):
        ids = torch.full((5, layer.top_k), layer.num_experts - 1)
        count_rows(buffers, ordinal, ids, RowSpan(Layout.SINGLE_DP, 0, 5, 0), buffers.flat)
    prefill, decode = [0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 3], [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 2]
    assert buffers.flat.tolist() == [*prefill, *decode, 3, 3, 2, 2]
    assert buffers.counts_of(0).tolist() == [0, 0, 0, 10]


def test_counts_do_not_overflow_int32() -> None:
    buffers = buffers_for([MoeLayer(0, 2, 1)], MAX_TOKENS)
    buffers.counts_of(0, Phase.PREFILL).fill_(2**31 - 1)
    ids = torch.zeros(3, 1, dtype=torch.int32)
    count_rows(buffers, 0, ids, RowSpan(Layout.SINGLE_DP, 0, 3, 0), buffers.flat)
    assert buffers.counts_of(0).tolist() == [2**31 + 2, 2**31 - 1]


def test_ids_without_columns_are_refused() -> None:
    buffers = buffers_for([MoeLayer(0, 4, 1)], 4)
    with pytest.raises(ValueError, match=r"\[n, top_k\], got shape \(4,\)"):
        count_rows(buffers, 0, torch.zeros(4), RowSpan(Layout.SINGLE_DP, 0, 4, 0), buffers.flat)
