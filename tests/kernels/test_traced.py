"""Traced rows that the kernels copy, against the torch reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernels.device import DEVICE  # skips first, where there is neither a GPU nor the interpreter

# isort: split
from moescope.capture.counting.staging import TraceStaging, copy_traced_rows
from tests.kernels.bench import Bench, make_ids, span

ROWS, VALID = 120, 100


class TracedBench(Bench):
    """A bench whose kernels and reference each have a staging buffer."""

    def __init__(self, shape: list[tuple[int, int]], tokens: np.ndarray) -> None:
        super().__init__(shape, VALID)
        self.staged = [TraceStaging(self.layers, ROWS, DEVICE, 1 << 16) for _ in self.all]
        for staging, buffers in zip(self.staged, self.all, strict=True):
            if len(tokens):
                staging.begin(tokens, VALID)
            buffers.traced = staging

    def rows(self) -> list[np.ndarray]:
        return [staging.rows.cpu().numpy() for staging in self.staged]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16], ids=str)
@pytest.mark.parametrize(
    "shape", [[(60, 4), (128, 8), (254, 3)], [(384, 8), (60, 4)]], ids=["bytes", "two bytes"]
)
@pytest.mark.parametrize("tokens", [range(0, 99, 2), [0, 40, 99], range(VALID)], ids=["half", "few", "all"])
def test_traced_rows_are_those_of_the_reference(
    shape: list[tuple[int, int]], dtype: torch.dtype, tokens: range | list[int]
) -> None:
    """Rows 10.. of the batch are tokens 4..; some slots are masked, out of range or in padding."""
    bench = TracedBench(shape, np.array(tokens))
    ids = {i: make_ids(ROWS, layer, dtype, i) for i, layer in enumerate(bench.layers)}
    mine = span(108, start=10, first_token=4)
    bench.count(ids, dict.fromkeys(ids, mine))
    for i, of_layer in ids.items():
        copy_traced_rows(of_layer, mine, bench.reference.step_word, bench.staged[2], i)
    of_step, of_layer_kernel, expected = bench.rows()
    np.testing.assert_array_equal(of_step, expected)
    np.testing.assert_array_equal(of_layer_kernel, expected)
    assert (expected[: len(tokens)] == bench.staged[2].masked).any()
    unwritten = (expected[: len(tokens)] == bench.staged[2].unwritten).all(axis=1)
    assert unwritten.tolist() == [token < 4 for token in tokens]
    bench.check()


def test_a_step_without_traced_rows_copies_nothing() -> None:
    bench = TracedBench([(60, 4), (128, 8)], np.array([], np.int64))
    ids = {i: make_ids(ROWS, layer, torch.int32, i) for i, layer in enumerate(bench.layers)}
    bench.count(ids, dict.fromkeys(ids, span(ROWS)))
    for staging, rows in zip(bench.staged, bench.rows(), strict=True):
        assert (rows == staging.unwritten).all()
