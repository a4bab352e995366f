"""Which rows a microbatch has, in vLLM's own threads: each token is counted once, in its microbatch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vllm.forward_context import get_forward_context, set_forward_context
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.load_ring import LoadRing
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.counting.staging import TraceStaging
from moescope.capture.seam.binding import RouterBinding
from moescope.capture.seam.coverage import RoutedLayer
from moescope.capture.seam.features import MOST_MICROBATCHES
from moescope.capture.seam.microbatches import MicrobatchedRows, rows_reader
from moescope.capture.seam.rows import Layout, Ranks
from moescope.capture.settings.environment import OnError
from moescope.capture.wire import MoeLayer
from tests.capture.microbatches import SplitV1, SplitV2, hand_over, microbatched, stand_in_for_cuda

CPU = torch.device("cpu")
LAYERS = [MoeLayer(1, 12, 3), MoeLayer(2, 8, 2)]
EP_SIZE = 4
EP_RANKS = np.array(
    [[expert % EP_SIZE for expert in range(12)], [3 - expert // 2 for expert in range(8)] + [0] * 4]
)
SPLITS = {"v1": SplitV1, "v2": SplitV2}
Split = type[SplitV1 | SplitV2]


@pytest.fixture(scope="module", autouse=True)
def on_a_cpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stand_in_for_cuda(monkeypatch)
        yield


class Worker:
    """Two layers' routers with our callback, in a worker of a deployment that splits steps."""

    def __init__(self, ranks: Ranks, parts: int, on_error: OnError = OnError.RAISE) -> None:
        self.ranks, self.parts = ranks, parts
        self.ring = LoadRing(EP_RANKS.astype("i4"), EP_SIZE, 0, CPU, microbatches=parts)
        self.buffers = CountBuffers(LAYERS, CPU, 64, self.ring, parts)
        self.buffers.traced = self.staging = TraceStaging(LAYERS, 64, CPU)
        self.capturer = RoutingCapturer(self.buffers, ranks, rows_reader(parts), on_error)
        self.routers = [
            CPURouter(top_k=layer.top_k, global_num_experts=layer.num_experts) for layer in LAYERS
        ]
        layers = tuple(map(RoutedLayer, LAYERS, self.routers))
        RouterBinding(layers, self.capturer).bind()

    def counts(self, ordinal: int, phase: Any = None) -> list[int]:
        return self.buffers.counts_of(ordinal, phase).tolist()

    def loads(self) -> np.ndarray:
        """Of the latest step, [M, L, R]."""
        return self.ring.loads[(self.ring.computed - 1) % len(self.ring.numbers)].numpy()


def logits_of(dp_rank: int, rows: int) -> list[torch.Tensor]:
    """What each layer's gate says of the rows of a DP rank's step, padding included."""
    generator = torch.Generator().manual_seed(7 * dp_rank + rows)
    return [torch.rand(rows, layer.num_experts, generator=generator) for layer in LAYERS]


def chosen(logits: torch.Tensor, ordinal: int) -> np.ndarray:
    return logits.topk(LAYERS[ordinal].top_k, dim=-1).indices.numpy()


def shards(rows: torch.Tensor, tp_size: int) -> torch.Tensor:
    """Rows padded to whole shards."""
    short = -len(rows) % tp_size
    return torch.cat([rows, torch.rand(short, rows.shape[1])])


def seen(layout: Layout, ranks: Ranks, of_ranks: list[torch.Tensor]) -> torch.Tensor:
    """What a worker's router gets of a microbatch, by the layout's definition."""
    mine = of_ranks[ranks.dp_rank]
    if layout is Layout.ALL_DP:
        return torch.cat(of_ranks)
    if layout is Layout.LOCAL:
        return mine
    if layout is Layout.GATHERED_SHARDS:
        return torch.cat([shards(rows, ranks.tp_size) for rows in of_ranks])
    return shards(mine, ranks.tp_size).chunk(ranks.tp_size)[ranks.tp_rank]


def model_of(worker: Worker, layout: Layout, of_ranks: list[list[torch.Tensor]], yields: bool) -> Any:
    """A model whose layers route the rows of a pass, and hand over where ranks exchange their tokens."""

    def model(rows: torch.Tensor) -> None:
        for ordinal, router in enumerate(worker.routers):
            metadata = get_forward_context().dp_metadata
            assert metadata is not None
            sharded = layout in (Layout.GATHERED_SHARDS, Layout.TP_SHARD)
            with metadata.sp_local_sizes(worker.ranks.tp_size) if sharded else nullcontext():
                batch = seen(layout, worker.ranks, [logits[ordinal][rows] for logits in of_ranks])
                router.select_experts(torch.zeros(len(batch), 1), batch)
            if yields:
                hand_over()

    return model


