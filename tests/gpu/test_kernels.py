"""The Triton kernels against the torch reference, over shapes, types and numbers of valid tokens."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from moescope.capture.counting import CountBuffers, count_rows
from moescope.capture.kernels import launch_layer, launch_step, num_bins
from moescope.capture.layout import Layout, RowSpan
from moescope.capture.pointer_tables import PointerTables, table_entry
from moescope.capture.wire import MoeLayer

CUDA = torch.device("cuda", 0)
SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)
MODELS = {
    "qwen3-30b": [(128, 8)] * 4,
    "qwen2-moe": [(60, 4)] * 3,
    "deepseek-v2": [(160, 6)] * 3,
    "kimi-k2": [(384, 8)] * 2,
    "ragged": [(60, 4), (384, 8), (1, 1), (7, 3), (128, 1)],
    "more experts than bins": [(3000, 8), (16, 2)],
    "one layer": [(256, 9)],
}


def make_ids(rows: int, layer: MoeLayer, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Ids [rows, top_k] in and out of range; masked ones where the type has a sign."""
    generator = torch.Generator().manual_seed(seed)
    highest = min(layer.num_experts + 3, torch.iinfo(dtype).max)
    lowest = -2 if dtype in SIGNED else 0
    return torch.randint(lowest, highest, (rows, layer.top_k), generator=generator).to(CUDA, dtype)


class Bench:
    """Counts the same ids with the step kernel, the layer kernel and the reference."""

    def __init__(self, shape: list[tuple[int, int]], num_valid: int) -> None:
        self.layers = [MoeLayer(2 * index, experts, top_k) for index, (experts, top_k) in enumerate(shape)]
        self.step, self.layer, self.reference = (CountBuffers(self.layers, CUDA) for _ in range(3))
        self.tables = PointerTables(self.layers, CUDA)
        self.bins = num_bins(max(layer.num_experts for layer in self.layers))
        for buffers in (self.step, self.layer, self.reference):
            buffers.num_valid.fill_(num_valid)

    def count(self, ids: dict[int, torch.Tensor], spans: dict[int, RowSpan]) -> None:
        slots = max(spans[i].count * ids[i].shape[1] for i in ids)
        table = self.tables.for_now({i: table_entry(ids[i], spans[i]) for i in ids})
        dtype = next(iter(ids.values())).dtype
        launch_step(table, self.step.num_valid, self.step.flat, dtype, slots, self.bins)
        for i, tensor in ids.items():
            counts, experts = self.layer.counts_of(i), self.layers[i].num_experts
            where = (counts.storage_offset(), experts, self.layer.num_slots + i)
            launch_layer(tensor, spans[i], self.layer.num_valid, self.layer.flat, *where, self.bins)
            reference = self.reference
            count_rows(tensor, spans[i], reference.num_valid, reference.counts_of(i), reference.rows_of(i))

    def check(self) -> list[int]:
        expected = self.reference.flat.tolist()
        assert self.step.flat.tolist() == expected
        assert self.layer.flat.tolist() == expected
        return expected


def span(count: int, start: int = 0, first_token: int = 0) -> RowSpan:
    return RowSpan(Layout.LOCAL, start, count, first_token)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [1, 3, 64, 257, 5000])
def test_equals_the_reference(name: str, dtype: torch.dtype, rows: int) -> None:
    bench = Bench(MODELS[name], num_valid=rows - rows // 3)
    for repeat in range(2):
        ids = {i: make_ids(rows, layer, dtype, 100 * repeat + i) for i, layer in enumerate(bench.layers)}
        bench.count(ids, {i: span(rows) for i in ids})
    assert sum(bench.check()) > 0


@pytest.mark.parametrize("num_valid", [0, 1, 4, 5, 39, 40, 41, 1000, 2**31, 2**62, 2**63 - 1])
def test_rows_beyond_the_valid_tokens_are_padding_without_overflow(num_valid: int) -> None:
    bench = Bench([(160, 6), (60, 4)], num_valid)
    ids = {i: make_ids(50, layer, torch.int32, i) for i, layer in enumerate(bench.layers)}
    spans = {0: span(36, start=7), 1: span(36, start=14, first_token=4)}
    bench.count(ids, spans)
    bench.check()
    assert int(bench.step.rows_of(1).item()) == min(36, max(0, num_valid - 4))


def test_no_valid_tokens_count_nothing_and_read_no_address() -> None:
    bench = Bench([(128, 8)], 0)
    wild = bench.tables.for_now({0: (8, 1000, 0, 8, 8, 1)})
    launch_step(wild, bench.step.num_valid, bench.step.flat, torch.int32, 8000, bench.bins)
    torch.cuda.synchronize()
    assert sum(bench.check()) == 0


def test_columns_of_a_wider_tensor_and_strided_rows() -> None:
    bench = Bench([(128, 8), (128, 8), (128, 8)], 90)
    wide = make_ids(200, MoeLayer(0, 128, 16), torch.int32, 5)
    ids = {0: wide[:, 4:12], 1: wide[::2, :8], 2: wide[:, ::2]}
    assert not any(tensor.is_contiguous() for tensor in ids.values())
    bench.count(ids, {i: span(60, start=10) for i in ids})
    assert sum(bench.check()) > 0


def test_a_layer_that_did_not_run_counts_nothing() -> None:
    bench = Bench([(16, 2)] * 3, 10)
    first = {i: make_ids(10, layer, torch.int32, i) for i, layer in enumerate(bench.layers)}
    bench.count(first, {i: span(10) for i in first})
    second = {i: make_ids(10, bench.layers[i], torch.int32, i) for i in (0, 2)}
    bench.count(second, {i: span(10) for i in second})
    bench.check()
    assert [int(bench.step.rows_of(i).item()) for i in range(3)] == [20, 10, 20]


def test_counts_beyond_int32() -> None:
    bench = Bench([(2, 1)], 3)
    for buffers in (bench.step, bench.layer, bench.reference):
        buffers.flat.fill_(2**31 - 1)
    bench.count({0: torch.zeros(3, 1, dtype=torch.int32, device=CUDA)}, {0: span(3)})
    assert bench.check() == [2**31 + 2, 2**31 - 1, 2**31 + 2]


def test_ids_that_all_go_to_one_expert() -> None:
    bench = Bench([(128, 8)] * 2, 16384)
    ids = {i: torch.full((16384, 8), 127 * i, dtype=torch.int32, device=CUDA) for i in range(2)}
    bench.count(ids, {i: span(16384) for i in ids})
    bench.check()
    assert int(bench.step.counts_of(1)[127].item()) == 16384 * 8
