"""Capture through vLLM's real router, under its real `ForwardContext` and `DPMetadata`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.config import ParallelConfig, VllmConfig
from vllm.forward_context import (
    BatchDescriptor,
    DPMetadata,
    ForwardContext,
    override_forward_context,
    set_forward_context,
)
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.seam import rows as seam_rows
from moescope.capture.seam.binding import RouterBinding
from moescope.capture.seam.coverage import RoutedLayer
from moescope.capture.seam.forward import step_rows
from moescope.capture.seam.rows import Layout, Ranks, RowSpan
from moescope.capture.settings.environment import OnError
from moescope.capture.wire import MoeLayer

LAYER = MoeLayer(3, 12, 3)


@contextmanager
def forward_pass(tokens_across_dp: list[int] | None, sp_size: int | None = None) -> Iterator[None]:
    """A forward pass as vLLM sets one up, inside its sequence-parallel context if `sp_size` is given."""
    metadata = (
        None if tokens_across_dp is None else DPMetadata(torch.tensor(tokens_across_dp, dtype=torch.int32))
    )
    context = ForwardContext(no_compile_layers={}, attn_metadata={}, slot_mapping={}, dp_metadata=metadata)
    shards = nullcontext() if metadata is None or sp_size is None else metadata.sp_local_sizes(sp_size)
    with override_forward_context(context), shards:
        yield


@dataclass
class Worker:
    """A router with our callback, in the worker with these ranks."""

    ranks: Ranks
    on_error: OnError = OnError.RAISE

    def __post_init__(self) -> None:
        self.router = CPURouter(top_k=LAYER.top_k, global_num_experts=LAYER.num_experts)
        self.buffers = CountBuffers([LAYER], torch.device("cpu"), max_tokens=64)
        self.capturer = RoutingCapturer(self.buffers, self.ranks, step_rows, self.on_error)
        self.binding = RouterBinding((RoutedLayer(LAYER, self.router),), self.capturer)
        self.binding.bind()

    def route(self, logits: torch.Tensor) -> np.ndarray:
        _, ids = self.router.select_experts(torch.zeros(len(logits), 1), logits)
        return ids.numpy()

    def step(self, num_tokens: int, logits: torch.Tensor) -> None:
        self.capturer.begin_step(num_tokens)
        self.route(logits)
        self.capturer.end_step()

    @property
    def counts(self) -> list[int]:
        return self.buffers.counts_of(0).tolist()

    @property
    def rows(self) -> int:
        return int(self.buffers.rows_of(0).item())


def logits_for(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, LAYER.num_experts, generator=torch.Generator().manual_seed(seed))


def true_counts(logits: torch.Tensor) -> np.ndarray:
    ids = logits.topk(LAYER.top_k, dim=-1).indices
    return np.bincount(ids.flatten().numpy(), minlength=LAYER.num_experts)


def pad(rows: torch.Tensor, length: int) -> torch.Tensor:
    """Rows with padding up to a length. Padding rows are routed too, so the capturer must mask them."""
    return torch.cat([rows, logits_for(length - len(rows), seed=99)])


def batch_seen_by(layout: Layout, ranks: Ranks, padded: list[torch.Tensor]) -> torch.Tensor:
    """The rows that the worker's router gets, built here from the layout's definition."""
    if layout is Layout.ALL_DP:
        return torch.cat(padded)
    mine = padded[ranks.dp_rank]
    if layout in (Layout.LOCAL, Layout.SINGLE_DP):
        return mine
    if layout is Layout.SINGLE_DP_PADDED:
        return pad(mine, -(-len(mine) // ranks.tp_size) * ranks.tp_size)
    shards = [pad(rows, -(-len(rows) // ranks.tp_size) * ranks.tp_size) for rows in padded]
    if layout is Layout.GATHERED_SHARDS:
        return torch.cat(shards)
    return shards[ranks.dp_rank].chunk(ranks.tp_size)[ranks.tp_rank] if len(mine) else mine


@settings(max_examples=150, deadline=None)
@given(
    layout=st.sampled_from([Layout.ALL_DP, Layout.LOCAL, Layout.GATHERED_SHARDS, Layout.TP_SHARD]),
    tokens=st.lists(st.integers(0, 9), min_size=2, max_size=4),
    graph_padding=st.integers(0, 3),
    tp_size=st.integers(1, 3),
)
def test_every_token_is_counted_exactly_once_over_all_workers(
    layout: Layout, tokens: list[int], graph_padding: int, tp_size: int
) -> None:
    if layout in (Layout.GATHERED_SHARDS, Layout.TP_SHARD) and tp_size == 1:
        tp_size = 2
    real = [logits_for(n, seed=rank) for rank, n in enumerate(tokens)]
    padded = [pad(rows, len(rows) + graph_padding) for rows in real]
    for dp_rank, rows in enumerate(real):
        total, counted = np.zeros(LAYER.num_experts, dtype=np.int64), 0
        for tp_rank in range(tp_size):
            ranks = Ranks(dp_rank, len(tokens), tp_rank, tp_size)
            worker = Worker(ranks)
            sp_size = tp_size if layout in (Layout.GATHERED_SHARDS, Layout.TP_SHARD) else 1
            with forward_pass([len(p) for p in padded], sp_size):
                worker.step(len(rows), batch_seen_by(layout, ranks, padded))
            total += worker.counts
            counted += worker.rows
        assert total.tolist() == true_counts(rows).tolist()
        assert counted == len(rows)


def test_naive_dispatch_does_not_multiply_the_load_by_the_number_of_ranks() -> None:
    # Peers' bug (vLLM #22167): each rank counted all ranks' tokens.
    workers = [Worker(Ranks(rank, 4)) for rank in range(4)]
    batch = logits_for(20)
    for worker in workers:
        with forward_pass([5, 5, 5, 5], 1):
            worker.step(5, batch)
    assert sum(sum(worker.counts) for worker in workers) == 20 * LAYER.top_k


def test_local_rows_do_not_crash_while_graphs_are_captured() -> None:
    # Peers' bug (vLLM #37857): dummy runs of graph capture, modular-kernel layout.
    worker = Worker(Ranks(1, 2))
    for size in (1, 2, 4, 8):
        with forward_pass([size, size], 1):
            worker.route(logits_for(size))
    assert (worker.counts, worker.rows) == ([0] * LAYER.num_experts, 0)


def test_cpus_count_with_the_reference() -> None:
    capturer = Worker(Ranks()).capturer
    assert (capturer.strategy, capturer.strategy_bytes) == ("torch-per-layer", 0)


def test_single_dp_without_metadata() -> None:
    worker = Worker(Ranks())
    with forward_pass(None):
        worker.step(6, pad(logits_for(6), 8))
    assert worker.counts == true_counts(logits_for(6)).tolist()


def test_profiling_warm_up_and_dummy_steps_count_nothing() -> None:
    worker = Worker(Ranks(0, 2))
    with forward_pass([4, 4], 1):
        worker.route(logits_for(4))
        worker.step(3, logits_for(4))
        worker.route(logits_for(4))
    assert worker.counts == true_counts(logits_for(4)[:3]).tolist()
    assert worker.capturer.totals[:2] == (3, 1)


def test_an_unknown_layout_stops_the_pass_with_all_the_numbers() -> None:
    worker = Worker(Ranks(0, 2))
    with (
        forward_pass([5, 3], 1),
        pytest.raises(AssertionError, match=r"batch of 7 rows .* expected 8 .*\[5, 3\]"),
    ):
        worker.route(logits_for(7))


def test_an_unknown_layout_can_disable_capture_for_good(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(Ranks(0, 2), OnError.DISABLE)
    with forward_pass([5, 3], 1):
        worker.route(logits_for(7))
        worker.step(5, logits_for(5))
    assert "batch of 7 rows" in str(worker.capturer.disabled_reason)
    assert sum(worker.counts) == 0
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize(
    ("on_error", "served", "raises"),
    [
        (OnError.RAISE_AT_START, False, True),
        (OnError.RAISE_AT_START, True, False),
        (OnError.RAISE, False, True),
        (OnError.RAISE, True, True),
        (OnError.DISABLE, False, False),
    ],
)
def test_whether_an_unknown_layout_stops_the_server(on_error: OnError, served: bool, raises: bool) -> None:
    worker = Worker(Ranks(0, 2), on_error)
    told: list[str] = []
    worker.capturer.before_raise, worker.capturer.has_served = told.append, served
    stops = pytest.raises(AssertionError) if raises else contextlib.nullcontext()
    with forward_pass([5, 3], 1), stops:
        worker.route(logits_for(7))
    assert "batch of 7 rows" in str(worker.capturer.disabled_reason)
    assert told == [worker.capturer.disabled_reason] * raises


def test_a_fault_in_counting_disables_capture_and_not_the_server(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(Ranks())
    with forward_pass(None):
        worker.capturer.begin_step(4)
        worker.capturer.record(0, torch.zeros(4))  # one-dimensional: no top-k ids
    assert "layer 3" in str(worker.capturer.disabled_reason)
    assert len(caplog.records) == 1


def test_the_routing_itself_is_untouched() -> None:
    plain = CPURouter(top_k=LAYER.top_k, global_num_experts=LAYER.num_experts)
    _, expected = plain.select_experts(torch.zeros(9, 1), logits_for(9))
    worker = Worker(Ranks())
    with forward_pass(None):
        assert (worker.route(logits_for(9)) == expected.numpy()).all()


def test_a_compiled_router_counts_each_call() -> None:
    worker = Worker(Ranks())
    compiled = torch.compile(worker.router.select_experts, fullgraph=True, backend="aot_eager", dynamic=True)
    with forward_pass(None):
        for size in (4, 7, 5):
            worker.capturer.begin_step(size - 1)
            compiled(torch.zeros(size, 1), logits_for(size))
            worker.capturer.end_step()
    assert worker.counts == sum(true_counts(logits_for(size)[: size - 1]) for size in (4, 7, 5)).tolist()


@pytest.fixture(scope="module")
def one_dp_rank() -> VllmConfig:
    """vLLM's own configuration of TP=2 EP=2 without data parallelism."""
    return VllmConfig(parallel_config=ParallelConfig(tensor_parallel_size=2, enable_expert_parallel=True))


