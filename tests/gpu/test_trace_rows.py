"""Traced rows on a GPU: the kernel equals the reference, in graphs and eager steps; the host never waits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from moescope.capture.counting.staging import StagedRows, TraceStaging, copy_traced_rows
from moescope.capture.seam.rows import Layout, RowSpan
from moescope.capture.wire import MoeLayer
from tests.gpu.passes import Replay, full_graph, piecewise_graphs
from tests.gpu.toy import CUDA, LAYERS, Toy


class Traced(Toy):
    """A toy model some of whose rows are traced."""

    def __init__(self, layers: list[MoeLayer] = LAYERS, staging_bytes: int = 1 << 20) -> None:
        super().__init__(layers)
        self.staging = TraceStaging(layers, 512, CUDA, staging_bytes)
        self.reference = TraceStaging(layers, 512, CUDA, staging_bytes)
        self.buffers.traced = self.staging
        self.forward(512)

    def step(self, valid: int, traced: list[int], run: Replay) -> tuple[StagedRows, torch.Tensor] | None:
        """Run a step whose tokens `traced` are traced; returns the rows that arrive, and those that must."""
        self.new_input()
        tokens = np.array(traced, np.int64)
        self.begin(valid)
        if traced:
            self.staging.begin(tokens, valid)
        run()
        staged = self.staging.collect(len(traced)) if traced else None
        self.capturer.end_step()
        self.expect(valid)
        if staged is None:
            return None
        self.reference.begin(tokens, valid)
        first = self.reference._next
        for ordinal in range(len(self.layers)):
            ids = self.route(ordinal, valid)
            span = RowSpan(Layout.LOCAL, 0, valid, 0)
            copy_traced_rows(ids, span, torch.tensor([valid]), self.reference, ordinal)
        expected = self.reference.rows[first : first + len(traced)].clone()
        self.reference.collect(len(traced)).done = True
        return staged, expected


def assert_arrives(result: tuple[StagedRows, torch.Tensor] | None) -> None:
    assert result is not None
    staged, expected = result
    torch.cuda.synchronize()
    assert staged.arrived
    np.testing.assert_array_equal(staged.view(), expected.cpu().numpy())
    staged.done = True


SHAPES = {
    "bytes": LAYERS,
    "two bytes": [MoeLayer(0, 384, 8), MoeLayer(1, 60, 4), MoeLayer(2, 256, 8)],
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("make", [full_graph, piecewise_graphs, None])
def test_traced_rows_are_those_that_were_routed(
    name: str, make: Callable[[Toy, int, object], Replay] | None
) -> None:
    toy = Traced(SHAPES[name])
    assert toy.capturer.strategy == "kernel-per-step"
    pool = torch.cuda.graph_pool_handle()
    runs = {
        rows: (lambda rows=rows: toy.forward(rows)) if make is None else make(toy, rows, pool)
        for rows in (256, 16)
    }
    rng = np.random.default_rng(0)
    for rows, valid in [(16, 16), (256, 200), (16, 5), (256, 256), (16, 1)] * 4:
        assert_arrives(toy.step(valid, sorted(rng.choice(valid, 1 + valid // 3, replace=False)), runs[rows]))
        before = toy.staging.rows.cpu().numpy().copy()
        assert toy.step(valid, [], runs[rows]) is None
        runs[rows]()  # a dummy step
        np.testing.assert_array_equal(toy.staging.rows.cpu().numpy(), before)
    toy.check()


def test_a_kernel_a_layer_copies_traced_rows_too() -> None:
    toy = Traced([MoeLayer(index, 64, 4) for index in range(4)])
    toy.capturer._fall_back("a test")
    replay = full_graph(toy, 32, None)
    for valid in (32, 5):
        assert_arrives(toy.step(valid, [0, valid - 1], replay))
    assert toy.capturer.strategy == "kernel-per-layer"
    toy.check()


def test_masked_slots_and_shards() -> None:
    """Rows 10.. of the batch are tokens 4..; some slots are masked or out of range."""
    toy = Traced()
    generator = torch.Generator().manual_seed(1)
    for dtype in (torch.int32, torch.int64, torch.int16):
        tokens = np.arange(0, 90, 2)
        for staging in (toy.staging, toy.reference):
            staging.begin(tokens, 90)
        first = toy.staging._next
        assert first == toy.reference._next
        toy.buffers.step_word.fill_(90)
        for ordinal, layer in enumerate(toy.layers):
            high = min(layer.num_experts + 3, torch.iinfo(dtype).max)
            ids = torch.randint(-2, high, (120, layer.top_k), generator=generator).to(CUDA, dtype)
            span = RowSpan(Layout.TP_SHARD, 10, 60, 4)
            toy.capturer._strategy.record(ordinal, ids, span, toy.buffers.flat)
            copy_traced_rows(ids, span, toy.buffers.step_word, toy.reference, ordinal)
        toy.buffers.step_word.zero_()
        rows = [staging.rows[first : first + 45].cpu().numpy() for staging in (toy.staging, toy.reference)]
        np.testing.assert_array_equal(rows[0], rows[1])
        unwritten = (rows[0] == toy.staging.unwritten).all(axis=1)
        assert unwritten.tolist() == [not 4 <= token < 64 for token in tokens]
        assert (rows[0] == toy.staging.masked).any()
        for staging in (toy.staging, toy.reference):
            staging.collect(45).done = True


@pytest.mark.usefixtures("no_sync")
def test_a_traced_step_neither_waits_nor_allocates_on_the_device() -> None:
    torch.cuda.set_sync_debug_mode("default")
    toy = Traced(staging_bytes=1 << 16)
    replay = full_graph(toy, 64, None)
    toy.step(50, [1], replay)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    tokens = np.arange(0, 50, 3)
    staged: list[StagedRows] = []
    for _ in range(300):
        toy.begin(50)
        traced = toy.staging.room() >= len(tokens)
        if traced:
            toy.staging.begin(tokens, 50)
        replay()
        if traced:
            staged.append(toy.staging.collect(len(tokens)))
        toy.capturer.end_step()
        for rows in staged:
            rows.done = rows.done or rows.arrived
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    assert len(staged) > 10
    torch.cuda.set_sync_debug_mode("default")


def test_positions_are_those_of_the_step_although_the_next_one_overwrites_them() -> None:
    """The model's buffer is written anew for each step, behind the copy of the step before."""
    buffer = torch.zeros(512, dtype=torch.int64, device=CUDA)
    staging = TraceStaging(LAYERS, 512, CUDA, 1 << 20, positions=lambda: buffer)
    rng = np.random.default_rng(0)
    found = []
    for step in range(20):
        tokens = np.sort(rng.choice(256, 40, replace=False))
        torch.cuda._sleep(1_000_000)  # the host is ahead of the device
        buffer.copy_(torch.arange(512, device=CUDA) + 1000 * step)
        staging.begin(tokens, 256)
        found.append((staging.collect(40), tokens + 1000 * step))
    torch.cuda.synchronize()
    for staged, expected in found:
        positions = staged.positions()
        assert positions is not None
        assert positions.tolist() == expected.tolist()
