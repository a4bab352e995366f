"""Ids that are kept until they are counted take no more than a bound, in eager steps and in CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from moescope.capture.counting.staging import TraceStaging
from moescope.capture.wire import MoeLayer
from tests.gpu.passes import Replay, full_graph, piecewise_graphs, step
from tests.gpu.toy import CUDA, Toy

LAYERS = [MoeLayer(index, 64, 8) for index in range(20)]
ROWS = 512
IDS_BYTES = ROWS * 8 * 4


@pytest.mark.parametrize("kept", [0, IDS_BYTES // 2, 3 * IDS_BYTES, 7 * IDS_BYTES, 100 * IDS_BYTES])
@pytest.mark.parametrize("make", [None, full_graph, piecewise_graphs])
def test_counts_phases_and_loads_are_those_of_one_launch(
    make: Callable[[Toy, int, object], Replay] | None, kept: int
) -> None:
    toy = Toy(LAYERS, kept_ids_bytes=kept)
    toy.forward(ROWS)
    pool = torch.cuda.graph_pool_handle()
    runs = {
        rows: make(toy, rows, pool) if make else lambda rows=rows: toy.forward(rows) for rows in (ROWS, 32)
    }
    for rows, valid in [(ROWS, 512), (32, 20), (ROWS, 311), (32, 32), (ROWS, 400)] * 2:
        step(toy, valid, runs[rows])
        toy.expect(valid)
        runs[rows]()  # a dummy step
    toy.check()
    assert toy.capturer.strategy == "kernel-per-step"


def test_traced_rows_are_those_of_one_launch() -> None:
    rows = []
    for kept in (2 * IDS_BYTES, 100 * IDS_BYTES):
        toy = Toy(LAYERS, kept_ids_bytes=kept)
        toy.buffers.traced = staging = TraceStaging(LAYERS, ROWS, CUDA)
        toy.new_input()
        staging.begin(np.arange(3, ROWS, 7), ROWS)
        toy.begin(ROWS)
        toy.forward(ROWS)
        toy.capturer.end_step()
        toy.expect(ROWS)
        toy.check()
        rows.append(staging.rows[: len(range(3, ROWS, 7))].cpu())
    assert int((rows[0] == staging.unwritten).sum()) == 0
    assert torch.equal(*rows)


def peak_of(toy: Toy, rows: int) -> int:
    """Bytes that a step's forward pass takes at most beyond what is held before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(toy, rows, lambda: toy.forward(rows))
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_the_worst_case_of_the_documents_a_sixteenth_as_long() -> None:
    """58 layers, 4 x 4,096 rows, top-8: 30 MB of ids. The bound is a sixteenth of 32 MiB as well."""
    layers, rows = [MoeLayer(index, 64, 8) for index in range(58)], 4 * 4_096
    bound, all_ids, one = 2 << 20, 58 * rows * 8 * 4, rows * 8 * 4
    peaks = {}
    for kept in (bound, 2 * all_ids):
        toy = Toy(layers, max_tokens=rows, kept_ids_bytes=kept)
        toy.forward(rows)
        peaks[kept] = peak_of(toy, rows)
        toy.expect(rows)
        toy.check()
    saved = peaks[2 * all_ids] - peaks[bound]
    # Without the bound all layers' ids are there when the last one routes; with it the bound's and one's.
    assert saved >= all_ids - bound - 2 * one, peaks


def test_graphs_with_many_launches_find_tables_for_all_of_them() -> None:
    layers = [MoeLayer(index, 16, 2) for index in range(100)]
    toy = Toy(layers, max_tokens=64, kept_ids_bytes=0)
    toy.forward(64)
    pool = torch.cuda.graph_pool_handle()
    replays = {rows: full_graph(toy, rows, pool) for rows in (64, 48, 32, 16, 8, 4, 2, 1)}
    for rows, replay in replays.items():
        step(toy, rows, replay)
        toy.expect(rows)
    toy.check()


def test_routers_that_write_into_one_place_show_in_a_pass_whose_layers_launch_at_once() -> None:
    toy = Toy(LAYERS, kept_ids_bytes=0)
    shared = torch.zeros(ROWS, 8, dtype=torch.int32, device=CUDA)
    route = toy.route

    def into_shared(ordinal: int, rows: int) -> torch.Tensor:
        return shared[:rows].copy_(route(ordinal, rows))

    toy.route = into_shared  # type: ignore[method-assign]
    toy.forward(ROWS)
    assert toy.capturer.strategy == "kernel-per-layer"
    step(toy, 9, lambda: toy.forward(9))
    toy.expect(9)
    toy.check()


@pytest.mark.parametrize("eager", [[2, 3, 4], [18, 19], [0], []], ids=str)
def test_a_capture_that_vllm_interrupts_for_layers_that_run_eagerly(eager: list[int]) -> None:
    """Through vLLM's own breakable capture: these layers run eagerly in each replay, others in a graph."""
    breakable = pytest.importorskip("vllm.compilation.breakable_cudagraph")
    toy = Toy(LAYERS)
    captures = []
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    for rows in (256, 64):
        toy.forward(rows)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream), breakable.BreakableCUDAGraphCapture(pool=pool) as capture:
            for ordinal in range(len(LAYERS)):
                if ordinal in eager:
                    capture.add_eager(lambda ordinal=ordinal, rows=rows: toy.layer(ordinal, rows))
                else:
                    toy.layer(ordinal, rows)
        torch.cuda.synchronize()
        captures.append(capture)
    for valid in (200, 256, 130):
        step(toy, valid, captures[0].replay)
        toy.expect(valid)
        step(toy, 50, captures[1].replay)
        toy.expect(50)
        step(toy, valid, lambda valid=valid: toy.forward(valid))
        toy.expect(valid)
    toy.check()