def described(config: VllmConfig, size: int) -> AbstractContextManager[None]:
    """A pass as both runners set one up for a step of `size` rows, padding included."""
    return set_forward_context(
        None, config, num_tokens=size, batch_descriptor=BatchDescriptor(num_tokens=size)
    )


def full_capture(config: VllmConfig, size: int) -> AbstractContextManager[None]:
    """A pass as runner V2 sets one up, up to 0.32, to capture a full CUDA graph: without a descriptor."""
    slots = {f"layer.{index}": torch.zeros(size, dtype=torch.int64) for index in range(3)}
    return set_forward_context({}, config, num_tokens=size, slot_mapping=slots)


def counted_by(
    tp_size: int, layout: Layout, padded: torch.Tensor, true: int, context: AbstractContextManager[None]
) -> tuple[list[int], list[int]]:
    """Counts summed over the TP ranks, and each one's rows, of a step with `true` tokens."""
    workers = [Worker(Ranks(0, 1, tp, tp_size)) for tp in range(tp_size)]
    with context:
        for worker in workers:
            worker.step(true, batch_seen_by(layout, worker.capturer.ranks, [padded]))
    return np.sum([worker.counts for worker in workers], 0).tolist(), [worker.rows for worker in workers]


@pytest.mark.parametrize("context", [described, full_capture])
@pytest.mark.parametrize("layout", [Layout.SINGLE_DP, Layout.SINGLE_DP_PADDED, Layout.TP_SHARD])
@pytest.mark.parametrize(("true", "size", "tp_size"), [(5, 5, 2), (5, 8, 2), (1, 1, 2), (3, 8, 4), (7, 9, 4)])
def test_without_metadata_tp_workers_count_each_token_once(
    one_dp_rank: VllmConfig, context: Any, layout: Layout, true: int, size: int, tp_size: int
) -> None:
    real = logits_for(true)
    counts, rows = counted_by(tp_size, layout, pad(real, size), true, context(one_dp_rank, size))
    assert (counts, sum(rows)) == (true_counts(real).tolist(), true)


