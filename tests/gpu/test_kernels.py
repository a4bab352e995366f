"""The Triton kernels against the torch reference, over shapes, types and numbers of valid tokens."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from moescope.capture import load_ring
from moescope.capture.counting import CountBuffers, count_rows
from moescope.capture.kernel_launch import launch_layer, launch_step
from moescope.capture.layout import Layout, RowSpan
from moescope.capture.load_ring import LoadRing
from moescope.capture.pointer_tables import PointerTables, table_entry
from moescope.capture.step_word import MAX_TOKENS, Phase, pack_step
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
    """Counts the same ids with the step kernel, the layer kernel and the reference.

    Experts are on EP ranks at random; phases are random too, where a step has both.
    """

    def __init__(
        self,
        shape: list[tuple[int, int]],
        num_valid: int,
        phase: Phase = Phase.PREFILL,
        ep_size: int = 8,
        max_tokens: int = 6000,
    ) -> None:
        self.layers = [MoeLayer(2 * index, experts, top_k) for index, (experts, top_k) in enumerate(shape)]
        self.num_valid, self.phase = num_valid, phase
        generator = torch.Generator().manual_seed(3)
        size = (len(shape), max(experts for experts, _ in shape))
        ep_ranks = torch.randint(0, ep_size, size, generator=generator).numpy() if ep_size else None
        phases = torch.randint(0, 2, (max_tokens,), generator=generator)
        self.all = []
        for _ in range(3):
            ring = None if ep_ranks is None else LoadRing(ep_ranks.astype("i4"), ep_size, 0, CUDA)
            buffers = CountBuffers(self.layers, CUDA, max_tokens, ring)
            buffers.phases.copy_(phases)
            self.all.append(buffers)
        self.step, self.layer, self.reference = self.all
        self.tables = PointerTables(self.layers, CUDA)

    def begin(self) -> None:
        """A step begins: in each buffers' next slot, which only the step kernel empties ahead."""
        for buffers in self.all:
            slot = 0
            if buffers.ring is not None:
                slot = buffers.ring.begin_step(0)
                if buffers is not self.step:
                    buffers.ring.zero()
            buffers.step_word.fill_(pack_step(self.num_valid, self.phase, slot))

    def count(self, ids: dict[int, torch.Tensor], spans: dict[int, RowSpan]) -> None:
        """A step."""
        self.begin()
        slots = max(spans[i].count * ids[i].shape[1] for i in ids)
        table = self.tables.for_now({i: table_entry(ids[i], spans[i]) for i in ids})
        launch_step(table, self.step, self.step.flat, next(iter(ids.values())).dtype, slots)
        for i, tensor in ids.items():
            launch_layer(tensor, spans[i], self.layer, i, self.layer.flat)
            count_rows(self.reference, i, tensor, spans[i], self.reference.flat)

    def check(self) -> list[int]:
        """All three agree, on counts by phase and on the loads of each step."""
        expected = self.reference.flat.tolist()
        assert self.step.flat.tolist() == expected
        assert self.layer.flat.tolist() == expected
        if self.reference.ring is not None and self.step.ring is not None and self.layer.ring is not None:
            assert torch.equal(self.layer.ring.loads, self.reference.ring.loads)
            steps = min(self.reference.ring.computed, self.reference.ring.capacity)
            rings = (self.step.ring, self.reference.ring)
            copies = [torch.zeros_like(ring.loads) for ring in rings]
            for ring, copy in zip(rings, copies, strict=True):
                ring.copy_since(0, copy)
            assert torch.equal(copies[0][:steps], copies[1][:steps])
            if rings[0].computed <= rings[0].capacity:
                assert int(copies[0].sum()) == sum(expected[: 2 * self.reference.num_slots])
        return expected


def span(count: int, start: int = 0, first_token: int = 0) -> RowSpan:
    return RowSpan(Layout.LOCAL, start, count, first_token)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [1, 3, 64, 257, 5000])
