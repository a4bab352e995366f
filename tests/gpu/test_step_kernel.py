"""One kernel a step: eager steps, full and piecewise CUDA graphs, unusual passes; the host never waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from moescope.capture.counting.pointer_tables import Field
from moescope.capture.wire import MoeLayer
from tests.gpu.passes import Replay, captured, full_graph, piecewise_graphs, step
from tests.gpu.toy import CUDA, Toy


@pytest.fixture
def toy() -> Toy:
    made = Toy()
    made.forward(512)
    return made


def test_the_strategy_is_named(toy: Toy) -> None:
    assert toy.capturer.strategy == "kernel-per-step"
    tables = (
        257 * len(toy.layers) * len(Field) * 8
    )  # a chunk of 256 for graphs, and one for launches outside of them
    assert toy.capturer.strategy_bytes == tables


def test_eager_steps(toy: Toy) -> None:
    for rows in (1, 500, 7, 256):
        step(toy, rows, lambda rows=rows: toy.forward(rows))
        toy.expect(rows)
        toy.forward(rows)  # a dummy step
    toy.check()


@pytest.mark.parametrize("make", [full_graph, piecewise_graphs])
def test_graphs_of_several_sizes_from_one_pool_mixed_with_eager_steps(
    toy: Toy, make: Callable[[Toy, int, object], Replay]
) -> None:
    pool = torch.cuda.graph_pool_handle()
    replays = {rows: make(toy, rows, pool) for rows in (256, 64, 8, 1)}
    for rows, valid in [(64, 64), (64, 33), (8, 5), (256, 200), (1, 1), (256, 256), (8, 8)] * 3:
        step(toy, valid, replays[rows])
        toy.expect(valid)
        replays[rows]()  # a dummy step
        step(toy, 300, lambda: toy.forward(300))
        toy.expect(300)
    toy.check()


def test_full_and_piecewise_graphs_share_a_pool(toy: Toy) -> None:
    pool = torch.cuda.graph_pool_handle()
    replays = [make(toy, rows, pool) for make in (piecewise_graphs, full_graph) for rows in (128, 16)]
    for valid in (16, 3, 9):
        for replay in replays:
            step(toy, valid, replay)
            toy.expect(valid)
    toy.check()


def test_graphs_captured_after_serving_began(toy: Toy) -> None:
    early = full_graph(toy, 32, None)
    step(toy, 20, early)
    toy.expect(20)
    late = full_graph(toy, 16, None)
    step(toy, 11, late)
    toy.expect(11)
    step(toy, 32, early)
    toy.expect(32)
    toy.check()


def test_more_graphs_than_a_chunk_of_tables(toy: Toy) -> None:
    pool = torch.cuda.graph_pool_handle()
    replays = [full_graph(toy, 4, pool) for _ in range(300)]
    for replay in replays[::50]:
        step(toy, 3, replay)
        toy.expect(3)
    toy.check()


def test_a_step_that_ends_early_counts_the_layers_that_ran(toy: Toy) -> None:
    for ordinals in ([0, 1], [0], [0, 1, 2], [1]):
        step(toy, 9, lambda ordinals=ordinals: toy.forward(12, ordinals))
        toy.expect(9, ordinals)
    toy.check()


def test_layers_that_never_run_do_not_cost_the_others_their_graph(toy: Toy) -> None:
    for _ in range(2):
        toy.forward(64, [0, 1])
    replay = full_graph(toy, 64, None, [0, 1])
    step(toy, 40, replay)
    toy.expect(40, [0, 1])
    toy.check()


def test_a_captured_pass_whose_launch_is_missing_disables_capture_loudly(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    captured(lambda: toy.forward(8, [0, 1]))  # never run before, so that nothing could be learnt
    with pytest.raises(RuntimeError, match=r"a CUDA graph was captured without counting layers \[0, 1\]"):
        toy.capturer.begin_step(4)


def test_a_layer_that_runs_twice_in_a_pass_counts_twice(toy: Toy) -> None:
    order = [0, 1, 1, 2]
    step(toy, 6, lambda: toy.forward(6, order))
    toy.expect(6, order)
    replay = full_graph(toy, 8, None, order)
    step(toy, 5, replay)
    toy.expect(5, order)
    toy.check()


def test_routers_that_write_into_one_place_get_a_kernel_a_layer() -> None:
    toy = Toy([MoeLayer(index, 64, 4) for index in range(4)])
    shared = torch.zeros(512, 4, dtype=torch.int32, device=CUDA)
    route = toy.route

    def into_shared(ordinal: int, rows: int) -> torch.Tensor:
        return shared[:rows].copy_(route(ordinal, rows))

    toy.route = into_shared  # type: ignore[method-assign]
    toy.forward(512)
    assert toy.capturer.strategy == "kernel-per-layer"
    replay = full_graph(toy, 32, None)
    for valid in (32, 5):
        step(toy, valid, replay)
        toy.expect(valid)
        step(toy, 100, lambda: toy.forward(100))
        toy.expect(100)
    toy.check()


def test_ids_of_different_types_in_one_pass(toy: Toy) -> None:
    route = toy.route
    toy.route = lambda ordinal, rows: route(ordinal, rows).to(  # type: ignore[method-assign]
        [torch.int64, torch.int32, torch.uint8][ordinal]
    )
    replay = full_graph(toy, 32, None)
    for _ in range(3):
        step(toy, 30, replay)
        toy.expect(30)
        step(toy, 77, lambda: toy.forward(77))
        toy.expect(77)
    toy.check()


def test_compiled_calls_are_counted_with_a_kernel_a_layer(toy: Toy) -> None:
    def body(rows: torch.Tensor) -> torch.Tensor:
        total = rows.sum()
        for ordinal, weight in enumerate(toy.weights):
            ids = (rows @ weight).topk(toy.layers[ordinal].top_k, dim=-1).indices.to(torch.int32)
            toy.capturer.record(ordinal, ids)
            total = total + (ids * 2).sum()
        return total

    compiled = torch.compile(body, fullgraph=True, dynamic=False)
    compiled(toy.input[:64])
    assert toy.capturer.strategy == "kernel-per-layer"
    for valid in (64, 20):
        step(toy, valid, lambda: compiled(toy.input[:64]))
        toy.expect(valid)
    toy.check()


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("graph", [False, True])
def test_a_step_neither_waits_nor_allocates(graph: bool) -> None:
    torch.cuda.set_sync_debug_mode("default")
    toy = Toy()
    toy.forward(64)
    replay = full_graph(toy, 64, None)
    step(toy, 1, replay)
    toy.expect(1)
    ids = [toy.route(ordinal, 64) for ordinal in range(len(toy.layers))]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    phases = []
    for _ in range(200):
        toy.begin(50)
        phases.append(toy.decode)
        if graph:
            replay()
        else:
            for ordinal, kept in enumerate(ids):
                toy.capturer.record(ordinal, kept)
        toy.capturer.end_step()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    torch.cuda.set_sync_debug_mode("default")
    for toy.decode in phases:
        toy.expect(50)
    toy.check()