@settings(max_examples=60, deadline=None)
@given(
    split=st.sampled_from(sorted(SPLITS)),
    layout=st.sampled_from([Layout.ALL_DP, Layout.LOCAL, Layout.GATHERED_SHARDS, Layout.TP_SHARD]),
    tokens=st.lists(st.integers(1, 17), min_size=2, max_size=3),
    padding=st.integers(0, 5),
    parts=st.one_of(st.integers(2, 4), st.just(MOST_MICROBATCHES)),
    tp_size=st.integers(1, 3),
    yields=st.booleans(),
)
@example("v1", Layout.ALL_DP, [17, 9], 0, 8, 1, True)
@example("v2", Layout.LOCAL, [17, 9], 0, 8, 1, True)
@example("v1", Layout.ALL_DP, [9, 2], 0, 2, 1, True)  # the second rank's last microbatch is all padding
@example("v2", Layout.LOCAL, [11, 11], 0, 3, 1, False)  # the last microbatch is the largest
def test_each_token_is_counted_once_in_its_microbatch(
    split: str, layout: Layout, tokens: list[int], padding: int, parts: int, tp_size: int, yields: bool
) -> None:
    if layout in (Layout.GATHERED_SHARDS, Layout.TP_SHARD):
        tp_size = max(2, tp_size)
    padded = max(max(tokens) + padding, parts)
    of_ranks = [logits_of(rank, padded) for rank in range(len(tokens))]
    starts = [padded // parts * part for part in range(parts)] + [padded]
    for dp_rank, true in enumerate(tokens):
        config = microbatched(len(tokens), dp_rank, parts)
        phases = np.arange(true, dtype=np.uint8) % 2
        counts = [np.zeros((2, layer.num_experts), np.int64) for layer in LAYERS]
        rows, loads = np.zeros((2, 2), np.int64), np.zeros((parts, len(LAYERS), EP_SIZE), np.int64)
        traced = np.full((true, 5), -1)
        for tp_rank in range(tp_size):
            worker = Worker(Ranks(dp_rank, len(tokens), tp_rank, tp_size), parts)
            worker.capturer.begin_step(true, int(phases.sum()))
            worker.capturer.set_phases(phases)
            worker.staging.begin(np.arange(true), true)
            found = SPLITS[split](config, model_of(worker, layout, of_ranks, yields)).step(padded, true)
            assert found.tolist() == list(range(padded))
            worker.capturer.end_step()
            ids = worker.staging.collect(true).view().astype(int)
            traced = np.where(ids != worker.staging.unwritten, ids, traced)
            loads += worker.loads()
            for ordinal in range(2):
                for phase in range(2):
                    counts[ordinal][phase] += worker.counts(ordinal, phase)
                    rows[ordinal][phase] += int(worker.buffers.rows_of(ordinal, phase))
            assert worker.capturer.disabled_reason is None
        ids = [chosen(of_ranks[dp_rank][ordinal][:true], ordinal) for ordinal in range(2)]
        assert rows.tolist() == [[true - phases.sum(), phases.sum()]] * 2
        assert (np.sort(traced[:, :3]) == np.sort(ids[0])).all()  # routers sort no row
        assert (np.sort(traced[:, 3:]) == np.sort(ids[1])).all()
        for ordinal, layer in enumerate(LAYERS):
            for phase in range(2):
                expected = np.bincount(ids[ordinal][phases == phase].flatten(), minlength=layer.num_experts)
                assert counts[ordinal][phase].tolist() == expected.tolist()
            for part in range(parts):
                of_part = EP_RANKS[ordinal][ids[ordinal][starts[part] : starts[part + 1]].flatten()]
                assert loads[part][ordinal].tolist() == np.bincount(of_part, minlength=EP_SIZE).tolist()


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_a_deployment_splits_some_steps_and_others_not(split: Split) -> None:
    worker, config = Worker(Ranks(0, 2), 2), microbatched(2, 0, 2)
    of_ranks = [logits_of(rank, 10) for rank in range(2)]
    model = model_of(worker, Layout.LOCAL, of_ranks, yields=True)
    for is_split in (True, False, True, False, False):
        worker.capturer.begin_step(7)
        if is_split:
            split(config, model).step(10, 7)
        else:
            sizes = torch.tensor([10, 10], dtype=torch.int32)
            with set_forward_context(None, config, num_tokens=10, num_tokens_across_dp=sizes):
                model(torch.arange(10))
        worker.capturer.end_step()
        assert (worker.loads()[1].sum() > 0) == is_split
        assert worker.loads().sum(axis=(0, 2)).tolist() == [7 * 3, 7 * 2]
    ids = chosen(of_ranks[0][0][:7], 0)
    assert worker.counts(0) == (5 * np.bincount(ids.flatten(), minlength=12)).tolist()


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_dummy_steps_and_warm_up_count_nothing(split: Split) -> None:
    worker, config = Worker(Ranks(1, 2), 2), microbatched(2, 1, 2)
    model = model_of(worker, Layout.LOCAL, [logits_of(rank, 8) for rank in range(2)], True)
    split(config, model).step(8, 8)
    assert (worker.counts(0), int(worker.buffers.rows_of(0))) == ([0] * 12, 0)


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("on_error", [OnError.RAISE, OnError.DISABLE])
def test_an_unknown_layout_in_a_microbatch_is_raised_outside_of_its_thread(
    split: Split, on_error: OnError
) -> None:
    """Within the thread nobody would see it: vLLM would lose the microbatch's rows, or wait for ever."""
    worker, config = Worker(Ranks(0, 2), 2, on_error), microbatched(2, 0, 2)
    told: list[str] = []
    worker.capturer.before_raise = told.append
    worker.capturer.begin_step(8)
    model = lambda _: worker.routers[0].select_experts(torch.zeros(9, 1), torch.rand(9, 12))  # noqa: E731
    split(config, model).step(8, 8)
    worker.capturer.end_step()
    assert "batch of 9 rows" in str(worker.capturer.disabled_reason)
    if on_error is OnError.DISABLE:
        worker.capturer.raise_owed()
        return
    with pytest.raises(AssertionError, match="batch of 9 rows"):
        worker.capturer.raise_owed()
    assert told == [worker.capturer.disabled_reason]
    worker.capturer.raise_owed()


def test_a_step_of_more_tokens_than_its_microbatches_have_is_refused() -> None:
    """Only the last microbatch shows it: the others have fewer rows than the step has tokens."""
    worker, config = Worker(Ranks(0, 2), 2), microbatched(2, 0, 2)
    worker.capturer.begin_step(9)
    model = model_of(worker, Layout.LOCAL, [logits_of(rank, 8) for rank in range(2)], True)
    SplitV1(config, model).step(8, 8)
    assert "8 tokens" not in str(worker.capturer.disabled_reason)
    assert "a step of 9 tokens" in str(worker.capturer.disabled_reason)


class Vllm:
    """In place of vLLM's module, with microbatches as versions have them."""

    def __init__(self, number: int, contexts: list[Any], count: int = 2) -> None:
        self.dbo_enabled, self.dbo_current_ubatch_id = lambda: True, lambda: number
        self._CURRENT_CONTEXTS, self._NUM_UBATCHES = contexts, count


class Context:
    """As vLLM's, of a microbatch with these rows on the DP ranks."""

    def __init__(self, *sizes: int, **told: int) -> None:
        metadata = SimpleNamespace(num_tokens_across_dp_cpu=torch.tensor(sizes), local_sizes=None)
        self.forward_context = SimpleNamespace(dp_metadata=metadata if sizes else None)
        self.__dict__.update(told)


def place(
    reader: MicrobatchedRows, number: int, contexts: list[Any], count: int = 2
) -> tuple[int, int, bool]:
    reader._vllm = Vllm(number, contexts, count)
    return tuple(reader._current())


def test_a_place_that_vllm_tells_is_taken() -> None:
    assert place(MicrobatchedRows(2), 1, [None, Context(token_offset=6)]) == (1, 6, True)


def test_a_place_follows_from_the_sizes_before_it_though_those_are_done() -> None:
    reader, contexts = MicrobatchedRows(3), [Context(5, 5), Context(5, 5), Context(7, 7)]
    assert place(reader, 0, contexts, 3) == (0, 0, False)
    assert place(reader, 2, [None, None, contexts[2]], 3) == (2, 10, True)
    assert place(reader, 1, [None, contexts[1], contexts[2]], 3) == (1, 5, False)


@pytest.mark.parametrize(
    ("number", "contexts", "count"),
    [
        (1, [None, Context(4, 4)], 2),  # those before it are done, and were never seen
        (1, [Context(4, 5), Context(4, 4)], 2),  # of unlike sizes on the DP ranks
        (1, [Context(), Context(4, 4)], 2),
        (1, [Context(4, 4), None], 2),
        (2, [Context(4, 4), Context(4, 4), Context(4, 4)], 3),  # more of them than the configuration says
        (2, [Context(4, 4), Context(4, 4)], 2),
    ],
)
def test_a_place_that_is_not_known_is_said(number: int, contexts: list[Any], count: int) -> None:
    with pytest.raises(LookupError):
        place(MicrobatchedRows(2), number, contexts, count)