def test_equals_the_reference(name: str, dtype: torch.dtype, rows: int) -> None:
    bench = Bench(MODELS[name], num_valid=rows - rows // 3)
    for repeat, phase in enumerate(Phase):
        bench.phase = phase
        ids = {i: make_ids(rows, layer, dtype, 100 * repeat + i) for i, layer in enumerate(bench.layers)}
        bench.count(ids, {i: span(rows) for i in ids})
    expected = bench.check()
    assert sum(expected) > 0
    rows_by_phase = [int(bench.step.rows_of(0, phase)) for phase in (Phase.PREFILL, Phase.DECODE)]
    assert sum(rows_by_phase) == 3 * (rows - rows // 3)
    assert min(rows_by_phase) >= rows - rows // 3


@pytest.mark.parametrize("ep_size", [0, 2, 3, 16, 64, 72, 320])
@pytest.mark.parametrize("name", ["qwen3-30b", "kimi-k2", "ragged", "more experts than bins"])
@pytest.mark.parametrize("phase", Phase)
def test_loads_by_ep_rank_for_any_number_of_ranks(name: str, ep_size: int, phase: Phase) -> None:
    bench = Bench(MODELS[name], 300, phase, ep_size)
    for repeat in range(3):
        ids = {i: make_ids(333, layer, torch.int32, 7 * repeat + i) for i, layer in enumerate(bench.layers)}
        bench.count(ids, {i: span(333) for i in ids})
    bench.check()


def test_the_ring_goes_round_and_each_slot_is_emptied_before_its_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load_ring, "RING_BYTES", 5 * 3 * 8 * 4)
    bench = Bench([(60, 4)] * 3, 20)
    assert bench.step.ring is not None
    assert bench.step.ring.capacity == 4
    for repeat in range(23):
        there = (
            (0, 1, 2) if repeat % 3 else (0, 2)
        )  # a layer that doesn't run leaves nothing of earlier rounds
        ids = {i: make_ids(20, bench.layers[i], torch.int32, 7 * repeat + i) for i in there}
        bench.count(ids, {i: span(20) for i in ids})
        for buffers in bench.all:  # a dummy step, whose kernels run too
            buffers.step_word.zero_()
        table = bench.tables.for_now({i: table_entry(ids[i], span(20)) for i in ids})
        launch_step(table, bench.step, bench.step.flat, torch.int32, 80)
        bench.check()


def test_a_launch_without_rows_of_this_worker_still_empties_the_next_slot() -> None:
    bench = Bench([(60, 4)] * 2, 20)
    ring = bench.step.ring
    assert ring is not None
    ring.loads[1].fill_(7)
    ids = make_ids(20, bench.layers[0], torch.int32, 0)
    bench.begin()
    launch_step(
        bench.tables.for_now({0: table_entry(ids, span(0))}), bench.step, bench.step.flat, torch.int32, 0
    )
    assert int(ring.loads.sum()) == 0


@pytest.mark.parametrize("num_valid", [0, 1, 4, 5, 39, 40, 41, 1000, 2**31, MAX_TOKENS])
@pytest.mark.parametrize("phase", Phase)
def test_rows_beyond_the_valid_tokens_are_padding_without_overflow(num_valid: int, phase: Phase) -> None:
    bench = Bench([(160, 6), (60, 4)], num_valid, phase)
    ids = {i: make_ids(50, layer, torch.int32, i) for i, layer in enumerate(bench.layers)}
    spans = {0: span(36, start=7), 1: span(36, start=14, first_token=4)}
    bench.count(ids, spans)
    bench.check()
    assert int(bench.step.rows_of(1)) == min(36, max(0, num_valid - 4))


def test_no_valid_tokens_count_nothing_and_read_no_address() -> None:
    bench = Bench([(128, 8)], 0)
    wild = bench.tables.for_now({0: (8, 1000, 0, 8, 8, 1)})
    launch_step(wild, bench.step, bench.step.flat, torch.int32, 8000)
    torch.cuda.synchronize()
    assert sum(bench.check()) == 0


@pytest.mark.parametrize("phase", Phase)
def test_columns_of_a_wider_tensor_and_strided_rows(phase: Phase) -> None:
    bench = Bench([(128, 8), (128, 8), (128, 8)], 90, phase)
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
    assert [int(bench.step.rows_of(i)) for i in range(3)] == [20, 10, 20]


def test_counts_beyond_int32() -> None:
    bench = Bench([(2, 1)], 3, ep_size=0)
    for buffers in bench.all:
        buffers.flat.fill_(2**31 - 1)
    bench.count({0: torch.zeros(3, 1, dtype=torch.int32, device=CUDA)}, {0: span(3)})
    most = 2**31 - 1
    assert bench.check() == [most + 3, most, most, most, most + 3, most]


def test_ids_that_all_go_to_one_expert() -> None:
    bench = Bench([(128, 8)] * 2, 16384)
    ids = {i: torch.full((16384, 8), 127 * i, dtype=torch.int32, device=CUDA) for i in range(2)}
    bench.count(ids, {i: span(16384) for i in ids})
    bench.check()
    assert int(bench.step.counts_of(1)[127].item()) == 16384 * 8