def test_without_the_rule_of_the_steps_size_a_half_of_the_tokens_is_missing(
    one_dp_rank: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule before: without metadata all rows are the replica's, and TP rank 0 counts them."""

    def before(num_rows: int, ranks: Ranks, num_tokens: int | None) -> RowSpan:
        return RowSpan(Layout.SINGLE_DP, 0, num_rows if ranks.tp_rank == 0 else 0, 0)

    real = logits_for(8)
    _, rows = counted_by(2, Layout.TP_SHARD, real, 8, described(one_dp_rank, 8))
    assert rows == [4, 4]
    monkeypatch.setattr(seam_rows, "_locate_by_size", before)
    _, rows = counted_by(2, Layout.TP_SHARD, real, 8, described(one_dp_rank, 8))
    assert rows == [4, 0]


@pytest.mark.parametrize("layout", [Layout.SINGLE_DP, Layout.SINGLE_DP_PADDED, Layout.TP_SHARD])
def test_a_step_whose_size_nobody_says_has_its_own(one_dp_rank: VllmConfig, layout: Layout) -> None:
    real = logits_for(7)
    counts, rows = counted_by(2, layout, real, 7, set_forward_context(None, one_dp_rank))
    assert (counts, sum(rows)) == (true_counts(real).tolist(), 7)


def test_a_size_that_vllm_refuses_is_refused_here(one_dp_rank: VllmConfig) -> None:
    worker = Worker(Ranks(0, 1, 0, 2))
    with described(one_dp_rank, 5), pytest.raises(AssertionError, match=r"batch of 1 rows .* expected 5 .*6"):
        worker.step(5, logits_for(1))


def test_a_dp_rank_of_its_own_counts_its_rows() -> None:
    """vLLM gives no metadata to DP ranks of a model in which it sees no experts: they exchange no rows."""
    parallel = ParallelConfig(data_parallel_size=2, data_parallel_rank=1, tensor_parallel_size=2)
    config = VllmConfig(parallel_config=parallel)
    config.parallel_config.is_moe_model = False
    for size, rows in ((4, [4, 0]), (2, [2, 2])):  # N = 4: whole on both TP ranks, or a shard on each
        workers = [Worker(Ranks(1, 2, tp, 2)) for tp in (0, 1)]
        with described(config, 4):
            for worker in workers:
                worker.step(4, logits_for(size))
        assert [worker.rows for worker in workers] == rows
    with described(config, 4), pytest.raises(AssertionError, match="batch of 8 rows"):
        Worker(Ranks(1, 2, 0, 2)).step(4, logits_for(8))
    with set_forward_context(None, config), pytest.raises(AssertionError, match="can't be known"):
        Worker(Ranks(1, 2, 0, 2)).step(4, logits_for(4))


def test_layers_that_run_on_a_part_of_the_steps_rows_are_refused(one_dp_rank: VllmConfig) -> None:
    """In vLLM's way of running them: a forward context of their own within the step's."""
    worker = Worker(Ranks())
    with (
        described(one_dp_rank, 9),
        described(one_dp_rank, 4),
        pytest.raises(AssertionError, match="a forward pass of 4 rows in a step of 9 tokens"),
    ):
        worker.step(9, logits_for(4))
